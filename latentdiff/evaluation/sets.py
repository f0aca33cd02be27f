"""Sets of media that are compared: which files, with which words, how they are read, and whether they are fit."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from latentdiff.config import Framing
from latentdiff.data.folder import METADATA_FILES, Row, kind_of, read_folder
from latentdiff.data.items import split_rows
from latentdiff.data.scan import CLIPPED_SHARE, SILENT_PEAK
from latentdiff.errors import InputError
from latentdiff.evaluation.evidence import Truth
from latentdiff.media.audio import inspect_audio, read_audio, read_recipe
from latentdiff.media.image import inspect_image, read_image, read_png_recipe

CAPTION_RULE = "the first wording of each file"


@dataclass(frozen=True)
class MediaSet:
    """Files of one kind.

    Args:
        name: what they are called in sentences.
        kind: "audio" or "image".
        rows: the files; of the captions the first one is taken.
        seconds: of a sound only the beginning, this long, is used; None takes all of it.
        framing: how pictures are brought to one size; None leaves them as they are.
    """

    name: str
    kind: str
    rows: tuple[Row, ...]
    seconds: float | None = None
    framing: Framing | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def captions(self) -> list[str]:
        """One of each file; empty where it has none."""
        return [row.captions[0] if row.captions else "" for row in self.rows]

    @property
    def truths(self) -> tuple[Truth, ...]:
        """What the metadata says of each file."""
        return tuple(
            {**({"sources": frozenset(row.labels)} if row.labels else {}), **_single(row.attributes)}
            for row in self.rows
        )

    def read(self, numbers: Iterable[int], sampling_rate: int | None) -> Iterator[np.ndarray]:
        """Waveforms (S,) at a rate, or pixels (H, W, 3) uint8."""
        for number in numbers:
            path = self.rows[number].path
            if self.kind == "audio":
                yield read_audio(path, sampling_rate, duration_s=self.seconds)[0]
            else:
                yield read_image(path, self.framing or own_framing(path))

    def test_list(self) -> str:
        """Hash of the files' contents and captions, in order: two evaluations of one hash were asked the same."""
        digest = hashlib.sha256()
        for row, caption in zip(self.rows, self.captions, strict=True):
            digest.update(f"{content_hash(row.path)}\n{caption}\n".encode())
        return digest.hexdigest()


def own_framing(path: Path) -> Framing:
    """The framing that leaves a picture as it is."""
    facts = inspect_image(path)
    return Framing(size=(facts.height, facts.width))


def _single(attributes: Iterable[tuple[str, str]]) -> Truth:
    return {attribute: frozenset({name}) for attribute, name in attributes}


def content_hash(path: Path) -> str:
    """SHA-256 of a file."""
    facts = path.stat()
    return _content_hash(path, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=100_000)
