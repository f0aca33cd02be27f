"""Frechet and kernel distance: against torchmetrics on the same features, and against closed forms."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from latentdiff.evaluation.bootstrap import Bootstrap
from latentdiff.evaluation.distributions import frechet, frechet_distance, kid
from latentdiff.evaluation.evidence import Case, Evidence, NotComputableError

QUICK = Bootstrap(replicates=20)


class Same(torch.nn.Module):
    """The features themselves, in torchmetrics' place for Inception."""

    num_features = 24

    def forward(self, features: Tensor) -> Tensor:
        return features


def clouds(first: int = 400, second: int = 300, width: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    one = torch.randn(first, width, generator=generator, dtype=torch.float64) @ mix
    return one, torch.randn(second, width, generator=generator, dtype=torch.float64).exp() + 0.3


def case(first: Tensor, second: Tensor) -> Case:
    return Case(Evidence(first), Evidence(first), Evidence(second))


def test_frechet_distance_is_torchmetrics() -> None:
    one, other = clouds()
    theirs = FrechetInceptionDistance(feature=Same()).set_dtype(torch.float64)
    theirs.update(one, real=True)
    theirs.update(other, real=False)
    assert frechet_distance(one, other) == pytest.approx(float(theirs.compute()), rel=1e-6)
    assert frechet(case(one, other), QUICK)[""].value == frechet_distance(one, other)


def exactly(mean: Tensor, covariance: Tensor, count: int = 60) -> Tensor:
    """Samples of exactly this mean and covariance."""
    noise = torch.randn(count, len(mean), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise = noise - noise.mean(0)
    white = noise @ torch.linalg.inv(torch.linalg.cholesky(noise.T @ noise / (count - 1))).T
    return white @ torch.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_gaussians_in_closed_form() -> None:
    """Of commuting covariances it is |m1 - m2|^2 + sum (s1 - s2)^2 (Dowson & Landau 1982)."""
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).Q
    a, b = torch.tensor([0.5, 2.0, 3.0]).double(), torch.tensor([1.5, 0.1, 3.0]).double()
    means = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.0, 1.0, 0.5]).double()
    one, other = (exactly(mean, turn @ (s**2).diag() @ turn.T) for mean, s in zip(means, (a, b), strict=True))
    true = float((means[0] - means[1]).square().sum() + (a - b).square().sum())
    assert frechet_distance(one, other) == pytest.approx(true, rel=1e-9)
    assert frechet_distance(one, one.flip(0)) == pytest.approx(0, abs=1e-6)


def test_too_few_samples_are_told_how_many_are_needed() -> None:
    one, other = clouds(24, 300)
    with pytest.raises(NotComputableError, match="at least 25 media to judge and there are 24"):
        frechet(case(one, other), QUICK)
    with pytest.raises(NotComputableError, match="at least 25 reference media"):
        frechet(case(other, one), QUICK)


def test_kid_is_torchmetrics() -> None:
    one, other = clouds(300, 300)
    theirs = KernelInceptionDistance(feature=Same(), subsets=1, subset_size=300).set_dtype(torch.float64)
    theirs.update(one, real=True)
    theirs.update(other, real=False)
    ours = kid(case(one, other), QUICK)[""]
    assert ours.value == pytest.approx(float(theirs.compute()[0]), rel=1e-6)
    assert ours.low < ours.value < ours.high


def test_kid_of_unequal_counts_by_its_definition() -> None:
    one, other = clouds(7, 5)
    k = lambda x, y: float(x @ y / 24 + 1) ** 3  # noqa: E731
    within = [np.mean([k(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j]) for s in (one, other)]
    between = np.mean([k(x, y) for x in one for y in other])
    assert kid(case(one, other), QUICK)[""].value == pytest.approx(sum(within) - 2 * between, rel=1e-9)


def test_kid_is_unbiased() -> None:
    """Over many pairs of small sets of one distribution its mean is 0, where a biased one would be positive."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(10, 4, generator=generator, dtype=torch.float64)  # noqa: E731
    values = [kid(case(draw(), draw()), Bootstrap(replicates=1))[""].value for _ in range(300)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 300**0.5
