"""One run at a time writes into an output folder."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from latentdiff.errors import InputError


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold the folder until the context or the process ends, however that ends.

    A run that its launcher's death has stopped still saves for a moment; a new one beside it would take the
    files from under its hands. A POSIX record lock: forked data workers do not inherit it.

    Raises:
        InputError: another process holds it.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with (folder / ".lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if not isinstance(error, BlockingIOError | PermissionError):  # a file system without locks
                yield
                return
            raise InputError(
                f"another process is writing into {folder}; wait until it has ended, or name another output."
            ) from error
        yield
