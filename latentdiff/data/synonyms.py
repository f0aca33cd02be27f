"""Words that no caption has, each with the captions' word that it is most like, as a sentence encoder sees them."""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from torch import Tensor

from latentdiff.errors import InputError
from latentdiff.models.vocabulary import GRAMMAR, NEGATIONS, Vocabulary, words_of

LEAST_LETTERS = 3
"""Shorter words are abbreviations, whose embeddings say little."""
LEAST_CAPTIONS = 5
"""A word that fewer captions have is no good to stand for others."""
FAR = 0.35
"""Cosine below which a nearest word is none worth naming."""


def read_words(file: Path) -> list[str]:
    """The words of a list, one a line, in alphabetical order; names, possessives and short ones are left out.

    Raises:
        InputError: if it cannot be read or holds none.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the words of {file} ({error}); name a text file with one a line.") from None
    words = {line.strip() for line in lines}
    kept = {word for word in words if len(word) >= LEAST_LETTERS and word.isalpha() and word.islower()}
    if not kept:
        raise InputError(f"{file} holds no word in small letters; write one a line.")
    return sorted(kept)


def find_synonyms(
    captions: Iterable[str], words: list[str], embed: Callable[[list[str]], Tensor], nearness: float
) -> Vocabulary:
    """The captions' words, and for each other word, grammar and negations apart, the nearest of them.

    Args:
        captions: all of them.
        words: in lower case.
        embed: texts -> embeddings of unit length (B, D).
        nearness: cosine from which on a word is read as its nearest one.

    Raises:
        InputError: if no word is common to enough captions.
    """
    counts = Counter(word for text in captions for word in set(words_of(text)))
    common = sorted(w for w, count in counts.items() if count >= LEAST_CAPTIONS and len(w) >= LEAST_LETTERS)
    if not common:
        raise InputError(f"no word stands in {LEAST_CAPTIONS} captions or more, so none can stand for others.")
    new = [word for word in words if word not in counts and word not in GRAMMAR | NEGATIONS]
    alike: dict[str, str] = {}
    far: dict[str, str] = {}
    if new:
        cosines, places = (embed(new) @ embed(common).T).max(dim=1)
        for word, cosine, place in zip(new, cosines.tolist(), places.tolist(), strict=True):
            if cosine >= FAR:
                (alike if cosine >= nearness else far)[word] = common[place]
    return Vocabulary(frozenset(counts), alike, far)
