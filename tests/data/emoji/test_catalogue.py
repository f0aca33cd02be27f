"""Names taken apart into what, who and which skin tone, and the combinations that are held out."""

from collections import Counter
from itertools import product

import pytest

from latentdiff.data.emoji.catalogue import GENDERS, HELD_OUT_CELLS, SKIN_TONES, Emoji, catalogue, held_out_cells


@pytest.fixture(scope="module")
def emoji() -> dict[str, Emoji]:
    return {one.name: one for one in catalogue()}


def test_there_are_all_but_flags(emoji: dict[str, Emoji]) -> None:
    assert len(emoji) > 3600 and len({one.text for one in emoji.values()}) == len(emoji)
    assert not [name for name in emoji if name in ("France", "Scotland", "Japan")]
    assert {"dog", "volcano", "chequered flag", "rainbow flag"} <= set(emoji)  # flags of no country stay


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("volcano", {"base": "volcano"}),
        ("woman astronaut dark skin tone", {"base": "astronaut", "gender": "woman", "skin_tone": "dark"}),
        ("astronaut", {"base": "astronaut", "gender": "person", "skin_tone": "default"}),
        ("man running light skin tone", {"base": "person running", "gender": "man", "skin_tone": "light"}),
        ("deaf woman", {"base": "deaf person", "gender": "woman", "skin_tone": "default"}),
        (
            "mermaid medium-dark skin tone",
            {"base": "merperson", "gender": "woman", "skin_tone": "medium-dark"},
        ),
        ("woman", {"base": "person", "gender": "woman", "skin_tone": "default"}),
        ("man zombie", {"base": "zombie", "gender": "man"}),
        ("waving hand medium skin tone", {"base": "waving hand", "skin_tone": "medium"}),
        ("man dancing", {"base": "man dancing", "skin_tone": "default"}),  # the woman dances otherwise
        ("woman and man holding hands", {"base": "woman and man holding hands", "skin_tone": "default"}),
        (
            "men holding hands dark skin tone light skin tone",
            {"base": "men holding hands"},
        ),
    ],
)
def test_attributes(emoji: dict[str, Emoji], name: str, attributes: dict[str, str]) -> None:
    assert emoji[name].attributes == {"name": name, **attributes}


def test_the_grid_is_whole(emoji: dict[str, Emoji]) -> None:
    cells = Counter((one.base, one.gender, one.tones) for one in emoji.values() if one.gender)
    assert set(cells.values()) == {1}
    roles = {base for base, _, tones in cells if tones}
    assert len(roles) >= 78
    tones = [(), *((tone,) for tone in SKIN_TONES)]
    assert set(product(roles, GENDERS, tones)) <= set(cells)


def test_every_pair_of_attributes_stays_in_training(emoji: dict[str, Emoji]) -> None:
    cells = {(one.base, one.gender, one.tones[0]) for one in emoji.values() if one.gender and one.tones}
    for seed in range(3):
        held_out = held_out_cells(list(emoji.values()), seed)
        assert set(Counter(base for base, _, _ in held_out).values()) == {HELD_OUT_CELLS}
        seen = cells - set(held_out)
        for pair in ((0, 1), (0, 2), (1, 2)):
            assert {tuple(cell[i] for i in pair) for cell in seen} == {tuple(cell[i] for i in pair) for cell in cells}


def test_the_seed_decides_and_other_roles_do_not(emoji: dict[str, Emoji]) -> None:
    everyone = list(emoji.values())
    first = held_out_cells(everyone, 0)
    assert first == held_out_cells(everyone[::-1], 0) != held_out_cells(everyone, 1)
    fewer = held_out_cells([one for one in everyone if one.base != "artist"], 0)
    assert fewer == [cell for cell in first if cell[0] != "artist"]


def test_a_mirrored_role_is_held_out_with_its_twin(emoji: dict[str, Emoji]) -> None:
    held_out = set(held_out_cells(list(emoji.values()), 0))
    twins = {cell for cell in held_out if cell[0].endswith(" facing right")}
    assert len(twins) >= 10
    assert {(base.removesuffix(" facing right"), *rest) for base, *rest in twins} <= held_out
