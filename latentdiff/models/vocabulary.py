"""The words that a model knows, so that it can say which of a prompt's it does not.

A model's folder has them in ``words.txt``, one a line, in alphabetical order:

    dog                 a word of its captions
    hound   dog         a word that none of them has, learnt from a sentence encoder as being like "dog"
    wolf    ~dog        a word that it has not learnt; the nearest that it knows
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

FILE = "words.txt"
_PARTS = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d+|[^\w\s]|_")
_FAR = "~"


def split_words(text: str) -> list[str]:
    """A text's words, numbers and marks in lower case."""
    return _PARTS.findall(text.lower())


def is_word(part: str) -> bool:
    """Whether it is a word, not a number or a mark."""
    return part[0].isalpha()


@dataclass(frozen=True)
class Vocabulary:
    """What a model knows.

    Args:
        known: words of its captions.
        learnt: words beyond them, each with the known word that it is like.
        far: words that it has not learnt, each with the nearest known word.
    """

    known: frozenset[str]
    learnt: dict[str, str]
    far: dict[str, str]

    @classmethod
    def of_captions(cls, captions: Iterable[str]) -> "Vocabulary":
        """The words of some captions."""
        return cls(frozenset(word for text in captions for word in split_words(text) if is_word(word)), {}, {})

    @classmethod
    def load(cls, folder: Path) -> "Vocabulary | None":
        """That of a model's folder, if it has one."""
        path = folder / FILE
        if not path.is_file():
            return None
        known, learnt, far = set(), {}, {}
        for line in path.read_text(encoding="utf-8").splitlines():
            word, _, like = line.partition("\t")
            if not like:
                known.add(word)
            elif like.startswith(_FAR):
                far[word] = like.removeprefix(_FAR)
            else:
                learnt[word] = like
        return cls(frozenset(known), learnt, far)

    def save(self, folder: Path) -> None:
        """Write it into a model's folder."""
        lines = [*self.known, *(f"{word}\t{like}" for word, like in self.learnt.items())]
        lines += [f"{word}\t{_FAR}{like}" for word, like in self.far.items()]
        (folder / FILE).write_text("\n".join(sorted(lines)) + "\n", encoding="utf-8")

    def remark(self, prompt: str) -> str | None:
        """One sentence about the words of a prompt that the model has not learnt, with the nearest that it has."""
        words = dict.fromkeys(word for word in split_words(prompt) if is_word(word))
        unknown = [word for word in words if word not in self.known and word not in self.learnt]
        if not unknown:
            return None
        told = ", ".join(f"'{word}'{self._nearest(word)}" for word in unknown)
        if len(unknown) == len(words):
            return f"this model has learnt no word of the prompt '{prompt}': {told}."
        return f"this model has not learnt all words of the prompt '{prompt}': {told}."

    def _nearest(self, word: str) -> str:
        """In meaning where that is known, else in spelling."""
        if word in self.far:
            return f" (the nearest that it knows: '{self.far[word]}')"
        alike = get_close_matches(word, [*self.known, *self.learnt], n=1, cutoff=0.75)
        return f" (did you mean '{alike[0]}'?)" if alike else ""
