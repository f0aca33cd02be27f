"""Bootstrap confidence intervals (Efron 1979): how far a figure would move with other samples of the same number."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval and the number of items that it rests on."""

    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made; every call draws from the seed anew, so that no figure depends on the others.

    Args:
        replicates: how many resamplings.
        level: the share of cases in which the interval shall hold the true value.
        seed: of the resampling.
    """

    replicates: int = 200
    level: float = 0.95
    seed: int = 0

    def mean(self, values: np.ndarray) -> Estimate:
        """The mean of one value an item, (N,): percentiles of resampled means."""
        values = np.asarray(values, dtype=np.float64)
        rng = np.random.default_rng(self.seed)
        means = values[rng.integers(len(values), size=(self.replicates, len(values)))].mean(1)
        low, high = np.quantile(means, self._tails)
        return Estimate(float(values.mean()), float(low), float(high), len(values))

    def statistic(self, figure: Callable[..., float], *sizes: int) -> Estimate:
        """A figure of whole sets, such as a distance.

        Resampling repeats items, which makes most distances larger than they are. So the replicates' spread is
        taken and their middle is not: the interval is moved to where the figure itself is their mean. What it holds
        is the figure's expectation at this number of samples, which is what a floor of as many is compared with.

        Args:
            figure: Called with one array of indices a set.
            sizes: Of the sets; each is resampled by itself.
        """
        rng = np.random.default_rng(self.seed)
        value = figure(*(np.arange(size) for size in sizes))
        replicates = [figure(*(rng.integers(size, size=size) for size in sizes)) for _ in range(self.replicates)]
        low, high = np.quantile(replicates, self._tails) - np.mean(replicates) + value
        return Estimate(float(value), float(low), float(high), sizes[0])

    @property
    def _tails(self) -> tuple[float, float]:
        return (1 - self.level) / 2, (1 + self.level) / 2
