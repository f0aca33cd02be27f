"""The objectives: moments, identities in float64, agreement with diffusers, weights, drawn times."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from latentdiff.diffusion.coordinates import Variance, diffuse, in_coordinate, velocity
from latentdiff.diffusion.likelihood import BIN, vlb
from latentdiff.diffusion.objectives import (
    P2,
    VLB,
    DenoisingObjective,
    Hybrid,
    Objective,
    PredictionType,
    min_snr_weight,
    one_step_vae,
    p2_weight,
)
from latentdiff.diffusion.schedule import DiscreteSchedule
from latentdiff.errors import InputError

PREDICTIONS: tuple[PredictionType, ...] = get_args(PredictionType)
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


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_weights_do_not_depend_on_what_is_predicted(prediction: PredictionType) -> None:
    """The same network's error, said as eps, z_0 or v, must count the same."""
    z_0, eps, a = draw()
    guess = z_0 + 0.1
    signal, noise = a.sqrt()[:, None, None, None], (1 - a).sqrt()[:, None, None, None]
    guessed_eps = (diffuse(z_0, eps, a) - signal * guess) / noise
    t, snr = torch.arange(6), a / (1 - a)
    said = in_coordinate(guess, guessed_eps, a, prediction)
    weighted = DenoisingObjective(a, prediction, 5.0).loss(lambda z_t, t: said, z_0, t, eps)
    assert torch.allclose(weighted, snr.clamp(max=5.0) * 0.01, rtol=1e-6)
    prioritised = P2(a, prediction, gamma=0.5, k=2.0).loss(lambda z_t, t: said, z_0, t, eps)
    assert torch.allclose(prioritised, snr / (2.0 + snr).sqrt() * 0.01, rtol=1e-6)


def test_p2_weights() -> None:
    """Choi et al. 2022: 1 / (k + snr)^gamma on the error of eps."""
    snr = torch.tensor([0.01, 1.0, 3.0], dtype=torch.float64)
    assert p2_weight(snr / (1 + snr), 1.0, 1.0, "epsilon").tolist() == pytest.approx([1 / 1.01, 1 / 2, 1 / 4])
    assert p2_weight(snr / (1 + snr), 0.5, 1.0, "v_prediction").tolist() == pytest.approx(
        [0.01 / 1.01**1.5, 1 / 2**1.5, 3 / 4**1.5]
    )
    assert p2_weight(snr / (1 + snr), 0.0, 1.0, "epsilon").tolist() == pytest.approx([1, 1, 1])


def objective(prediction: PredictionType, min_snr_gamma: float | None = None) -> DenoisingObjective:
    return DenoisingObjective(DDPMScheduler(**SCHEDULES[1]).alphas_cumprod, prediction, min_snr_gamma)


def perfect(z_0: Tensor, alpha_bar: Tensor, prediction: PredictionType) -> Callable[[Tensor, Tensor], Tensor]:
    """A denoiser that knows z_0 and finds eps from what it is given."""

    def denoise(z_t: Tensor, t: Tensor) -> Tensor:
        a = alpha_bar[t]
        eps = (z_t - a.sqrt()[:, None, None, None] * z_0) / (1 - a).sqrt()[:, None, None, None]
        return in_coordinate(z_0, eps, a, prediction)

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


def test_channels_count_as_they_are_weighed() -> None:
    z_0, eps, _ = draw(dtype=torch.float32)
    t = torch.tensor([0, 10, 300, 600, 900, 999])
    weights = torch.arange(1.0, z_0.shape[1] + 1)
    goal = dataclasses.replace(objective("epsilon", 5.0), channels=weights / weights.mean())
    each = eps.square().flatten(2).mean(2) @ weights / weights.sum()
    expected = each * min_snr_weight(goal.alpha_bar[t], 5.0, "epsilon")
    assert torch.allclose(goal.loss(lambda z_t, t: torch.zeros_like(z_t), z_0, t, eps), expected)


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


