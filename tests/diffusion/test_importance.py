"""Importance-sampled times: unbiased, with little variance, and restored exactly from their state."""

from typing import Any

import pytest
import torch
from torch import Tensor

from latentdiff.diffusion.importance import ImportanceSampled
from latentdiff.errors import InputError


class Known:
    """An objective whose loss at t is known: (t + 1)^2."""

    output_channels = 1

    def draw_times(self, batch: int, generator: torch.Generator) -> Tensor:
        raise AssertionError("the importance sampler draws")

    def loss(self, denoise: Any, z_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        return (t + 1.0).square()


def nothing(z_t: Tensor, t: Tensor) -> Tensor:
    return z_t


def warmed(steps: int = 4, history: int = 3) -> ImportanceSampled:
    sampler = ImportanceSampled(Known(), steps, history)
    for t in list(range(steps)) * history:
        at, z = torch.tensor([t]), torch.zeros(1, 1)
        sampler.update(at, sampler.loss(nothing, z, at, z))
    return sampler


def test_importance_sampling_is_unbiased_with_little_variance() -> None:
    """p_t ~ sqrt(E loss^2), and the lifted losses have the uniform mean: here all alike, but for the uniform share."""
    sampler, generator = ImportanceSampled(Known(), 4, 3), torch.Generator().manual_seed(0)
    assert sampler.probabilities().tolist() == [0.25] * 4
    assert (sampler.draw_times(4000, generator).bincount() == 1000).all()
    sampler = warmed()
    squares = torch.tensor([1.0, 4.0, 9.0, 16.0], dtype=torch.float64)
    assert torch.allclose(sampler.probabilities(), 0.999 * squares / 30 + 0.001 / 4, rtol=1e-6)
    t = sampler.draw_times(30_000, generator)
    assert (t.bincount() / 30_000 - sampler.probabilities()).abs().max() < 1e-3
    z = torch.zeros(len(t), 1)
    losses = sampler.loss(nothing, z, t, z)
    assert float(losses.mean()) == pytest.approx(30 / 4, rel=1e-3)
    assert float(losses.std()) < 0.05
    assert float(Known().loss(nothing, z, sampler.draw_times(9, generator), z).std()) > 1


def test_importance_sampling_remembers_losses_as_they_were_before_lifting() -> None:
    """Where the loss at each t does not change, neither do the probabilities."""
    sampler, generator = warmed(), torch.Generator().manual_seed(0)
    before = sampler.probabilities()
    for _ in range(5):
        t, z = sampler.draw_times(8, generator), torch.zeros(8, 1)
        sampler.update(t, sampler.loss(nothing, z, t, z))
    assert torch.allclose(sampler.probabilities(), before, rtol=1e-5)


def test_importance_sampling_keeps_the_newest_losses() -> None:
    sampler = ImportanceSampled(Known(), 2, 3)
    sampler.update(torch.tensor([1, 1, 0, 1, 1]), torch.tensor([1.0, 2.0, 9.0, 3.0, 4.0]))
    assert sampler.losses.tolist() == [[0.0, 0.0, 9.0], [2.0, 3.0, 4.0]]
    assert sampler.counts.tolist() == [1, 3]
    assert sampler.probabilities().tolist() == [0.5, 0.5]


def test_importance_sampling_goes_on_exactly_from_its_state() -> None:
    first = warmed()
    again = ImportanceSampled(Known(), 4, 3)
    again.load_state_dict(first.state_dict())
    for number in range(5):
        draws = [sampler.draw_times(6, torch.Generator().manual_seed(number)) for sampler in (first, again)]
        assert torch.equal(*draws)
        z = torch.zeros(6, 1)
        losses = [sampler.loss(nothing, z, draws[0], z) for sampler in (first, again)]
        assert torch.equal(*losses)
        for sampler in (first, again):
            sampler.update(draws[0], 1.1 * losses[0])
        assert torch.equal(first.probabilities(), again.probabilities())


def test_losses_alone_change_no_state() -> None:
    sampler = warmed()
    before = {name: value.clone() for name, value in sampler.state_dict().items()}
    sampler.loss(nothing, torch.zeros(3, 1), torch.tensor([0, 1, 2]), torch.zeros(3, 1))
    sampler.draw_times(5, torch.Generator())
    assert all(torch.equal(value, before[name]) for name, value in sampler.state_dict().items())


def test_importance_sampling_of_nothing_is_refused() -> None:
    for wrong in ((0, 10, 0.001), (4, 0, 0.001), (4, 10, 0.0)):
        with pytest.raises(InputError, match="cannot be"):
            ImportanceSampled(Known(), *wrong)
