"""Writes the emoji as folders of captioned pictures: OUT/train, OUT/held_out, and what is held out in words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from latentdiff.data.emoji.captions import wordings
from latentdiff.data.emoji.catalogue import Emoji, catalogue, held_out_cells
from latentdiff.data.emoji.draw import SIDE, EmojiFont
from latentdiff.data.staging import written_whole
from latentdiff.errors import InputError

SPLITS = ("train", "held_out")


def write_emoji(out: Path, size: int, seed: int, overwrite: bool = False) -> dict[str, int]:
    """Draw every emoji but flags into OUT/train or OUT/held_out, each an ordinary folder with metadata.jsonl.

    Training is pointed at OUT/train, so it never sees the held-out combinations, which OUT/held_out.json lists.
    The same font, seed and size give the same bytes. The folder appears only when it is complete.

    Args:
        out: The folder to write.
        size: Height and width of the pictures in pixels.
        seed: Of which combinations are held out.
        overwrite: Replace a folder that is not empty.

    Returns:
        The number of pictures by split.

    Raises:
        InputError: A bad argument, or the font or the names are missing.
    """
    if not 8 <= size <= SIDE:
        raise InputError(f"--size is {size}; it must be from 8 to {SIDE}, the size of the font's bitmaps.")
    if seed < 0:
        raise InputError(f"--seed is {seed}; it must not be negative.")
    with written_whole(out, overwrite) as folder:
        return _write(folder, size, seed, EmojiFont(), catalogue())


def drawable(font: EmojiFont, names: list[Emoji]) -> Iterator[tuple[Emoji, Image.Image]]:
    """The emoji that the font has, each with its picture; of several that look alike, the one of the shortest name.

    A caption of another one would name what is not to be seen, such as the skin tone of a masked snowboarder.
    """
    seen: set[bytes] = set()
    for emoji in sorted(names, key=lambda emoji: (len(emoji.name), emoji.name)):
        picture = font.draw(emoji.text)
        if picture is None:
            continue
        digest = hashlib.sha256(picture.tobytes()).digest()
        if digest not in seen:
            seen.add(digest)
            yield emoji, picture


def _write(folder: Path, size: int, seed: int, font: EmojiFont, names: list[Emoji]) -> dict[str, int]:
    drawn = sorted(drawable(font, names), key=lambda pair: pair[0].name)
    cells = held_out_cells([emoji for emoji, _ in drawn], seed)
    lines: dict[str, list[str]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        (folder / split / "pictures").mkdir(parents=True)
    for emoji, picture in drawn:
        held_out = bool(emoji.gender and emoji.tones) and (emoji.base, emoji.gender, emoji.tones[0]) in cells
        split = SPLITS[held_out]
        name = f"pictures/{'-'.join(f'{ord(character):x}' for character in emoji.text)}.png"
        picture.resize((size, size), Image.Resampling.LANCZOS).save(folder / split / name)
        entry = {
            "file_name": name,
            "text": wordings(emoji),
            "attributes": emoji.attributes,
            "emoji": emoji.text,
            "split": split,
        }
        lines[split].append(json.dumps(entry, ensure_ascii=False) + "\n")
    for split in SPLITS:
        (folder / split / "metadata.jsonl").write_text("".join(lines[split]), encoding="utf-8")
    facts = {
        "seed": seed,
        "size": size,
        "font": hashlib.sha256(font.path.read_bytes()).hexdigest(),
        "combinations": [dict(zip(("base", "gender", "skin_tone"), cell, strict=True)) for cell in cells],
    }
    (folder / "held_out.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return {split: len(lines[split]) for split in SPLITS}
