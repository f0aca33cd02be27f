"""Files inside tar archives, on this machine or in any store that fsspec reaches, read where they lie.

An archive is read once from header to header; from then on a file in it is one read of its bytes. So the files can
be drawn in any order, as those of a folder are, and a resumed run sees the order that an unbroken one does. (Reading
archives from end to end would need a buffer to shuffle in, whose state no checkpoint could keep.)
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from functools import cache
from pathlib import Path, PosixPath
from types import SimpleNamespace
from typing import Any, BinaryIO

TAR = ".tar"


class PackedFile(PosixPath):
    """``ARCHIVE.tar/NAME``: a path whose file lies in an archive. What it offers is what reading media needs."""

    @property
    def archive(self) -> str:
        """The archive's own path or address."""
        return address(Path(*self.parts[: self._depth()]))

    @property
    def member(self) -> str:
        """The name inside it."""
        return "/".join(self.parts[self._depth() :])

    def _depth(self) -> int:
        return next((i for i, part in enumerate(self.parts, 1) if part.endswith(TAR)), len(self.parts))

    def is_file(self) -> bool:
        """Whether the archive has it."""
        return self.member in members(self.archive)

    def exists(self) -> bool:
        """The same: there are no folders."""
        return self.is_file()

    def open(self, mode: str = "rb") -> BinaryIO:  # type: ignore[override]
        """Its bytes, read at once."""
        return io.BytesIO(self.read_bytes())

    def read_bytes(self) -> bytes:
        """One read of as many bytes."""
        start, size = members(self.archive)[self.member]
        store, path = _store(self.archive)
        data: bytes = store.cat_file(path, start, start + size)
        if len(data) != size:
            raise OSError(f"{self.archive} ends within {self.member}")
        return data

    def stat(self) -> Any:  # type: ignore[override]
        """Its size, and what changes when the archive does in the place of its time."""
        return SimpleNamespace(st_size=members(self.archive)[self.member][1], st_mtime_ns=_version(self.archive))


def as_path(path: str | Path) -> Path:
    """A path as it is, a string as a path."""
    return path if isinstance(path, Path) else Path(path)


def openable(path: Path) -> Path | BinaryIO:
    """What a library that knows only files of the system can open."""
    return path.open("rb") if isinstance(path, PackedFile) else path


def address(path: Path) -> str:
    """A path as it was written: `Path` makes one slash of the two after s3: or https:."""
    return re.sub(r"^([a-z][a-z0-9+.-]+):/(?=[^/])", r"\1://", path.as_posix())


@cache
def members(archive: str) -> dict[str, tuple[int, int]]:
    """Where the files of an archive begin and how long they are, in its order.

    Raises:
        tarfile.ReadError: it is cut short or no tar archive, with the last name that was read.
        OSError: it cannot be read.
    """
    store, path = _store(archive)
    found: dict[str, tuple[int, int]] = {}
    with store.open(path, "rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if member.isfile():
                        found[member.name] = (member.offset_data, member.size)
        except tarfile.ReadError as error:
            raise tarfile.ReadError(f"{error}, after {next(reversed(found), 'nothing')}") from error
        file.seek(0, io.SEEK_END)
        last = max((start + size for start, size in found.values()), default=0)
        if file.tell() < last + 2 * tarfile.BLOCKSIZE:  # two empty blocks are the end mark
            raise tarfile.ReadError(f"the end is missing, after {next(reversed(found), 'nothing')}")
    return found


@cache
def _version(archive: str) -> int:
    store, path = _store(archive)
    stamp = store.info(path).get("mtime") or store.ukey(path)  # of a copy with its times kept the first is the same
    return int(hashlib.sha256(str(stamp).encode()).hexdigest()[:15], 16)


@cache
def _store(archive: str) -> tuple[Any, str]:
    import fsspec

    store, path = fsspec.core.url_to_fs(archive)
    return store, path
