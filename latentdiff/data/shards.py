"""Captioned media in WebDataset shards: ``shards/{000..099}.tar``, ``shards/*.tar``, or an address that fsspec knows.

A sample is the files of a shard that share their name up to its first dot: a sound or picture, and its caption as .txt
(a wording a line) or .json (the keys of metadata.jsonl). Its row is like that of a folder, so order, split, resuming
and sharing among processes and workers are too.
"""

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latentdiff.data.folder import (
    Fault,
    LineError,
    Listing,
    Row,
    caption_column,
    kind_of,
    list_folder,
    read_attributes,
    read_captions,
    read_labels,
    settle_kind,
)
from latentdiff.errors import InputError
from latentdiff.media.packed import TAR, PackedFile, address, members

_WILD = re.compile(r"[*?\[{]")


def list_data(path: str | Path, caption_key: str | None = None, captioned: bool = True) -> Listing:
    """What the captions of a folder or of shards say, as `list_folder`."""
    path = Path(path)
    return (list_shards if path.suffix == TAR else list_folder)(path, caption_key, captioned)


def root_of(path: Path) -> Path:
    """What the names of its files are relative to: a folder itself, or the one that all of the shards are below."""
    if path.suffix != TAR:
        return path
    parents = path.parent.parts
    plain = next((i for i, part in enumerate(parents) if _WILD.search(part)), len(parents))
    return PackedFile(*parents[:plain])


def is_there(path: Path) -> bool:
    """Whether a folder or shards are within reach."""
    try:
        return bool(expand(path)) if path.suffix == TAR else path.exists()
    except InputError:
        return False


def list_shards(path: Path, caption_key: str | None = None, captioned: bool = True) -> Listing:
    """Read the captions of shards, if they are to have any, and collect the faults instead of raising them.

    Raises:
        InputError: there is no such shard, or its store cannot be reached.
    """
    listing = Listing(".json or .txt in shards")
    media: list[Path] = []
    for shard in expand(path):
        try:
            names = list(members(address(shard)))
        except tarfile.ReadError as error:
            listing.faults.append(Fault(shard, None, "truncated or no tar", str(error)))
            continue
        except OSError as error:
            raise InputError(f"the shard {address(shard)} cannot be read: {error}.") from error
        for key, suffixes in _samples(shard, names, listing):
            _add(listing, shard, key, suffixes, caption_key, captioned)
            media += [PackedFile(shard, key + suffix) for suffix in suffixes if kind_of(Path(key + suffix))]
    settle_kind(listing, path, media)
    return listing


def expand(path: Path) -> list[Path]:
    """The shards of a pattern: ranges in braces, each of them required, and the wildcards of a shell.

    Raises:
        InputError: there is none.
    """
    import fsspec

    shards: list[Path] = []
    for name in _ranges(address(path)):
        if not re.search(r"[*?\[]", name):
            shards.append(Path(name))
            continue
        store, pattern = fsspec.core.url_to_fs(name)
        found = [store.unstrip_protocol(one) if "://" in name else one for one in sorted(store.glob(pattern))]
        shards += [Path(one) for one in found]
    missing = next((shard for shard in shards if not _exists(shard)), None)
    if not shards or missing:
        raise InputError(f"there is no shard {address(missing or path)}.")
    return shards


def _exists(shard: Path) -> bool:
    import fsspec

    try:
        store, path = fsspec.core.url_to_fs(address(shard))
    except (ImportError, ValueError) as error:  # a protocol whose package is not installed, or none at all
        raise InputError(f"{address(shard)} cannot be reached: {error}.") from error
    return bool(store.isfile(path))


def _ranges(name: str) -> Iterator[str]:
    """``{000..099}`` as its numbers, with as many digits."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", name)
    if not found:
        yield name
        return
    first, last = found[1], found[2]
    for number in range(int(first), int(last) + 1):
        yield from _ranges(f"{name[: found.start()]}{number:0{len(first)}d}{name[found.end() :]}")


def _samples(shard: Path, names: list[str], listing: Listing) -> Iterator[tuple[str, list[str]]]:
    """Keys with their suffixes; files of a sample that are not together are a fault, as a tar in no order has them."""
    samples: dict[str, list[str]] = {}
    last = None
    for name in names:
        folder, _, base = name.rpartition("/")
        key, dot, suffix = base.partition(".")
        if not key:  # .DS_Store
            continue
        key = f"{folder}/{key}" if folder else key
        if key in samples and key != last:
            detail = f"the files of {key} are not one after the other: make the shard again, in order of names"
            listing.faults.append(Fault(shard, None, "unsorted shard", detail))
        last = key
        samples.setdefault(key, []).append(dot + suffix)
    yield from samples.items()


def _add(
    listing: Listing, shard: Path, key: str, suffixes: list[str], caption_key: str | None, captioned: bool
) -> None:
    """A sample's row, or why there is none."""
    media = [suffix for suffix in suffixes if kind_of(Path(key + suffix))]
    place = PackedFile(shard, key + (media[0] if media else ""))
    try:
        if len(media) != 1:
            raise LineError("no media file" if not media else "several media files", f"{key}: {', '.join(suffixes)}")
        if not captioned:
            listing.rows.append(Row(place, ("",)))
            return
        record = _record(shard, key, suffixes)
        captions = read_captions(record[caption_column(["file_name", *record], caption_key)])
        listing.rows.append(Row(place, captions, read_labels(record), read_attributes(record)))
    except LineError as error:
        listing.faults.append(Fault(place, None, error.reason, error.detail))


def _record(shard: Path, key: str, suffixes: list[str]) -> dict[str, Any]:
    """What is said about a sample."""
    for suffix in (".json", ".txt"):
        if suffix not in suffixes:
            continue
        try:
            text = PackedFile(shard, key + suffix).read_bytes().decode("utf-8-sig")
            if suffix == ".txt":
                return {"text": [line for line in text.splitlines() if line.strip()] or ""}
            record = json.loads(text)
        except ValueError as error:
            raise LineError(f"not UTF-8 text or JSON in {suffix}", str(error)) from None
        if not isinstance(record, dict):
            raise LineError("not a JSON object", f"{key}.json")
        return record
    raise LineError("no caption", f"there is no .json or .txt of {key}")
