"""The words that a model knows: those of its captions, and others that are read as one of these.

A model's folder has them in ``words.txt``, one a line, in alphabetical order:

    dog                 a word of its captions
    hound   dog         none of them has it, and it is like "dog": a prompt's "hound" is read as that
    wolf    ~dog        it is unlike all of them, and "dog" the nearest: said to the user, and left as it is
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from latentdiff.errors import InputError

FILE = "words.txt"
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_WORD_AND_SPACE = re.compile(rf"({_WORD.pattern})(\s*)")
_FAR = "~"


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without numbers and marks."""
    return _WORD.findall(text.lower())


GRAMMAR = frozenset(
    words_of("""
    a an the this that these those some any all every each such own same other another
    i me my mine we us our ours you your yours he him his she her hers it its they them their theirs
    who whom whose which what someone's somebody's
    am is are was were be been being do does doing did done have has having had
    will would shall should can could may might must let let's
    as so too very just please make create generate produce give want need
    """)
)
"""Words that say of no sound and no picture what it is. Where captions did not have them a prompt is read without them:
by meaning, "are" would be nearest to "several" and "each" to "three"."""
NEGATIONS = frozenset(words_of("no not nor none nothing never neither without except cannot"))
"""Words that turn the meaning of others round, and by meaning are near to their opposites ("without" to "with"): never
read as others, so that what a model cannot follow is said."""


@dataclass(frozen=True)
class Vocabulary:
    """What a model knows.

    Args:
        known: words of its captions.
        alike: words beyond them, each with the known word that it is read as.
        far: words that it does not know, each with the nearest known word.
    """

    known: frozenset[str]
    alike: dict[str, str] = field(default_factory=dict)
    far: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_captions(cls, captions: Iterable[str]) -> "Vocabulary":
        """The words of some captions."""
        return cls(frozenset(word for text in captions for word in words_of(text)))

    def and_known(self, words: frozenset[str]) -> "Vocabulary":
        """This one, where the words of more captions are known too."""
        known = self.known | words
        alike, far = ({w: like for w, like in part.items() if w not in known} for part in (self.alike, self.far))
        return Vocabulary(known, alike, far)

    @classmethod
    def load(cls, folder: Path) -> "Vocabulary | None":
        """That of a model's folder, if it has one.

        Raises:
            InputError: if a word is read as one that is not known.
        """
        path = folder / FILE
        if not path.is_file():
            return None
        lines = [line.partition("\t") for line in path.read_text(encoding="utf-8").splitlines() if line]
        known = frozenset(word for word, _, like in lines if not like)
        alike = {word: like for word, _, like in lines if like and not like.startswith(_FAR)}
        far = {word: like.removeprefix(_FAR) for word, _, like in lines if like.startswith(_FAR)}
        for word, like in (alike | far).items():
            if like not in known:
                raise InputError(f"{path} has '{like}' for '{word}', which is no word of its captions; mend that line.")
        return cls(known, alike, far)

    def save(self, folder: Path) -> None:
        """Write it into a model's folder."""
        lines = [*self.known, *(f"{word}\t{like}" for word, like in self.alike.items())]
        lines += [f"{word}\t{_FAR}{like}" for word, like in self.far.items()]
        (folder / FILE).write_text("\n".join(sorted(lines)) + "\n", encoding="utf-8")

    def read(self, prompt: str) -> str:
        """The prompt in words of the captions, where one is like its own, and without the grammar that they lack."""
        if not self._says_something(prompt):
            return prompt  # nothing would be left of it
        return _WORD_AND_SPACE.sub(self._read, prompt)

    def _says_something(self, prompt: str) -> bool:
        return any(word in self.known or word not in GRAMMAR for word in words_of(prompt))

    def _read(self, found: re.Match[str]) -> str:
        word = found[1].lower()
        if word in self.known:
            return found[0]
        return "" if word in GRAMMAR else self.alike.get(word, found[1]) + found[2]

    def remark(self, prompt: str) -> str | None:
        """One sentence about the words of a prompt that no caption had; None where there is nothing to say."""
        words = dict.fromkeys(words_of(prompt))
        if words and not self._says_something(prompt):
            return f"the prompt '{prompt}' names nothing that this model's captions had; what it makes is a guess."
        remarks = [self._remark(word) for word in words if word not in self.known and word not in GRAMMAR]
        if not remarks:
            return None
        return f"of the prompt '{prompt}' this model's captions did not have {', '.join(remarks)}."

    def _remark(self, word: str) -> str:
        if word in self.alike:
            return f"'{word}' (read as '{self.alike[word]}')"
        if word in self.far:
            return f"'{word}' (not known; the nearest is '{self.far[word]}')"
        near = get_close_matches(word, [*self.known, *self.alike], n=1, cutoff=0.75)
        return f"'{word}' (not known; did you mean '{near[0]}'?)" if near else f"'{word}' (not known)"
