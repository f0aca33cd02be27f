"""Wordings: true of their picture, different from each other, and of no other picture."""

import pytest

from latentdiff.data.emoji.captions import wordings
from latentdiff.data.emoji.catalogue import SKIN_TONES, Emoji, catalogue


@pytest.fixture(scope="module")
def said() -> dict[str, list[str]]:
    return {one.name: wordings(one) for one in catalogue()}


def test_the_wordings_of_the_issue(said: dict[str, list[str]]) -> None:
    assert {"woman astronaut", "a woman astronaut", "an astronaut who is a woman", "female astronaut"} <= set(
        said["woman astronaut"]
    )
    assert {
        "an astronaut who is a woman, dark skin tone",
        "female astronaut with dark skin",
        "an emoji of a woman astronaut with dark skin tone",
    } <= set(said["woman astronaut dark skin tone"])
    assert "man with red hair, light skin tone" in said["man light skin tone red hair"]


def test_no_two_pictures_share_a_wording(said: dict[str, list[str]]) -> None:
    owner: dict[str, str] = {}
    for name, texts in said.items():
        assert len(texts) == len(set(texts)) >= 5, name
        for text in texts:
            assert owner.setdefault(text, name) == name, text


def test_each_wording_says_gender_and_skin_tone(said: dict[str, list[str]]) -> None:
    words = {"man": {"man", "male"}, "woman": {"woman", "female"}}
    emoji: list[Emoji] = [one for one in catalogue() if one.gender and not one.base.startswith("mer")]
    assert len(emoji) > 1400
    for one in emoji:
        for text in said[one.name]:
            spoken = set(text.replace(",", " ").split())
            for gender, either in words.items():
                assert bool(either & spoken) == (one.gender == gender), text
            if one.tones:
                assert one.tones[0] in spoken and not (set(SKIN_TONES) - set(one.tones)) & spoken, text


def test_articles(said: dict[str, list[str]]) -> None:
    assert "an ear of corn" in said["ear of corn"] and "a volcano" in said["volcano"]
    assert not [text for text in said["clapping hands"] if "a clapping" in text]
    assert not [text for text in said["men wrestling"] if "a men" in text]
