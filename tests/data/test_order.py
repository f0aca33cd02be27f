"""The order of an epoch: each item once, unpredictably, and without a table where there would be many."""

import numpy as np
import pytest

from latentdiff.data.order import STORED, Order


@pytest.mark.parametrize("count", [1, 12, STORED, STORED + 1, 2**17, 100_003])
def test_each_item_has_one_place(count: int) -> None:
    order = Order(count, [3, 0])
    assert np.array_equal(np.sort([order[place] for place in range(count)]), np.arange(count))


def test_few_items_have_the_order_that_earlier_versions_gave_them() -> None:
    order = Order(1000, [7, 2])
    assert [order[place] for place in range(1000)] == np.random.default_rng([7, 2]).permutation(1000).tolist()


def test_the_computed_order_is_as_good_as_a_drawn_one() -> None:
    """Neighbours, places and epochs have nothing to do with each other; figures of 70,000 independent draws."""
    count = 70_000
    drawn = (Order(count, [0, epoch]) for epoch in (0, 1))
    one, other = (np.array([order[place] for place in range(count)]) for order in drawn)
    places = np.arange(count)
    for first, second in ((one, places), (one, other), (one[1:], one[:-1]), (one % 2, places % 2)):
        assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(count)
    assert (one == other).sum() < 10 and (one == places).sum() < 10  # one is expected of each
    assert abs(np.diff(one)).mean() == pytest.approx(count / 3, rel=0.01)
    parts = np.histogram2d(one, places, bins=16)[0]  # how many of each sixteenth come in each sixteenth
    assert ((parts - count / 256) ** 2 / (count / 256)).sum() == pytest.approx(225, abs=4 * np.sqrt(2 * 225))


def test_it_takes_no_memory() -> None:
    order = Order(10**12, [0, 0])
    assert order._table is None and len({order[place] for place in range(1000)}) == 1000
    assert max(order[place] for place in range(1000)) > 0.9e12
