"""A folder of media that appears only when it is complete."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from latentdiff.errors import InputError


@contextlib.contextmanager
def written_whole(out: Path, overwrite: bool) -> Iterator[Path]:
    """A folder beside ``out`` to write into, which takes its place at the end; after an error it is gone.

    Raises:
        InputError: if ``out`` is a file, or a folder that is not empty and may not be replaced.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; name a folder.")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise InputError(f"{out} is not empty; choose another folder or pass --overwrite.")
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    staging.chmod(0o755)
    try:
        yield staging
        if out.is_dir():
            shutil.rmtree(out)
        staging.rename(out)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
