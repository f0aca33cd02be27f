"""The objectives: moments, identities in float64, agreement with diffusers, weights, drawn times."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from latentdiff.diffusion.objectives import (
    DenoisingObjective,
    PredictionType,
    diffuse,
    min_snr_weight,
    velocity,
)

PREDICTIONS: tuple[PredictionType, ...] = ("epsilon", "v_prediction")
SCHEDULES: list[dict[str, Any]] = [
    {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195},
    {"beta_schedule": "squaredcos_cap_v2"},
]


def draw(batch: int = 6, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z_0, eps = (torch.randn(batch, 4, 8, 2, generator=generator, dtype=dtype) for _ in range(2))
    return z_0, eps, torch.linspace(0.001, 0.999, batch, dtype=dtype)


def test_diffused_latents_have_the_moments_of_ddpm_equation_4() -> None:
    generator = torch.Generator().manual_seed(0)
    alpha_bar_t = torch.tensor([0.999, 0.6, 0.1, 0.001])
    count = 20000
    z_0 = torch.full((4, 1, 1, count), 2.0)
    z_t = diffuse(z_0, torch.randn(z_0.shape, generator=generator), alpha_bar_t).flatten(1)
    assert torch.allclose(z_t.mean(1), 2.0 * alpha_bar_t.sqrt(), atol=4 / count**0.5)
    assert torch.allclose(z_t.var(1), 1 - alpha_bar_t, rtol=0.05)


def test_unit_variance_stays_unit_variance() -> None:
    z_0, eps = torch.randn(2, 3, 1, 1, 20000, generator=torch.Generator().manual_seed(0))
    z_t = diffuse(z_0, eps, torch.tensor([0.99, 0.5, 0.01]))
    assert torch.allclose(z_t.flatten(1).var(1), torch.ones(3), rtol=0.05)


def test_velocity_gives_back_z_0_and_eps() -> None:
    """Salimans & Ho 2022, appendix D: z_0 = sqrt(a) z_t - sqrt(1-a) v and eps = sqrt(1-a) z_t + sqrt(a) v."""
    z_0, eps, a = draw()
    z_t, v = diffuse(z_0, eps, a), velocity(z_0, eps, a)
    signal, noise = a.sqrt()[:, None, None, None], (1 - a).sqrt()[:, None, None, None]
    assert torch.allclose(signal * z_t - noise * v, z_0, rtol=0, atol=1e-14)
    assert torch.allclose(noise * z_t + signal * v, eps, rtol=0, atol=1e-14)


def test_eps_gives_back_z_0() -> None:
    z_0, eps, a = draw()
    z_t = diffuse(z_0, eps, a)
    signal, noise = a.sqrt()[:, None, None, None], (1 - a).sqrt()[:, None, None, None]
    assert torch.allclose((z_t - noise * eps) / signal, z_0, rtol=0, atol=1e-12)
    assert torch.allclose((z_t - signal * z_0) / noise, eps, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s["beta_schedule"])
def test_agrees_with_diffusers(schedule: dict[str, Any]) -> None:
    scheduler = DDPMScheduler(**schedule)
    z_0, eps, _ = draw(dtype=torch.float32)
    t = torch.tensor([0, 1, 250, 500, 900, 999])
    alpha_bar_t = scheduler.alphas_cumprod[t]
    assert torch.allclose(diffuse(z_0, eps, alpha_bar_t), scheduler.add_noise(z_0, eps, t), atol=1e-6)
    assert torch.allclose(velocity(z_0, eps, alpha_bar_t), scheduler.get_velocity(z_0, eps, t), atol=1e-6)


def test_min_snr_weights() -> None:
    """Hang et al. 2023: min(snr, gamma) on the z_0-error; / snr on eps; / (snr + 1) on v."""
    snr = torch.tensor([0.01, 1.0, 5.0, 50.0], dtype=torch.float64)
    alpha_bar_t = snr / (1 + snr)
    eps_weight = min_snr_weight(alpha_bar_t, 5.0, "epsilon")
    v_weight = min_snr_weight(alpha_bar_t, 5.0, "v_prediction")
    assert eps_weight.tolist() == pytest.approx([1.0, 1.0, 1.0, 0.1])
    assert v_weight.tolist() == pytest.approx([0.01 / 1.01, 1 / 2, 5 / 6, 5 / 51])


def test_min_snr_weighs_both_predictions_alike() -> None:
    """The same network's error, said as eps or as v, must count the same."""
    z_0, eps, a = draw()
    guess = z_0 + 0.1
    z_t = diffuse(z_0, eps, a)
    signal, noise = a.sqrt()[:, None, None, None], (1 - a).sqrt()[:, None, None, None]
    eps_error = ((z_t - signal * guess) / noise - eps).square().flatten(1).mean(1)
    v_error = ((signal * z_t - guess) / noise - velocity(z_0, eps, a)).square().flatten(1).mean(1)
    by_eps = min_snr_weight(a, 5.0, "epsilon") * eps_error
    by_v = min_snr_weight(a, 5.0, "v_prediction") * v_error
    assert torch.allclose(by_eps, by_v, rtol=1e-6)
    assert torch.allclose(by_eps, (a / (1 - a)).clamp(max=5.0) * 0.01, rtol=1e-6)


