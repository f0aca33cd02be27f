"""The emoji by their CLDR names: what is shown, of which gender, with which skin tone; and what is held out.

A role such as astronaut or running comes as person, man and woman, each without a skin tone and with five: a real
grid of combinations. Some are held out, so that one can see whether a model composes.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

import numpy as np

from latentdiff.errors import InputError

GENDERS = ("person", "man", "woman")
SKIN_TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
HELD_OUT_CELLS = 2
"""Of the 15 combinations of gender and skin tone of each role; every pair of two attributes stays in training."""

_TONE = re.compile(rf" ({'|'.join(sorted(SKIN_TONES, key=len, reverse=True))}) skin tone")
_GENDER = re.compile(r"(?<![a-z])(?:(man|woman|person)|mer(man|maid|person))(?![a-z])")
_FLAG = re.compile("[\U0001f1e6-\U0001f1ff]{2}|\U0001f3f4[\U000e0061-\U000e007f]+")
_FACING_RIGHT = " facing right"


@dataclass(frozen=True)
class Emoji:
    """One picture's meaning.

    Args:
        text: The characters that draw it.
        name: Its CLDR name, "woman astronaut dark skin tone".
        base: The name without skin tones, and without gender where there are all three: "astronaut", "person running".
        gender: One of `GENDERS`, where there are all three.
        tones: Skin tones, as many as people who have one.
        tonal: Whether the base comes with skin tones.
        aliases: Other names.
    """

    text: str
    name: str
    base: str
    gender: str | None
    tones: tuple[str, ...]
    tonal: bool
    aliases: tuple[str, ...]

    @property
    def untoned(self) -> str:
        """The name without skin tones: "woman astronaut"."""
        return _TONE.sub("", self.name)

    @property
    def attributes(self) -> dict[str, str]:
        """What a judge can learn, each by itself."""
        found = {"name": self.name, "base": self.base}
        if self.gender is not None:
            found["gender"] = self.gender
        if self.tonal and len(self.tones) < 2:
            found["skin_tone"] = self.tones[0] if self.tones else "default"
        return found


def catalogue() -> list[Emoji]:
    """All fully qualified emoji but flags, by name.

    Raises:
        InputError: The package `emoji` is not installed.
    """
    try:
        from emoji import EMOJI_DATA, STATUS
    except ImportError:
        raise InputError('the names come from the package emoji; install it: pip install "emoji>=2.15".') from None
    names = {
        text: _plain(entry["en"])
        for text, entry in EMOJI_DATA.items()
        if entry["status"] == STATUS["fully_qualified"] and not _FLAG.fullmatch(text)
    }
    taken = set(names.values())
    untoned = {_TONE.sub("", name) for name in names.values()}
    tonal = {_TONE.sub("", name) for name in names.values() if _TONE.search(name)}
    found = []
    for text, name in names.items():
        plain = _TONE.sub("", name)
        base, gender = _role(plain, untoned)
        aliases = dict.fromkeys(_plain(alias) for alias in EMOJI_DATA[text].get("alias", ()))
        # "dog" is an alias of the dog's face, but the name of another picture.
        wordings = tuple(alias for alias in aliases if alias not in taken and not re.search(r"\d", alias))
        found.append(Emoji(text, name, base, gender, tuple(_TONE.findall(name)), plain in tonal, wordings))
    return sorted(found, key=lambda emoji: emoji.name)


def held_out_cells(emoji: list[Emoji], seed: int) -> list[tuple[str, str, str]]:
    """The (base, gender, skin tone) that training does not see: `HELD_OUT_CELLS` of each role, drawn by the seed.

    A role that faces right is the mirror of the one that does not, so the two share their cells.
    """
    bases = sorted({one.base for one in emoji if one.gender is not None and one.tones})
    cells = [(gender, tone) for gender in GENDERS for tone in SKIN_TONES]

    def drawn(base: str) -> list[int]:
        # Seeded by the role itself, so that a font with more roles draws the same for these.
        rng = np.random.default_rng([seed, zlib.crc32(base.removesuffix(_FACING_RIGHT).encode())])
        return sorted(rng.choice(len(cells), HELD_OUT_CELLS, replace=False).tolist())

    return [(base, *cells[index]) for base in bases for index in drawn(base)]


def _plain(shortcode: str) -> str:
    """ ":woman_astronaut:" -> "woman astronaut"."""
    return " ".join(shortcode.strip(":").replace("_", " ").replace("’", "'").replace("“", "").replace("”", "").split())


def _role(name: str, names: set[str]) -> tuple[str, str | None]:
    """The base and gender of a name without skin tone, if it comes as person, man and woman; else the name itself."""
    if f"man {name}" in names and f"woman {name}" in names:
        return name, "person"
    match = _GENDER.search(name)
    if match is None or len(_GENDER.findall(name)) > 1:
        return name, None
    gender = {"maid": "woman"}.get(match[1] or match[2], match[1] or match[2])
    before, after = name[: match.start()], name[match.end() :]
    words = ("man", "woman", "person") if match[1] else ("merman", "mermaid", "merperson")
    if all(f"{before}{word}{after}" in names for word in words):
        return f"{before}{words[2]}{after}", gender
    neutral = after.strip()  # "woman astronaut": the neutral one is no person, but an astronaut
    complete = not before and neutral in names and {f"man {neutral}", f"woman {neutral}"} <= names
    return (neutral, gender) if complete else (name, None)
