"""Intervals hold what they shall hold, as often as they say."""

import numpy as np
import torch

from latentdiff.evaluation.bootstrap import Bootstrap, Estimate
from latentdiff.evaluation.distributions import frechet_distance

TRIALS = 300


def holds(estimates: list[Estimate], true: float) -> float:
    return float(np.mean([one.low <= true <= one.high for one in estimates]))


def test_means_are_covered_at_the_stated_rate() -> None:
    rng = np.random.default_rng(0)
    for level in (0.8, 0.95):
        draws = [rng.gamma(4.0, size=60) for _ in range(TRIALS)]
        estimates = [Bootstrap(200, level, seed).mean(values) for seed, values in enumerate(draws)]
        assert abs(holds(estimates, 4.0) - level) < 0.05, level  # three standard errors are 0.04 to 0.07


def test_distances_are_covered_at_the_stated_rate() -> None:
    """The expectation of a Frechet distance at this count, which lies above that of infinitely many samples."""
    generator = torch.Generator().manual_seed(0)

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        sets = torch.randn(2, 50, 2, generator=generator, dtype=torch.float64)
        return sets[0] * torch.tensor([1.0, 2.0]), sets[1] + 1.0

    true = float(np.mean([frechet_distance(*draw()) for _ in range(4 * TRIALS)]))
    estimates = []
    for seed in range(TRIALS // 2):
        one, other = draw()

        def distance(i: np.ndarray, j: np.ndarray, one: torch.Tensor = one, other: torch.Tensor = other) -> float:
            return frechet_distance(one[torch.from_numpy(i)], other[torch.from_numpy(j)])

        estimates.append(Bootstrap(60, 0.9, seed).statistic(distance, 50, 50))
    assert true > 3.05  # in closed form it is 3 for infinitely many samples
    assert abs(holds(estimates, true) - 0.9) < 0.07  # two to three standard errors


def test_the_interval_lies_around_the_figure_though_resampling_is_biased() -> None:
    values = np.random.default_rng(0).normal(size=30)
    found = Bootstrap(200).statistic(lambda index: float(len(set(index.tolist()))) + values[index].mean(), 30)
    assert found.value == 30 + values.mean() and found.low < found.value < found.high


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert Bootstrap(50, seed=3).mean(values) == Bootstrap(50, seed=3).mean(values)
    assert Bootstrap(50, seed=3).mean(values) != Bootstrap(50, seed=4).mean(values)
