"""The order of an epoch: a permutation of the items, stored while they are few and computed place by place after."""

import numpy as np

STORED = 2**16
"""A table of a million places is 8 MB and 20 ms at the begin of each epoch, of a hundred million 800 MB and seconds."""
_ROUNDS = 4
_64_BITS = 2**64 - 1


class Order:
    """A permutation of ``range(count)``: the item at each place.

    Up to `STORED` items it is numpy's. For more it is a Feistel network over as many bits as the places have (Luby and
    Rackoff 1988), followed along its cycle until it is back among them (Black and Rogaway 2002): at most two passes on
    average, and no memory.

    Args:
        count: of items.
        seed: what it depends on, numbers of at least 0.
    """

    def __init__(self, count: int, seed: list[int]) -> None:
        self.count = count
        self._table = np.random.default_rng(seed).permutation(count) if count <= STORED else None
        self._keys = np.random.SeedSequence(seed).generate_state(_ROUNDS, np.uint64).tolist()
        bits = (count - 1).bit_length()
        self._low = bits // 2
        self._masks = (1 << (bits - self._low)) - 1, (1 << self._low) - 1

    def __getitem__(self, place: int) -> int:
        if self._table is not None:
            return int(self._table[place])
        item = self._pass(place)
        while item >= self.count:
            item = self._pass(item)
        return item

    def _pass(self, value: int) -> int:
        """The network: a permutation of all numbers of so many bits, whatever `_hash` is."""
        above, below = self._masks
        high, low = value >> self._low, value & below
        for first, second in zip(self._keys[::2], self._keys[1::2], strict=True):
            high ^= _hash(low + first) & above
            low ^= _hash(high + second) & below
        return high << self._low | low


def _hash(z: int) -> int:
    """SplitMix64's last steps (Steele, Lea and Flood 2014)."""
    z &= _64_BITS
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _64_BITS
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _64_BITS
    return z ^ z >> 31
