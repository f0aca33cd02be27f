"""Read a folder of captioned media: the `audiofolder` and `imagefolder` convention, or .txt files beside the media.

    metadata.csv            metadata.jsonl
    file_name,text          {"file_name": "1.wav", "text": "a dog barks"}
    1.wav,a dog barks       {"file_name": "2.wav", "text": ["rain", "it rains"], "sources": ["rain"]}

Nothing wrong is passed over: `list_folder` collects every fault with its line, `read_folder` raises one.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

from latentdiff.errors import InputError
from latentdiff.media import audio, image

METADATA_FILES = ("metadata.jsonl", "metadata.csv")
CAPTION_KEYS = ("text", "caption")
SUFFIXES = {
    "audio": audio.READABLE_SUFFIXES | audio.UNREADABLE_SUFFIXES,
    "image": image.READABLE_SUFFIXES | image.UNREADABLE_SUFFIXES,
}
"""Of the files of each kind; a folder holds one kind."""
_NOT_A_CAPTION = frozenset({"nan", "none", "null", "<na>", "n/a"})  # what spreadsheets and pandas leave behind


@dataclass(frozen=True)
class Row:
    """One media file with its wordings and, where the metadata has them, the names of what it holds.

    Args:
        path: The file.
        captions: Its wordings.
        labels: Names of its sources.
        attributes: Further names under names, such as ("gender", "woman").
    """

    path: Path
    captions: tuple[str, ...]
    labels: tuple[str, ...] = ()
    attributes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Fault:
    """What is wrong with (or worth knowing about) a file or a line of a metadata file.

    Args:
        path: The media file, the metadata file or the .txt file.
        row: Line of the metadata file that is meant, or that names the media file; its first line is 1.
        reason: A short fixed phrase, the same for all faults of a kind.
        detail: What was found in this one.
    """

    path: Path
    row: int | None
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        """Return one line: file, row, reason, detail."""
        where = f"{self.path}, row {self.row}" if self.row is not None else f"{self.path}"
        return f"{where}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


@dataclass
class Listing:
    """What a folder's captions say before any media file is opened."""

    captions_from: str
    kind: str = "audio"
    rows: list[Row] = field(default_factory=list)
    lines: dict[Path, int] = field(default_factory=dict)  # media file -> line of the metadata file that names it
    faults: list[Fault] = field(default_factory=list)
    unlisted: list[Fault] = field(default_factory=list)  # media files that the metadata does not name


class LineError(Exception):
    """A line of a metadata file that cannot be used: (reason, detail)."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


_Records = Iterator[tuple[int, dict[str, object] | LineError]]


def read_folder(folder: str | Path, caption_key: str | None = None) -> list[Row]:
    """Return the captioned media files of a folder, in the order of the metadata or else by name.

    A media file that several lines name is one row with all their wordings. Files that metadata does not name
    are no fault here, since a list may choose among files; without metadata every media file needs its .txt.

    Args:
        folder: Folder with metadata.jsonl or metadata.csv, or with a .txt file beside each media file (where
            each line is a wording).
        caption_key: Metadata column with the caption; None takes "text", else "caption".

    Raises:
        InputError: The folder has no captions, or the first fault found, with file and row.
    """
    listing = list_folder(folder, caption_key)
    if listing.faults:
        more = len(listing.faults) - 1
        rest = f" Further faults: {more}; `latentdiff data scan {folder}` lists them." if more else ""
        raise InputError(f"{listing.faults[0]}.{rest}")
    return listing.rows


def list_folder(folder: str | Path, caption_key: str | None = None, captioned: bool = True) -> Listing:
    """Read a folder's captions and collect the faults instead of raising them.

    Args:
        folder: As `read_folder` takes it.
        caption_key: Likewise.
        captioned: Each file needs a caption. Without, the rows are all media files of the folder, whatever metadata
            and .txt files say.

    Raises:
        InputError: There is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file: give the folder that holds it" if folder.exists() else "does not exist"
        raise InputError(f"The data folder {folder} {what}.")
    media = list(_media_files(folder))
    found = [folder / name for name in METADATA_FILES if (folder / name).is_file()]
    if not captioned:
        listing = Listing("nothing: none is needed", rows=[Row(path, ("",)) for path in media])
        settle_kind(listing, folder, media)
        return listing
    if len(found) == 2:
        fault = Fault(folder, None, "two metadata files", f"{' and '.join(METADATA_FILES)}: keep one")
        return Listing("nothing", faults=[fault])
    if found:
        return _list_metadata(found[0], media, caption_key)
    return _list_sidecars(folder, media, caption_key)


def kind_of(path: Path) -> str | None:
    """Return "audio" or "image" by a file's suffix, or None for another one."""
    return next((kind for kind, suffixes in SUFFIXES.items() if path.suffix.lower() in suffixes), None)


