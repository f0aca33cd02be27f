"""What files of every medium share: how a broken one is named, and writing that is whole or nothing."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Self

from latentdiff.errors import InputError


class BrokenMediaError(InputError):
    """A media file that cannot be used: `reason` is one of a few fixed phrases, `detail` what was seen."""

    reason = ""
    detail = ""

    @classmethod
    def of(cls, path: Path, what: str, reason: str, detail: str = "") -> Self:
        """The error of one file; ``what`` it is meant to be stands in the sentence."""
        # The message is the one constructor argument, so that the error survives the way out of a loader process.
        error = cls(f"Cannot use the {what} {path}: {reason}{f' ({detail})' if detail else ''}.")
        error.reason, error.detail = reason, detail
        return error


def write_whole(path: Path, data: bytes) -> None:
    """Write under a temporary name in the same folder, then move: never half a file under `path`."""
    temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror or error}.") from None
    finally:
        with suppress(OSError):  # there is none after the move, or no folder to hold it
            temporary.unlink()
