"""Where generated files go: every name is chosen and every objection raised before any work is done."""

import os
import re
import tempfile
import unicodedata
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from latentdiff.errors import InputError

SUFFIXES = (".wav", ".flac", ".ogg")
"""What `latentdiff.media.audio.write_audio` writes."""


def plan_outputs(
    output: str | None,
    prompts: list[str],
    files_per_prompt: int,
    overwrite: bool,
    plot: bool,
    suffixes: tuple[str, ...] = SUFFIXES,
) -> list[Path]:
    """Choose a file for every medium: all of the first prompt, then of the second, ...

    Args:
        output: A file (name.wav; several become name-1.wav, name-2.wav, ...), a folder, or None for the
            current one. In a folder the names come from the prompts, and are fresh unless ``overwrite``.
        prompts: What will be heard or seen.
        files_per_prompt: Files of each prompt.
        overwrite: Existing files may be replaced.
        plot: A PNG of the same stem is written beside each file.
        suffixes: What can be written; the first is taken where none is said.

    Raises:
        InputError: for a suffix that cannot be written, an existing file, or an unwritable folder.
    """
    output = output or "."
    path = Path(output)
    if _is_folder(output):
        folder = path
        files = _named_after_prompts(folder, prompts, files_per_prompt, overwrite, plot, suffixes[0])
    else:
        folder = path.parent
        files = _numbered(path, len(prompts) * files_per_prompt, suffixes)
    require_writable(folder)
    if not overwrite:
        for file in files:
            if taken := _taken(file, plot):
                raise InputError(f"{taken} exists; choose another name or pass --overwrite.")
    return files


def plan_grid(output: str | None, prompts: list[str], overwrite: bool, files: list[Path]) -> Path:
    """Choose the file of the picture that shows all ``files``: STEM-grid.png, as `plan_outputs` would choose it.

    Raises:
        InputError: if it exists.
    """
    path = Path(output or ".")
    if _is_folder(output or "."):
        candidates = _candidates(path, f"{slug(prompts[0])}-grid", ".png")
        return next(file for file in candidates if file not in files and (overwrite or not _taken(file)))
    grid = path.with_name(f"{path.stem}-grid.png")
    if not overwrite and _taken(grid):
        raise InputError(f"{grid} exists; choose another name or pass --overwrite.")
    return grid


def is_made(file: Path, plot: bool) -> bool:
    """Whether a file is there, with its picture if there is to be one."""
    return file.exists() and (not plot or file.with_suffix(".png").exists())


def require_same_recipe(file: Path, found: dict[str, Any] | None, wanted: dict[str, Any]) -> None:
    """Refuse to go on where a file was made from something else; another version of this package is no such thing.

    Raises:
        InputError: naming the file and the first difference.
    """
    for key, value in wanted.items():
        if key != "latentdiff" and (found or {}).get(key) != value:
            was = f"its {key} is {found.get(key)!r} and not {value!r}" if found else "it carries no recipe"
            raise InputError(f"{file} exists and is not of this request: {was}; choose another folder.")


def slug(prompt: str) -> str:
    """A file name's stem for a prompt: its words in small letters, joined by hyphens."""
    words = unicodedata.normalize("NFKC", prompt).casefold()
    return re.sub(r"[\W_]+", "-", words)[:40].strip("-") or "clip"


def _is_folder(output: str) -> bool:
    path = Path(output)
    return path.is_dir() or output.endswith(("/", os.sep)) or not path.suffix


def _numbered(path: Path, files: int, suffixes: tuple[str, ...]) -> list[Path]:
    if path.suffix.lower() not in suffixes:
        raise InputError(
            f"cannot write {path}: what this model makes must end in {', '.join(suffixes)}; a folder in {os.sep}."
        )
    if files == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(1, files + 1)]


def _named_after_prompts(
    folder: Path, prompts: list[str], files_per_prompt: int, overwrite: bool, plot: bool, suffix: str
) -> list[Path]:
    chosen: dict[Path, None] = {}
    names: dict[str, Iterator[Path]] = {}  # what is taken once stays so, and a file may hold a prompt very often
    for prompt in prompts:
        candidates = names.setdefault(slug(prompt), _candidates(folder, slug(prompt), suffix))
        for _ in range(files_per_prompt):
            free = (file for file in candidates if file not in chosen and (overwrite or not _taken(file, plot)))
            chosen[next(free)] = None
    return list(chosen)


def _candidates(folder: Path, stem: str, suffix: str) -> Iterator[Path]:
    """stem.wav, stem-2.wav, stem-3.wav, ..."""
    yield folder / f"{stem}{suffix}"
    for number in count(2):
        yield folder / f"{stem}-{number}{suffix}"


def _taken(file: Path, plot: bool = False) -> Path | None:
    """The file or its picture, whichever exists (a dangling link exists too)."""
    for path in (file, file.with_suffix(".png")) if plot else (file,):
        if os.path.lexists(path):
            return path
    return None


def require_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written to; one that does not exist is made when it is needed."""
    existing = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not existing.is_dir():
        raise InputError(f"cannot write into {folder}: {existing} is not a folder.")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror or error}.") from None
