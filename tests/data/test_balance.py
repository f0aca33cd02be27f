"""Rare names come more often, and nothing is left out."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import Dataset

from latentdiff.data.balance import Repeated, balanced
from latentdiff.data.folder import Row
from latentdiff.data.items import Draw
from latentdiff.errors import InputError


def rows(*names: str | None) -> list[Row]:
    return [
        Row(Path(f"{i}.png"), ("a caption",), attributes=(("base", name),) if name else ())
        for i, name in enumerate(names)
    ]


def test_a_name_has_the_share_of_the_root_of_its_rows() -> None:
    times = balanced(rows(*["runner"] * 16, *["hand"] * 4, "trumpet", None), "base")
    assert times == [1] * 16 + [2] * 4 + [4, 4]


def test_one_name_for_all_changes_nothing() -> None:
    assert balanced(rows("a", "b", "c"), "base") == [1, 1, 1]


def test_an_unknown_attribute_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="balance is 'kind', .*; it has base"):
        balanced(rows("a", "b"), "kind")
    with pytest.raises(InputError, match="it has none"):
        balanced(rows(None), "base")


class Numbers(Dataset[dict[str, Any]]):
    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        return {"row": draw.row, "seed": draw.seed}


def test_an_epoch_holds_each_item_as_often_as_it_says() -> None:
    items = Repeated(Numbers(), [1, 3, 2])
    drawn = [items[Draw(place, seed=7)] for place in range(len(items))]
    assert Counter(item["row"] for item in drawn) == {0: 1, 1: 3, 2: 2}
    assert {item["seed"] for item in drawn} == {7}
