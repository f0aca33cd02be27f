"""Points of the swiss roll as pictures of two pixels: the data of Sohl-Dickstein et al. 2015, figure 1."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from latentdiff.data.staging import written_whole
from latentdiff.errors import InputError

HELD_OUT = 0.2
NOISE = 0.5
_CENTRE, _REACH = (2.0, 0.0), 17.0
"""The roll lies within the centre and this far to each side, noise included."""


def write_swiss_roll(out: Path, points: int, seed: int, overwrite: bool = False) -> dict[str, int]:
    """Write every point into OUT/train or OUT/held_out, each an ordinary folder of pictures.

    A point is 1 x 2 pixels, its coordinates in 256 greys: a step is a quarter of the noise.

    Args:
        out: The folder to write.
        points: How many, a fifth of which is held out.
        seed: Of the points.
        overwrite: Replace a folder that is not empty.

    Returns:
        The number of points by split.

    Raises:
        InputError: A bad argument, or scikit-learn is missing.
    """
    if points < 10:
        raise InputError(f"--points is {points}; give at least 10.")
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed is {seed}; it must be from 0 to {2**32 - 1}.")
    try:
        from sklearn.datasets import make_swiss_roll
    except ImportError:
        raise InputError("the points come from scikit-learn; install it: pip install scikit-learn.") from None
    roll = make_swiss_roll(points, noise=NOISE, random_state=seed)[0][:, [0, 2]]
    greys = to_greys(roll)
    held_out = round(HELD_OUT * points)
    with written_whole(out, overwrite) as folder:
        _write(folder / "held_out", greys[:held_out])
        _write(folder / "train", greys[held_out:])
    return {"train": points - held_out, "held_out": held_out}


def to_greys(points: np.ndarray) -> np.ndarray:
    """Greys (N, 2) of points of the roll (N, 2)."""
    return np.rint((np.clip((points - _CENTRE) / _REACH, -1, 1) + 1) * 127.5).astype(np.uint8)


def to_points(greys: np.ndarray) -> np.ndarray:
    """Points of the roll (N, 2) that greys (N, 2) stand for."""
    return (greys / 127.5 - 1) * _REACH + _CENTRE


def _write(folder: Path, greys: np.ndarray) -> None:
    (folder / "points").mkdir(parents=True)
    lines = []
    for number, pair in enumerate(greys):
        name = f"points/{number:06d}.png"
        Image.fromarray(pair[None]).save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": "a point of the swiss roll"}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