def objective(prediction: PredictionType, min_snr_gamma: float | None = None) -> DenoisingObjective:
    return DenoisingObjective(DDPMScheduler(**SCHEDULES[1]).alphas_cumprod, prediction, min_snr_gamma)


def perfect(z_0: Tensor, alpha_bar: Tensor, prediction: PredictionType) -> Callable[[Tensor, Tensor], Tensor]:
    """A denoiser that knows z_0 and finds eps from what it is given."""

    def denoise(z_t: Tensor, t: Tensor) -> Tensor:
        a = alpha_bar[t]
        eps = (z_t - a.sqrt()[:, None, None, None] * z_0) / (1 - a).sqrt()[:, None, None, None]
        return eps if prediction == "epsilon" else velocity(z_0, eps, a)

    return denoise


@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_denoiser_has_no_loss(prediction: PredictionType, gamma: float | None) -> None:
    goal = objective(prediction, gamma)
    z_0, eps, _ = draw(dtype=torch.float32)
    t = torch.tensor([0, 10, 300, 600, 900, 999])
    loss = goal.loss(perfect(z_0, goal.alpha_bar, prediction), z_0, t, eps)
    assert loss.shape == (6,)
    assert float(loss.max()) < 1e-10


def test_loss_is_the_mean_square_of_the_error() -> None:
    z_0, eps, _ = draw(dtype=torch.float32)
    t = torch.tensor([0, 10, 300, 600, 900, 999])
    plain = objective("epsilon").loss(lambda z_t, t: eps + torch.arange(6.0)[:, None, None, None], z_0, t, eps)
    assert torch.allclose(plain, torch.arange(6.0).square(), atol=1e-4)
    nothing = objective("epsilon").loss(lambda z_t, t: torch.zeros_like(z_t), z_0, t, eps)
    assert torch.allclose(nothing, eps.square().flatten(1).mean(1))
    weighted = objective("epsilon", 5.0).loss(lambda z_t, t: torch.zeros_like(z_t), z_0, t, eps)
    weight = min_snr_weight(objective("epsilon").alpha_bar[t], 5.0, "epsilon")
    assert torch.allclose(weighted, nothing * weight)


def test_drawn_times_are_stratified() -> None:
    """One from each of B equal parts, whatever the draw."""
    goal = objective("epsilon")
    for seed in range(20):
        t = goal.draw_times(8, torch.Generator().manual_seed(seed))
        assert t.dtype == torch.int64 and t.shape == (8,)
        assert sorted((t // 125).tolist()) == list(range(8))


def test_drawn_times_are_uniform() -> None:
    goal = objective("epsilon")
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([goal.draw_times(7, generator) for _ in range(3000)])
    t = drawn.flatten().numpy()
    assert t.min() == 0 and t.max() == 999
    counts, _ = np.histogram(t, bins=20, range=(0, 1000))
    assert np.abs(counts / t.size - 0.05).max() < 0.004
    # Each place of the batch too: which part it falls into is random.
    assert (drawn.double().mean(0) - 499.5).abs().max() < 20


def test_drawn_times_follow_the_generator() -> None:
    goal = objective("epsilon")
    first, again, other = (goal.draw_times(16, torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