SMALL = DiscreteSchedule.named("cosine", 12)


def pixels(*shape: int) -> Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(5)).double() * BIN - 1


def network(z_t: Tensor, t: Tensor) -> Tensor:
    return 0.8 * z_t + 0.05 * t.reshape(-1, *[1] * (z_t.dim() - 1))


def with_variance(z_t: Tensor, t: Tensor) -> Tensor:
    return torch.cat([network(z_t, t), z_t.tanh()], dim=1)


@pytest.mark.parametrize("dequantisation", ["none", "discretised"])
@pytest.mark.parametrize("variance", get_args(Variance))
def test_the_vlb_objective_averages_to_the_bound(
    variance: Variance, dequantisation: Literal["none", "discretised"]
) -> None:
    """At each t with the same noise, T losses have the mean of `vlb`, to float64."""
    x_0, steps = pixels(3, 2, 4), 12
    denoise = with_variance if variance == "learned_range" else network
    objective = VLB(SMALL, "epsilon", variance, dequantisation)
    options: Any = {"prediction": "epsilon", "variance": variance, "dequantisation": dequantisation}
    whole = vlb(SMALL, denoise, x_0, generator=torch.Generator().manual_seed(3), **options)
    generator = torch.Generator().manual_seed(3)
    losses = []
    for step in reversed(range(steps)):
        eps = torch.randn(x_0.shape, dtype=torch.float64, generator=generator)
        losses.append(objective.loss(denoise, x_0, torch.full((3,), step), eps))
    bits = whole.per_example() / (8 * math.log(2))
    assert torch.allclose(torch.stack(losses).mean(0), bits, rtol=1e-10)
    # Mixed times give each example what it gets alone.
    t, eps = torch.tensor([0, 5, 11]), torch.randn(x_0.shape, dtype=torch.float64)
    together = objective.loss(denoise, x_0, t, eps)
    alone = [objective.loss(denoise, x_0[i : i + 1], t[i : i + 1], eps[i : i + 1]) for i in range(3)]
    assert torch.allclose(together, torch.cat(alone), rtol=1e-12)