def settle_kind(listing: Listing, folder: Path, captioned: Iterable[Path]) -> None:
    """Say what kind of media the captioned files are; those of another kind may lie beside them, without captions."""
    counts = Counter(kind for path in captioned if (kind := kind_of(path)))
    if len(counts) > 1:
        detail = f"{counts['audio']} sounds and {counts['image']} pictures have captions: keep one kind"
        listing.faults.append(Fault(folder, None, "two kinds of media", detail))
        listing.rows.clear()
    elif counts:
        (listing.kind,) = counts


def _media_files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders.sort()
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        for name in sorted(names):
            if not name.startswith(".") and kind_of(Path(name)):
                yield Path(parent, name)


def _list_metadata(metadata: Path, media: list[Path], caption_key: str | None) -> Listing:
    listing = Listing(captions_from=metadata.name)
    records: list[tuple[int, dict[str, object]]] = []
    columns: dict[str, None] = {}  # a set that keeps the order of the file
    try:
        for line, record in _read_jsonl(metadata) if metadata.suffix == ".jsonl" else _read_csv(metadata):
            if isinstance(record, LineError):
                listing.faults.append(Fault(metadata, line, record.reason, record.detail))
            else:
                records.append((line, record))
                columns.update(dict.fromkeys(record))
        if not records and listing.faults:
            return listing
        if not records:
            raise LineError("no rows", "the metadata file names no media file")
        key = caption_column(columns, caption_key)
    except LineError as error:
        listing.faults.append(Fault(metadata, None, error.reason, error.detail))
        return listing
    listing.captions_from = f'{metadata.name}, column "{key}"'
    _collect_rows(listing, metadata, records, key)
    settle_kind(listing, metadata, listing.lines)
    # A line with a fault may have named its file: such a file is not reported a second time.
    unlisted = (path for path in media if path not in listing.lines and kind_of(path) == listing.kind)
    listing.unlisted = [Fault(path, None, "no caption", f"{metadata.name} omits it") for path in unlisted]
    listing.faults.sort(key=lambda fault: fault.row or 0)
    return listing


def _collect_rows(listing: Listing, metadata: Path, records: Iterable[tuple[int, dict[str, object]]], key: str) -> None:
    """Turn records into rows, one a file; the wordings of several lines for one file are put together."""
    rows: dict[Path, Row] = {}
    said_at: dict[tuple[Path, str], int] = {}
    for line, record in records:
        try:
            path = _media_path(metadata.parent, record.get("file_name"))
            listing.lines.setdefault(path, line)
            captions = read_captions(record.get(key))
            new = tuple(dict.fromkeys(text for text in captions if (path, text) not in said_at))
            if not new:
                first = said_at[path, captions[0]]
                raise LineError("duplicate row", f"says the same of {path.name} as row {first}")
            said_at.update({(path, text): line for text in new})
            old = rows.get(path, Row(path, ()))
            labels = tuple(dict.fromkeys(old.labels + read_labels(record)))
            rows[path] = Row(path, old.captions + new, labels, old.attributes or read_attributes(record))
        except LineError as error:
            listing.faults.append(Fault(metadata, line, error.reason, error.detail))
    listing.rows = list(rows.values())


def _read_jsonl(metadata: Path) -> _Records:
    lines = _text(metadata).split("\n")  # not splitlines: JSON may hold U+2028
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            yield number, LineError("not JSON", f"{error.msg} at column {error.colno}")
            continue
        except (ValueError, RecursionError) as error:  # a number or a nesting without end
            yield number, LineError("not JSON", str(error))
            continue
        if isinstance(record, dict):
            yield number, record
        else:
            yield number, LineError("not a JSON object", f"{_kind(record)}: write one {{...}} a line")


def _read_csv(metadata: Path) -> _Records:
    # strict: without it a quote that is never closed swallows the rest of the file as one caption
    reader = csv.reader(io.StringIO(_text(metadata)), strict=True)
    header: list[str] = []
    line = 1
    try:
        for cells in reader:
            start, line = line, reader.line_num + 1
            if not header:
                header = [cell.strip() for cell in cells]
                if twice := {name for name in header if name and header.count(name) > 1}:
                    raise LineError("duplicate column", ", ".join(sorted(twice)))
            elif cells and len(cells) != len(header):
                detail = f"{len(cells)} cells for {len(header)} columns: quote a caption with a comma in it"
                yield start, LineError("wrong number of cells", detail)
            elif cells:
                yield start, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        yield line, LineError("not CSV", f"{error}; the rest of the file was not read")


def _text(metadata: Path) -> str:
    try:
        return metadata.read_text(encoding="utf-8-sig")  # with or without the mark that Excel puts first
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise LineError("not UTF-8", f"line {line}: save the file as UTF-8") from None
    except OSError as error:
        raise LineError("unreadable", error.strerror or str(error)) from None


def caption_column(columns: Iterable[str], caption_key: str | None) -> str:
    """Return the caption column, or say which columns there are and which one may be meant."""
    names = list(columns)
    found = f"columns found: {', '.join(names)}"
    if "file_name" not in names:
        raise LineError("no column file_name", found + _nearest(("file_name",), names))
    wanted = (caption_key,) if caption_key else CAPTION_KEYS
    for key in wanted:
        if key in names:
            return key
    hint = _nearest(wanted, [name for name in names if name != "file_name"])
    reason = "no caption column " + " or ".join(f'"{key}"' for key in wanted)
    raise LineError(reason, f"{found}{hint}; rename the right one, or set it as the caption key")


