"""Handwritten digits: every scan once, grey for grey, in two ordinary folders."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from latentdiff.cli import main
from latentdiff.data.digits import write_digits
from latentdiff.data.scan import scan_folder
from latentdiff.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("digits") / "out"
    assert write_digits(out, seed=0) == {"train": 1438, "held_out": 359}
    return out


def test_both_folders_are_ordinary_ones(folder: Path) -> None:
    for split in ("train", "held_out"):
        report = scan_folder(folder / split)
        assert not report.faults and report.sizes == {"8 x 8": len(report.rows)} and set(report.modes) == {"L"}


def test_the_scans_are_all_there_with_what_they_show(folder: Path) -> None:
    scans, labels = load_digits(return_X_y=True)
    rows = {int(row.path.stem): row for split in ("train", "held_out") for row in scan_folder(folder / split).rows}
    assert sorted(rows) == list(range(1797))
    for number in (0, 3, 1796):
        greys = np.asarray(Image.open(rows[number].path)).astype(float) * 16 / 255
        assert np.array_equal(np.rint(greys), scans[number].reshape(8, 8)) and abs(greys - np.rint(greys)).max() < 0.04
    assert labels[3] == 3 and rows[3].captions[0] == "the digit three" and rows[3].labels == ("three",)


def test_the_split_is_the_seeds_and_even(folder: Path, tmp_path: Path) -> None:
    write_digits(tmp_path / "again", seed=0)
    write_digits(tmp_path / "other", seed=1)
    first, again, other = (
        {path.name for path in (out / "held_out/pictures").iterdir()}
        for out in (folder, tmp_path / "again", tmp_path / "other")
    )
    assert first == again != other
    labels = load_digits().target
    counts = np.bincount(labels[[int(name[:4]) for name in first]])
    assert np.abs(counts / np.bincount(labels) - 0.2).max() < 0.005


def test_bad_arguments(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "digits", str(folder)]) == 2
    assert "is not empty; choose another folder or pass --overwrite" in capsys.readouterr().err
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is a file; name a folder"):
        write_digits(tmp_path / "file", 0)
    assert main(["data", "digits", str(tmp_path / "d"), "--seed", "-1"]) == 2
    assert main(["data", "digits", str(tmp_path / "d")]) == 0
    assert f"{tmp_path}/d/held_out  359 pictures of 8 x 8" in capsys.readouterr().out
