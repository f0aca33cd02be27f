"""The words that a model knows, what it reads others as, and what it says of them."""

from pathlib import Path

import pytest

from latentdiff import InputError
from latentdiff.models.vocabulary import Vocabulary, words_of

VOCABULARY = Vocabulary(frozenset({"a", "dog", "barks", "guitar"}), {"hound": "dog"}, {"wolf": "dog"})


def test_words_are_without_numbers_and_marks() -> None:
    assert words_of("A dog's bark, twice: 2×!") == ["a", "dog's", "bark", "twice"]


@pytest.mark.parametrize("prompt", ["A dog barks.", "Guitar!", "3, 2, 1", "", "DOG"])
def test_known_words_are_left_alone(prompt: str) -> None:
    assert VOCABULARY.remark(prompt) is None and VOCABULARY.read(prompt) == prompt


def test_a_word_is_read_as_the_one_that_it_is_like() -> None:
    assert VOCABULARY.read("A  Hound, not a houndstooth: 2 hounds; wolf") == "A  dog, not a houndstooth: 2 hounds; wolf"


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("Please make my dog's hound bark", "dog's dog bark"),
        ("a dog that is barking, and is it: a hound", "a dog barking, and : a dog"),
        ("are these hounds", "hounds"),
        ("who are they", "who are they"),
        ("no dog", "no dog"),
    ],
)
def test_grammar_that_no_caption_had_is_left_out(prompt: str, read: str) -> None:
    assert VOCABULARY.read(prompt) == read


def test_grammar_is_not_remarked_on() -> None:
    assert VOCABULARY.remark("please make the sound of a dog") is not None
    assert VOCABULARY.remark("please make the dog") is None
    assert "'no' (not known)" in str(VOCABULARY.remark("no dog"))


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a hound barks", "of the prompt 'a hound barks' this model's captions did not have 'hound' (read as 'dog')."),
        ("a wolf, Wolf", "did not have 'wolf' (not known; the nearest is 'dog')."),
        ("gitar", "did not have 'gitar' (not known; did you mean 'guitar'?)."),
        ("xylem hound", "did not have 'xylem' (not known), 'hound' (read as 'dog')."),
        ("who are they", "names nothing that this model's captions had; what it makes is a guess."),
    ],
)
def test_what_no_caption_had_is_said(prompt: str, said: str) -> None:
    remark = VOCABULARY.remark(prompt)
    assert remark is not None and remark.endswith(said)


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    VOCABULARY.save(tmp_path)
    assert Vocabulary.load(tmp_path) == VOCABULARY
    assert (tmp_path / "words.txt").read_text().splitlines()[-1] == "wolf\t~dog"


def test_a_folder_without_it_has_none(tmp_path: Path) -> None:
    assert Vocabulary.load(tmp_path) is None


def test_a_word_read_as_an_unknown_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("dog\nhound\tcat\n")
    with pytest.raises(InputError, match="has 'cat' for 'hound'"):
        Vocabulary.load(tmp_path)


def test_captions_give_their_words() -> None:
    assert Vocabulary.of_captions(["A dog barks 3 times.", "dogs"]).known == {"a", "dog", "barks", "times", "dogs"}


def test_more_captions_add_words() -> None:
    found = VOCABULARY.and_known(frozenset({"hound"}))
    assert found == Vocabulary(VOCABULARY.known | {"hound"}, {}, {"wolf": "dog"})
