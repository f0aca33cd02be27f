"""Writing that is whole or nothing, and errors that survive the way out of another process."""

import pickle
from pathlib import Path

import pytest

from latentdiff.errors import InputError
from latentdiff.media.files import write_whole
from latentdiff.media.image import BrokenImageError


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "a", b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("latentdiff.media.files.os.fsync", full)
    with pytest.raises(InputError, match="No space left"):
        write_whole(tmp_path / "a", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_an_error_keeps_its_reason_when_pickled() -> None:
    error = BrokenImageError.of(Path("a.png"), "picture", "too large", "9 pixels")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.reason, again.detail) == (str(error), "too large", "9 pixels")
