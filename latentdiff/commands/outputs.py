"""Where generated clips go: every name is chosen and every objection raised before any work is done."""

import os
import re
import tempfile
import unicodedata
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from latentdiff.errors import InputError

SUFFIXES = (".wav", ".flac", ".ogg")
"""What `latentdiff.media.audio.write_audio` writes."""


def plan_outputs(
    output: str | None, prompts: list[str], clips_per_prompt: int, overwrite: bool, plot: bool
) -> list[Path]:
    """Choose a file for every clip: all clips of the first prompt, then of the second, ...

    Args:
        output: A file (name.wav; several clips become name-1.wav, name-2.wav, ...), a folder, or None for the
            current one. In a folder the names come from the prompts, and are fresh unless ``overwrite``.
        prompts: What will be heard.
        clips_per_prompt: Clips of each prompt.
        overwrite: Existing files may be replaced.
        plot: A PNG of the same stem is written beside each file.

    Raises:
        InputError: for a suffix that cannot be written, an existing file, or an unwritable folder.
    """
    output = output or "."
    path = Path(output)
    if path.is_dir() or output.endswith(("/", os.sep)) or not path.suffix:
        folder = path
        files = _named_after_prompts(folder, prompts, clips_per_prompt, overwrite, plot)
    else:
        folder = path.parent
        files = _numbered(path, len(prompts) * clips_per_prompt)
    _require_writable(folder)
    if not overwrite:
        for file in files:
            if taken := _taken(file, plot):
                raise InputError(f"{taken} exists; choose another name or pass --overwrite.")
    return files


def slug(prompt: str) -> str:
    """A file name's stem for a prompt: its words in small letters, joined by hyphens."""
    words = unicodedata.normalize("NFKC", prompt).casefold()
    return re.sub(r"[\W_]+", "-", words)[:40].strip("-") or "clip"


def _numbered(path: Path, clips: int) -> list[Path]:
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"cannot write {path}: a file must end in {', '.join(SUFFIXES)}; a folder in {os.sep}.")
    if clips == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(1, clips + 1)]


def _named_after_prompts(
    folder: Path, prompts: list[str], clips_per_prompt: int, overwrite: bool, plot: bool
) -> list[Path]:
    chosen: dict[Path, None] = {}
    for prompt in prompts:
        candidates = _candidates(folder, slug(prompt))
        for _ in range(clips_per_prompt):
            free = (file for file in candidates if file not in chosen and (overwrite or not _taken(file, plot)))
            chosen[next(free)] = None
    return list(chosen)


def _candidates(folder: Path, stem: str) -> Iterator[Path]:
    """stem.wav, stem-2.wav, stem-3.wav, ..."""
    yield folder / f"{stem}.wav"
    for number in count(2):
        yield folder / f"{stem}-{number}.wav"


def _taken(file: Path, plot: bool) -> Path | None:
    """The file or its picture, whichever exists (a dangling link exists too)."""
    for path in (file, file.with_suffix(".png")) if plot else (file,):
        if os.path.lexists(path):
            return path
    return None


def _require_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written to; one that does not exist is made when it is needed."""
    existing = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not existing.is_dir():
        raise InputError(f"cannot write into {folder}: {existing} is not a folder.")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror or error}.") from None