def _nearest(wanted: tuple[str, ...], names: list[str]) -> str:
    by_lower = {name.lower(): name for name in names}
    close = [match for word in wanted for match in difflib.get_close_matches(word.lower(), by_lower, 1, 0.5)]
    if not close:
        return ""
    likeness = {name: max(difflib.SequenceMatcher(None, word, name).ratio() for word in wanted) for name in close}
    best = max(close, key=likeness.__getitem__)
    return f'; did you mean "{by_lower[best]}"?'


def _media_path(folder: Path, name: object) -> Path:
    """Return the file that a line names, which lies inside the folder and exists."""
    if not isinstance(name, str) or not name.strip():
        raise LineError("no file_name", "" if name is None else _kind(name))
    name = name.strip()
    # The rule of the datasets library (CWE-22): metadata from elsewhere must not reach outside its folder.
    if "://" in name:
        raise LineError("file_name is an address", f"{name}: download the file and name it relative to {folder}")
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor:
        raise LineError("file_name is absolute", f"{name}: write it relative to {folder}")
    if ".." in PureWindowsPath(name).parts:  # its parts split at / and at \
        raise LineError('file_name holds ".."', f"{name}: the file must lie inside {folder}")
    path = folder / name
    if not os.path.isfile(path):  # Path.is_file raises for a name too long for the file system
        elsewhere = f"{Path(name).name} is in {folder}: " if os.path.isfile(folder / Path(name).name) else ""
        raise LineError("missing file", f"{name}; {elsewhere}names are relative to {folder}")
    return path


def read_captions(value: object) -> tuple[str, ...]:
    """Return the wordings of a caption cell: a text, or in JSON a list of texts; none may be empty."""
    texts = value if isinstance(value, list) else [value]
    if not texts:
        raise LineError("empty caption", "an empty list")
    return tuple(dict.fromkeys(_caption(text) for text in texts))


def _caption(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise LineError("empty caption", "none given" if value is None else "NaN")
    if not isinstance(value, str):
        raise LineError("caption is not text", _kind(value))
    text = " ".join(value.split())
    if not text or text.lower() in _NOT_A_CAPTION:
        raise LineError("empty caption", f'"{text}"')
    return text


def read_labels(record: dict[str, object]) -> tuple[str, ...]:
    """Return the names in "sources", else in "labels"; these columns are optional, so any shape may come."""
    value = record.get("sources") or record.get("labels") or ()
    names = value if isinstance(value, list) else [value]
    return tuple(str(name) for name in names if isinstance(name, str | int) and str(name).strip())


def read_attributes(record: dict[str, object]) -> tuple[tuple[str, str], ...]:
    """Return what "attributes" holds, an object of texts; optional too."""
    value = record.get("attributes")
    return (
        tuple((name, text) for name, text in value.items() if isinstance(text, str)) if isinstance(value, dict) else ()
    )


def _kind(value: object) -> str:
    words = {
        dict: "an object",
        list: "a list",
        str: "an empty text",
        bool: "true or false",
        type(None): "null",
    }
    return words.get(type(value), f"the number {value}")


def _list_sidecars(folder: Path, media: list[Path], caption_key: str | None) -> Listing:
    """Take the captions from a .txt file of the same stem beside each media file, one wording a line."""
    sidecars = {path: path.with_suffix(".txt") for path in media}
    if caption_key or not any(sidecar.is_file() for sidecar in sidecars.values()):
        return Listing("nothing", faults=[_no_captions(folder, media, caption_key)])
    listing = Listing(captions_from=".txt files")
    settle_kind(listing, folder, (path for path, sidecar in sidecars.items() if sidecar.is_file()))
    if listing.faults:
        return listing
    for path, sidecar in sidecars.items():
        if kind_of(path) != listing.kind:
            continue
        if not sidecar.is_file():
            listing.faults.append(Fault(path, None, "no caption", f"there is no {sidecar.name} beside it"))
            continue
        try:
            lines = [line for line in _text(sidecar).splitlines() if line.strip()]
            listing.rows.append(Row(path, read_captions(lines or "")))
        except LineError as error:
            listing.faults.append(Fault(sidecar, None, error.reason, error.detail))
    return listing


def _no_captions(folder: Path, media: list[Path], caption_key: str | None) -> Fault:
    files = f"{len(media)} media files" if media else "no media files"
    wanted = " or ".join(METADATA_FILES) + ("" if caption_key else ", or a .txt file beside each media file")
    detail = f"{files} and no {wanted}"
    below = sorted(path for name in METADATA_FILES for path in folder.glob(f"*/{name}"))
    if below:
        detail += f"; there is {below[0]}: give that folder"
    elif (folder / "metadata.parquet").exists():
        detail += "; metadata.parquet is not read: save it as metadata.csv"
    return Fault(folder, None, "no captions", detail)
