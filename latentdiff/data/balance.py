"""Items of rare names drawn more often: what has one picture must be learnt beside what has twenty alike."""

from collections import Counter
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from latentdiff.data.folder import Row
from latentdiff.data.items import Draw
from latentdiff.errors import InputError


class Repeated(Dataset[dict[str, Any]]):
    """The items of another data set, each as often as it says.

    Args:
        items: indexed by `Draw`.
        times: for each item, how often it comes in an epoch.
    """

    def __init__(self, items: Dataset[dict[str, Any]], times: list[int]) -> None:
        self.items, self.order = items, np.repeat(np.arange(len(times)), times)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        return self.items[draw._replace(row=int(self.order[draw.row]))]


def balanced(rows: list[Row], attribute: str) -> list[int]:
    """How often each row comes: 1 / sqrt(n), where n rows have its name, in whole multiples of the rarest-drawn row's.

    A name of n rows then has sqrt(n) times the share of a name of one: between all rows alike and all names alike. A
    row without the attribute counts as the only one of its name.

    Raises:
        InputError: if no row has the attribute.
    """
    names = [dict(row.attributes).get(attribute) for row in rows]
    counts = Counter(name for name in names if name is not None)
    if not counts:
        known = sorted({key for row in rows for key, _ in row.attributes})
        raise InputError(
            f"balance is '{attribute}', but no row of the metadata has that attribute; "
            f"it has {', '.join(known) or 'none'}."
        )
    most = max(counts.values())
    return [round((most / (counts[name] if name is not None else 1)) ** 0.5) for name in names]
