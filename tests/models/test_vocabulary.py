"""The words that a model knows, and what it says of others."""

from pathlib import Path

import pytest

from latentdiff.models.vocabulary import Vocabulary, split_words

VOCABULARY = Vocabulary(frozenset({"a", "dog", "barks", "guitar"}), {"hound": "dog"}, {"wolf": "dog"})


def test_words_numbers_and_marks_are_apart() -> None:
    assert split_words("A dog's bark, twice: 2×!") == ["a", "dog's", "bark", ",", "twice", ":", "2", "×", "!"]


@pytest.mark.parametrize("prompt", ["A dog barks.", "a hound barks 3 times"[:13], "Guitar!", "3, 2, 1"])
def test_what_is_known_needs_no_remark(prompt: str) -> None:
    assert VOCABULARY.remark(prompt) is None


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (
            "a wolf barks",
            "not learnt all words of the prompt 'a wolf barks': 'wolf' (the nearest that it knows: 'dog').",
        ),
        ("gitar", "learnt no word of the prompt 'gitar': 'gitar' (did you mean 'guitar'?)."),
        ("xylem, dog", "not learnt all words of the prompt 'xylem, dog': 'xylem'."),
    ],
)
def test_what_is_unknown_is_named_with_the_nearest(prompt: str, said: str) -> None:
    remark = VOCABULARY.remark(prompt)
    assert remark is not None and remark.endswith(said)


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    VOCABULARY.save(tmp_path)
    assert Vocabulary.load(tmp_path) == VOCABULARY
    assert (tmp_path / "words.txt").read_text().splitlines()[-1] == "wolf\t~dog"


def test_a_folder_without_it_has_none(tmp_path: Path) -> None:
    assert Vocabulary.load(tmp_path) is None


def test_captions_give_their_words() -> None:
    found = Vocabulary.of_captions(["A dog barks 3 times.", "dogs; rain"])
    assert found.known == {"a", "dog", "barks", "times", "dogs", "rain"}
