"""Results appear whole: written beside their place, then put there by a rename."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def put_in_place(target: Path) -> Iterator[Path]:
    """A folder to write into that becomes ``target`` when the context ends without an error."""
    with _beside(target) as staging:
        yield staging
        _replace(staging, target)


@contextlib.contextmanager
def put_in_place_each(folder: Path) -> Iterator[Path]:
    """A folder to write into, whose parts go into ``folder`` when the context ends without an error."""
    with _beside(folder / "parts") as staging:
        yield staging
        for part in staging.iterdir():
            _replace(part, folder / part.name)


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[Path]:
    staging = target.with_name(f".staging-{target.name}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _replace(source: Path, target: Path) -> None:
    if target.is_dir():  # only an empty folder could be replaced by a rename
        shutil.rmtree(target)
    os.replace(source, target)
