"""Words that no caption has, each with the caption's word that it is most like, as a sentence encoder sees them."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from latentdiff.errors import InputError
from latentdiff.models.vocabulary import is_word, split_words

LEAST_LETTERS = 3
"""Shorter words are abbreviations, whose embeddings say little."""
LEAST_CAPTIONS = 5
"""A word that fewer captions have is no good to stand for others."""


@dataclass(frozen=True)
class Synonym:
    """A word beyond the captions.

    Args:
        word: which.
        known: the word of the captions that is nearest to it.
        nearness: the cosine of their embeddings.
    """

    word: str
    known: str
    nearness: float


def read_words(file: Path) -> list[str]:
    """The words of a list, one a line, in lower case and alphabetical order; names and possessives are left out.

    Raises:
        InputError: if it cannot be read or holds none.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read the words of {file} ({error}); name a text file with one word a line, such as "
            "/usr/share/dict/words of Debian's wamerican."
        ) from None
    words = {line.strip() for line in lines}
    kept = {word for word in words if len(word) >= LEAST_LETTERS and word.isalpha() and word.islower()}
    if not kept:
        raise InputError(f"{file} holds no word in small letters; write one a line.")
    return sorted(kept)


def find_synonyms(captions: Iterable[str], words: list[str], embed: Callable[[list[str]], Tensor]) -> list[Synonym]:
    """For each word that the captions do not have, the nearest of theirs.

    Args:
        captions: all of them.
        words: in lower case.
        embed: texts -> embeddings of unit length (B, D).

    Raises:
        InputError: if no word is common to enough captions.
    """
    counts = Counter(word for text in captions for word in set(split_words(text)) if is_word(word))
    known = sorted(w for w, count in counts.items() if count >= LEAST_CAPTIONS and len(w) >= LEAST_LETTERS)
    if not known:
        raise InputError(f"no word stands in {LEAST_CAPTIONS} captions or more, so there is none to learn others by.")
    new = [word for word in words if word not in counts]
    nearness, place = (embed(new) @ embed(known).T).max(dim=1)
    return [
        Synonym(word, known[index], round(near, 4))
        for word, index, near in zip(new, place.tolist(), nearness.tolist(), strict=True)
    ]


def load_synonyms(file: Path, find: Callable[[], list[Synonym]]) -> list[Synonym]:
    """Those of a file, which is made where it is missing: finding them takes minutes."""
    if not file.is_file():
        rows = [json.dumps(asdict(synonym)) for synonym in find()]
        file.parent.mkdir(parents=True, exist_ok=True)
        staged = file.with_name(f".{file.name}-{os.getpid()}")
        staged.write_text("\n".join(rows) + "\n", encoding="utf-8")
        os.replace(staged, file)
    return [Synonym(**json.loads(row)) for row in file.read_text(encoding="utf-8").splitlines()]
