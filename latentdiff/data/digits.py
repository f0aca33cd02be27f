"""Handwritten digits as folders of captioned pictures: the 1,797 scans that scikit-learn carries (UCI, 1998)."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from latentdiff.data.staging import written_whole
from latentdiff.errors import InputError

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HELD_OUT = 0.2


def write_digits(out: Path, seed: int, overwrite: bool = False) -> dict[str, int]:
    """Write every scan into OUT/train or OUT/held_out, each an ordinary folder with metadata.jsonl.

    A scan is 8 x 8 in 17 greys, which become round(255 / 16 of them). A fifth of each digit's scans is held out, the
    same for the same seed.

    Args:
        out: The folder to write.
        seed: Of the split.
        overwrite: Replace a folder that is not empty.

    Returns:
        The number of pictures by split.

    Raises:
        InputError: A bad argument, or scikit-learn is missing.
    """
    if seed < 0:
        raise InputError(f"--seed is {seed}; it must not be negative.")
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError("the scans come from scikit-learn; install it: pip install scikit-learn.") from None
    scans, labels = load_digits(return_X_y=True)
    pixels = np.rint(scans.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    rng = np.random.default_rng(seed)
    held_out = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        own = np.flatnonzero(labels == digit)
        held_out[rng.permutation(own)[: round(HELD_OUT * len(own))]] = True
    with written_whole(out, overwrite) as folder:
        return {
            "train": _write(folder / "train", pixels, labels, ~held_out),
            "held_out": _write(folder / "held_out", pixels, labels, held_out),
        }


def _write(folder: Path, pixels: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> int:
    (folder / "pictures").mkdir(parents=True)
    lines = []
    for number in np.flatnonzero(chosen):
        name, digit = f"pictures/{number:04d}.png", int(labels[number])
        Image.fromarray(pixels[number]).save(folder / name)
        word = NAMES[digit]
        wordings = [f"the digit {word}", f"a handwritten {word}", f"a scan of a handwritten {digit}", word]
        lines.append(json.dumps({"file_name": name, "text": wordings, "sources": [word]}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return len(lines)
