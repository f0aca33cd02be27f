"""The benchmark that kills a training at random moments, with a few of them."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.timeout(900)
def test_killed_and_resumed_is_as_never_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import kill_training

    monkeypatch.setattr(sys, "argv", ["kill_training.py", "--kills", "4"])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert kill_training.main() == 0
    said = capsys.readouterr().out
    assert "4 kills" in said and "the last weights are those of an unbroken run" in said