def _content_hash(path: Path, _size: int, _modified: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def real_sets(data: Path, reference: Path | None, count: int | None) -> tuple[MediaSet, MediaSet]:
    """The real media that are asked for again, and other real ones to compare with.

    Args:
        data: captioned media.
        reference: more of them; without it ``data`` is halved by a hash of the file names.
        count: how many are asked for, the first by that hash; None takes all.

    Raises:
        InputError: for an unusable folder, another kind of media, or too few.
    """
    rows = _captioned(data)
    kind = kind_of(rows[0].path) or ""
    if reference is None:
        if len(rows) < 4:
            raise InputError(
                f"{data} holds {len(rows)} captioned file(s); at least 4 are needed, two to ask for and two others to "
                "compare with, and many more for a figure that means something."
            )
        others, asked = split_rows(rows, 0.5)
    else:
        others, asked = _captioned(reference), rows
        if kind_of(others[0].path) != kind:
            raise InputError(f"{data} and {reference} hold different kinds of media; --reference takes the same kind.")
        if twice := {content_hash(row.path) for row in others} & {content_hash(row.path) for row in asked}:
            raise InputError(
                f"{len(twice)} file(s) of {data} are in {reference} too, so a floor between them would mean nothing; "
                "give folders without a file in common."
            )
    if count is not None:
        if count > len(asked):
            raise InputError(f"--count is {count} and there are {len(asked)} captioned files to ask for in {data}.")
        asked = split_rows(asked, count / len(asked))[1] if count < len(asked) else asked
    for name, some in (("--data", asked), ("--reference", others)):
        if len(some) < 2:
            raise InputError(f"one sample is no distribution: {name} gives {len(some)} file(s); give at least 2.")
    return MediaSet("the real media", kind, tuple(asked)), MediaSet("the reference media", kind, tuple(others))


def _captioned(folder: Path) -> list[Row]:
    rows = read_folder(folder)
    if not rows:
        raise InputError(f"{folder} holds no captioned media.")
    return rows


def made_set(folder: Path, kind: str, real: MediaSet, reference: MediaSet) -> tuple[MediaSet, list[int] | None]:
    """Media that somebody has made already, and which real item each answers.

    They pair by file name without its suffix, or else by the prompt in the recipe that a file carries; those that
    answer a reference item are left out.

    Returns:
        The set, and for each of its media the number of the real one; None where nothing pairs.

    Raises:
        InputError: if there are fewer than two, of another kind, or only some of them pair.
    """
    listed = any((folder / name).is_file() for name in METADATA_FILES)
    rows = read_folder(folder) if listed else [Row(path, ()) for path in _media_of(folder, kind)]
    if len(rows) < 2:
        raise InputError(f"{folder} holds {len(rows)} file(s) of the kind '{kind}'; an evaluation takes at least 2.")
    by_name = {row.path.stem: ("real", i) for i, row in enumerate(real.rows)}
    elsewhere = {row.path.stem: ("reference", i) for i, row in enumerate(reference.rows)}
    answers = [{**elsewhere, **by_name}.get(row.path.stem) for row in rows]
    if not any(answers):
        spoken = {text: ("reference", i) for i, row in enumerate(reference.rows) for text in row.captions}
        spoken |= {text: ("real", i) for i, row in enumerate(real.rows) for text in row.captions}
        answers = [spoken.get(_prompt(row)) for row in rows]
    if not any(answers):
        said = [Row(row.path, row.captions or ((_prompt(row),) if _prompt(row) else ())) for row in rows]
        return MediaSet("the generated media", kind, tuple(said)), None
    if not all(answers):
        missing = rows[answers.index(None)].path.name
        raise InputError(
            f"{answers.count(None)} of {len(rows)} files in {folder} pair with no real one by name or prompt, the "
            f"first is {missing}; take them out, or rename them all so that none pairs."
        )
    kept = [(row, answer[1]) for row, answer in zip(rows, answers, strict=True) if answer and answer[0] == "real"]
    if len(kept) < 2:
        raise InputError(
            f"{len(kept)} file(s) of {folder} answer the half of the data that is asked for; give --reference too."
        )
    pairs = [number for _, number in kept]
    return MediaSet("the generated media", kind, answering([row.path for row, _ in kept], real, pairs)), pairs


def answering(files: list[Path], real: MediaSet, pairs: list[int]) -> tuple[Row, ...]:
    """Files as rows that carry the caption and the truth of the real one each answers."""
    asked = [real.rows[number] for number in pairs]
    return tuple(
        Row(path, row.captions[:1], row.labels, row.attributes) for path, row in zip(files, asked, strict=True)
    )


def _media_of(folder: Path, kind: str) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; name a model, or a folder of media.")
    return sorted(path for path in folder.rglob("*") if kind_of(path) == kind and not path.name.startswith("."))


def _prompt(row: Row) -> str:
    if row.captions:
        return row.captions[0]
    if kind_of(row.path) == "audio":
        recipe = read_recipe(row.path)
    else:
        recipe = read_png_recipe(row.path) if row.path.suffix.lower() == ".png" else None
    prompt = (recipe or {}).get("prompt")
    return prompt if isinstance(prompt, str) else ""


def inspect(media: MediaSet, strict: bool) -> dict[str, Any]:
    """What the files of a set are, after every sample or pixel of them was looked at.

    Args:
        media: the set.
        strict: refuse silent, clipped and blank files.

    Raises:
        InputError: for a broken file, sampling rates that differ, nothing but silence, or as ``strict`` says.
    """
    with ThreadPoolExecutor() as pool:
        look = _look_at_sound if media.kind == "audio" else _look_at_picture
        found = pool.map(look, (row.path for row in media.rows))
        looks = list(tqdm(found, f"checking {media.name}", len(media), unit="file", disable=None))
    formats = Counter(one["format"] for one in looks)
    if media.kind == "audio" and len(formats) > 1:
        (most, _), (other, some) = formats.most_common()[0], formats.most_common()[-1]
        file = next(row.path for row, one in zip(media.rows, looks, strict=True) if one["format"] == other)
        raise InputError(
            f"{media.name} mix sampling rates: most have {most}, {some} have {other}, such as {file}; resampling "
            "alone moves a Frechet distance, so bring them to one rate first."
        )
    faults = {fault: [row.path for row, one in zip(media.rows, looks, strict=True) if one["fault"] == fault]
              for fault in ("silent", "clipped", "blank")}  # fmt: skip
    for fault in ("silent", "blank"):
        if len(faults[fault]) == len(media):
            raise InputError(
                f"all {len(media)} files of {media.name} are {fault}; no figure of them would mean anything."
            )
    for fault, files in faults.items():
        if files and strict:
            raise InputError(
                f"{len(files)} of {len(media)} files of {media.name} are {fault}, the first is {files[0]}; mend or "
                "take them out, or pass --keep-faulty to count them in."
            )
    facts: dict[str, Any] = {"files": len(media), "formats": dict(formats.most_common(8))}
    facts |= {fault: len(files) for fault, files in faults.items() if files}
    if media.kind == "audio":
        seconds = [min(one["seconds"], media.seconds or one["seconds"]) for one in looks]
        facts["seconds"] = [round(min(seconds), 3), round(max(seconds), 3)]
    return facts


def _look_at_sound(path: Path) -> dict[str, Any]:
    facts = inspect_audio(path)
    fault = "silent" if facts.peak < SILENT_PEAK else "clipped" if facts.clipped > CLIPPED_SHARE else ""
    return {"format": f"{facts.sampling_rate} Hz", "seconds": facts.seconds, "fault": fault}


def _look_at_picture(path: Path) -> dict[str, Any]:
    framing = own_framing(path)
    pixels = read_image(path, framing)
    fault = "blank" if pixels.min() == pixels.max() else ""
    return {"format": f"{framing.size[1]} x {framing.size[0]}", "fault": fault}
