"""The swiss roll: points as pictures of two pixels, and back."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import make_swiss_roll

from latentdiff.cli import main
from latentdiff.data.scan import scan_folder
from latentdiff.data.swiss_roll import NOISE, to_greys, to_points, write_swiss_roll


def test_both_folders_are_ordinary_ones_of_different_points(tmp_path: Path) -> None:
    assert write_swiss_roll(tmp_path / "roll", 50, seed=0) == {"train": 40, "held_out": 10}
    for split, count in (("train", 40), ("held_out", 10)):
        report = scan_folder(tmp_path / "roll" / split)
        assert not report.faults and report.sizes == {"2 x 1": count}


def test_greys_are_the_points_but_for_a_fraction_of_their_noise(tmp_path: Path) -> None:
    points = make_swiss_roll(2000, noise=NOISE, random_state=3)[0][:, [0, 2]]
    greys = to_greys(points)
    assert np.abs(to_points(greys) - points).max() < 0.15 * NOISE  # nothing is clipped
    write_swiss_roll(tmp_path / "roll", 2000, seed=3)
    first = np.asarray(Image.open(tmp_path / "roll/held_out/points/000000.png"))
    assert first.tolist() == [greys[0].tolist()]


@pytest.mark.parametrize(("option", "said"), [("--points=9", "--points is 9"), ("--seed=-1", "--seed is -1")])
def test_bad_arguments(option: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "swissroll", str(tmp_path / "out"), option]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()
