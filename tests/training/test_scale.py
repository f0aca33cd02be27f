"""The benchmarks of scale, at a small size: a sharded U-Net of which each rank holds its part, and cached items."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(900)
ROOT = Path(__file__).parents[2]


def run(name: str, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_each_of_many_ranks_holds_its_part() -> None:
    said = run("fake_sharding", "--processes", "8", "--batch", "1", "--widths", "32", "--layers", "1")
    found = re.search(r"([\d.]+) M parameters; a rank holds ([\d.]+) MB of weights, ([\d.]+) MB with AdamW", said)
    assert found, said
    parameters, weights, resting = map(float, found.groups())
    assert abs(weights - 4 * parameters / 8) < 0.1 and abs(resting - 3 * weights) < 0.1


def test_a_larger_data_set_is_read_with_the_same_memory() -> None:
    """Anonymous memory only: timings are the benchmark's matter."""
    said = run("scale", "--items", "1000", "20000", "--batches", "50")
    small, large = (float(found) for found in re.findall(r"memory \+([\d.]+) MB", said))
    assert large < small + 5
