"""The benchmarks of scale, at a small size: a sharded U-Net of which each rank holds its part, and cached items."""

import re
import sys
from pathlib import Path

import pytest

from latentdiff.config import TwoStreamUNetConfig


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def test_each_of_many_ranks_holds_its_part() -> None:
    import fake_sharding

    unet = TwoStreamUNetConfig(
        kind="two_stream", block_out_channels=(32, 64), layers_per_block=1, attention=(False, True), norm_num_groups=32
    )
    found = fake_sharding.measure(8, 1, unet)
    assert found["parameters"] > 1e6
    assert found["weights"] == pytest.approx(4 * found["parameters"] / 8, rel=0.05)
    assert found["resting"] == pytest.approx(3 * found["weights"], rel=0.05)
    assert found["peak"] > found["resting"]


def test_a_larger_data_set_is_read_with_the_same_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Anonymous memory only: timings are the benchmark's matter."""
    import scale

    monkeypatch.setattr(sys, "argv", ["scale.py", "--items", "1000", "20000", "--batches", "50"])
    scale.main()
    small, large = (float(found) for found in re.findall(r"memory \+(-?[\d.]+) MB", capsys.readouterr().out))
    assert large < small + 5