def test_the_vlb_has_a_gradient_everywhere() -> None:
    """At the decoder too, with data on both edges of its range."""
    x_0 = torch.tensor([[-1.0, 1.0, 128 * BIN - 1]] * 4).double()
    guess = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    objective = VLB(SMALL, "sample", "fixed_small")
    objective.loss(lambda z_t, t: guess, x_0, torch.tensor([0, 0, 1, 11]), torch.ones_like(x_0)).sum().backward()
    assert guess.grad is not None and guess.grad.isfinite().all()
    towards = guess.grad[:, :2].sign()
    assert torch.equal(towards, torch.tensor([[1.0, -1.0]] * 4).double())


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_hybrid_is_the_simple_loss_with_a_bound_for_the_variance(prediction: PredictionType) -> None:
    x_0, t = pixels(4, 2, 4), torch.tensor([0, 1, 6, 11])
    eps = torch.randn(x_0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mean = torch.full_like(x_0, 0.3, requires_grad=True)
    learned = torch.full_like(x_0, -0.2, requires_grad=True)

    def denoise(z_t: Tensor, t: Tensor) -> Tensor:
        return torch.cat([mean, learned], dim=1)

    hybrid = Hybrid(SMALL, prediction, vlb_weight=0.25).loss(denoise, x_0, t, eps)
    simple = DenoisingObjective(SMALL.alpha_bar, prediction).loss(lambda z_t, t: mean, x_0, t, eps)
    bound = VLB(SMALL, prediction, "learned_range").loss(denoise, x_0, t, eps)
    assert torch.allclose(hybrid, simple + 0.25 * bound, rtol=1e-10)
    by_mean, by_learned = torch.autograd.grad(hybrid.sum(), [mean, learned])
    assert torch.allclose(by_mean, torch.autograd.grad(simple.sum(), [mean], retain_graph=True)[0], rtol=1e-12)
    assert torch.allclose(by_learned, 0.25 * torch.autograd.grad(bound.sum(), [learned])[0], rtol=1e-12)
    assert by_learned.abs().min() > 0


def test_the_learned_variance_finds_the_best_one() -> None:
    """Where the data are N(0, 1), so is every z_t, and the step back has variance beta, the upper end of the range."""
    schedule, generator = DiscreteSchedule.named("linear", 50), torch.Generator().manual_seed(1)
    objective = Hybrid(schedule, dequantisation="none", vlb_weight=1.0)
    z_0 = torch.randn(3000, 1, generator=generator)
    place = torch.zeros(50, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([place], lr=0.05)

    def denoise(z_t: Tensor, t: Tensor) -> Tensor:
        eps = (1 - schedule.alpha_bar[t]).sqrt()[:, None] * z_t
        return torch.cat([eps, place[t][:, None]], dim=1)

    for _ in range(100):
        t, eps = objective.draw_times(3000, generator), torch.randn(z_0.shape, generator=generator)
        optimiser.zero_grad()
        objective.loss(denoise, z_0, t, eps).mean().backward()
        optimiser.step()
    assert float(place.detach().mean()) == pytest.approx(1, abs=0.05)
    assert float(place.detach().min()) > 0.7


@pytest.mark.parametrize("beta", [1.0, 0.6])
def test_a_vae_with_data_sized_latent_is_the_bound_of_one_step(beta: float) -> None:
    """C10 as a training loss: the VAE's own, with its gradient, on the same network and noise."""
    x = pixels(8, 5)
    eps = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    decoder = torch.nn.Linear(5, 5).double()
    encoded = torch.distributions.Normal(math.sqrt(1 - beta) * x, math.sqrt(beta))
    decoded = torch.distributions.Normal(decoder(encoded.mean + encoded.stddev * eps), math.sqrt(beta))
    above = torch.where(x > 0.999, 1.0, decoded.cdf(x + BIN / 2))
    below = torch.where(x < -0.999, 0.0, decoded.cdf(x - BIN / 2))
    divergence = torch.distributions.kl_divergence(encoded, torch.distributions.Normal(0, 1)).sum(1)
    expected = (divergence - (above - below).log().sum(1)) / (5 * math.log(2))
    objective = one_step_vae(beta)
    t = objective.draw_times(8, torch.Generator())
    loss = objective.loss(lambda z_1, t: decoder(z_1), x, t, eps)
    assert torch.equal(t, torch.zeros(8, dtype=torch.int64))
    assert torch.allclose(loss, expected, rtol=1e-7)
    found, true = (torch.autograd.grad(value.sum(), [decoder.weight])[0] for value in (loss, expected))
    assert torch.allclose(found, true, rtol=1e-6)


@pytest.mark.parametrize("objective", [VLB(SMALL), Hybrid(SMALL)], ids=["vlb", "hybrid"])
def test_data_out_of_the_decoders_range_are_refused(objective: Objective) -> None:
    x_0 = torch.full((2, 1, 2), 1.3)
    denoise = with_variance if objective.output_channels == 2 else network
    with pytest.raises(InputError, match="0..255"):
        objective.loss(denoise, x_0, torch.zeros(2, dtype=torch.int64), torch.zeros_like(x_0))


@pytest.mark.parametrize("kind", [DenoisingObjective, P2, VLB, Hybrid])
def test_eps_without_any_signal_is_refused(kind: Any) -> None:
    zero = DiscreteSchedule.named("linear", zero_terminal_snr=True)
    process = zero if kind in (VLB, Hybrid) else zero.alpha_bar
    with pytest.raises(InputError, match="use v_prediction"):
        kind(process, "epsilon")
    objective = kind(process, "v_prediction")
    x_0, t = pixels(2, 1, 3), torch.tensor([0, 999])
    denoise = with_variance if objective.output_channels == 2 else network
    assert objective.loss(denoise, x_0, t, torch.ones_like(x_0)).isfinite().all()
