"""Bounds against the papers' equations, their weights, the decoder, and a VAE (claims C4, C7, C8, C10, C11)."""

import math
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from latentdiff.diffusion.coordinates import diffuse, posterior, posterior_variances, reverse_step
from latentdiff.diffusion.likelihood import (
    BIN,
    Likelihood,
    antithetic_times,
    continuous_bound,
    discretised_log_likelihood,
    eps_weight,
    gaussian_kl,
    ode_likelihood,
    prior_kl,
    vlb,
)
from latentdiff.diffusion.schedule import DiscreteSchedule, LogLinearSchedule
from latentdiff.errors import InputError

LEVELS = torch.arange(256, dtype=torch.float64) * BIN - 1
SCHEDULES = ("linear", "scaled_linear", "cosine")
LINEAR = DiscreteSchedule.named("linear")


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def noise(*shape: int, number: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=seed(number))


def scalar_network(z: float, t: int) -> tuple[float, float]:
    """A prediction of eps and of the variance's place in its range, for one number."""
    return 0.8 * z + 0.01 * t, math.tanh(z)


def slow_kl(mean_1: float, variance_1: float, mean_2: float, variance_2: float) -> float:
    return 0.5 * (math.log(variance_2 / variance_1) + (variance_1 + (mean_1 - mean_2) ** 2) / variance_2 - 1)


def slow_decoder(x: float, mean: float, variance: float) -> float:
    """DDPM, equation 13."""
    above = 1.0 if x > 0.999 else 0.5 * (1 + math.erf((x + 1 / 255 - mean) / math.sqrt(2 * variance)))
    below = 0.0 if x < -0.999 else 0.5 * (1 + math.erf((x - 1 / 255 - mean) / math.sqrt(2 * variance)))
    return math.log(above - below)


def slow_vlb(betas: list[float], x_0: Tensor, draws: list[Tensor], variance: str) -> dict[str, float]:
    """DDPM, equations 5 to 8 and 13, improved DDPM, equation 15; summed over all numbers of x_0."""
    T = len(betas)
    bar = [math.prod(1 - b for b in betas[:t]) for t in range(T + 1)]
    small = [0.0] + [(1 - bar[t - 1]) / (1 - bar[t]) * betas[t - 1] for t in range(1, T + 1)]
    small[1] = small[2]
    terms = dict.fromkeys(("L_T", "L_t-1", "L_0"), 0.0)
    for n, x in enumerate(x_0.flatten().tolist()):
        terms["L_T"] += slow_kl(math.sqrt(bar[T]) * x, 1 - bar[T], 0, 1)
        for t in range(T, 0, -1):
            beta, eps = betas[t - 1], draws[T - t].flatten()[n].item()
            z = math.sqrt(bar[t]) * x + math.sqrt(1 - bar[t]) * eps
            guess, place = scalar_network(z, t - 1)
            mean = (z - beta / math.sqrt(1 - bar[t]) * guess) / math.sqrt(1 - beta)  # equation 11
            place = {"fixed_large": 1.0, "fixed_small": -1.0, "learned_range": place}[variance]
            chosen = math.exp((place + 1) / 2 * math.log(beta) + (1 - place) / 2 * math.log(small[t]))
            if t == 1:
                terms["L_0"] -= slow_decoder(x, mean, chosen)
                continue
            true = math.sqrt(bar[t - 1]) * beta / (1 - bar[t]) * x
            true += math.sqrt(1 - beta) * (1 - bar[t - 1]) / (1 - bar[t]) * z
            terms["L_t-1"] += slow_kl(true, small[t], mean, chosen)
    return terms


@pytest.mark.parametrize("variance", ["fixed_large", "fixed_small", "learned_range"])
def test_vlb_is_the_papers_equations_one_number_at_a_time(
    variance: Literal["fixed_large", "fixed_small", "learned_range"],
) -> None:
    betas = [0.02, 0.05, 0.1, 0.2, 0.3, 0.5]
    x_0 = LEVELS[torch.tensor([[0, 31, 128], [200, 255, 77]])][:, :, None]

    def denoise(z_t: Tensor, t: Tensor) -> Tensor:
        eps = 0.8 * z_t + 0.01 * t[:, None, None]
        return torch.cat([eps, z_t.tanh()], dim=1) if variance == "learned_range" else eps

    result = vlb(
        DiscreteSchedule(torch.tensor(betas, dtype=torch.float64)),
        denoise,
        x_0,
        prediction="epsilon",
        variance=variance,
        dequantisation="discretised",
        generator=seed(3),
    )
    generator = seed(3)
    draws = [torch.randn(x_0.shape, dtype=torch.float64, generator=generator) for _ in betas]
    for term, expected in slow_vlb(betas, x_0, draws, variance).items():
        assert float(result.terms[term].sum()) == pytest.approx(expected, rel=1e-10), term
    assert result.terms["L_t-1"].shape == (2, 5)


@pytest.mark.parametrize("kind", [*SCHEDULES, "vdm"])
def test_c4_the_chain_forgets(kind: str) -> None:
    """L_T of data of unit variance, in bits/dim; for DDPM's schedule 2.9e-5."""
    schedule = DiscreteSchedule.from_gamma(LogLinearSchedule(), 1000) if kind == "vdm" else DiscreteSchedule.named(kind)
    x_0 = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    bits = Likelihood({"L_T": prior_kl(x_0, schedule.alpha_bar[-1:])}, 1, "none").bits_per_dim("L_T").mean
    stated = {"linear": 2.91e-5, "scaled_linear": 5.29e-4, "cosine": 1.75e-9, "vdm": 4.84e-3}
    assert bits == pytest.approx(stated[kind], rel=0.01)
    zero = DiscreteSchedule.named("linear", zero_terminal_snr=True)
    assert prior_kl(x_0, zero.alpha_bar[-1:]).abs().max() == 0


@pytest.mark.parametrize("kind", SCHEDULES)
def test_c7_each_term_is_a_weighted_squared_error_of_eps(kind: str) -> None:
    """KL(q || p) = w_t |eps - eps_theta|^2, plus, with fixed_large, what the variances differ by."""
    schedule = DiscreteSchedule.named(kind, 200)
    x_0, eps, guess = noise(3, 4, 6)
    squared = (eps - guess).square().sum(1)
    # fixed_small is then exact; float64 subtraction of two means is all the error there is.
    for t in range(1, 200):
        a_t, a_s = schedule.alpha_bar[t : t + 1], schedule.alpha_bar[t - 1 : t]
        z_t = diffuse(x_0, eps, a_t)
        mean, variance = posterior(x_0, z_t, a_t, a_s)
        for kind_of in ("fixed_small", "fixed_large"):
            guessed, log_variance = reverse_step(schedule, t, guess, z_t, "epsilon", kind_of)
            kl = gaussian_kl(mean, variance.log(), guessed, log_variance).sum(1)
            ratio = posterior_variances(schedule)[t] / schedule.betas[t]
            rest = 0.0 if kind_of == "fixed_small" else 3 * (ratio - 1 - ratio.log())
            assert torch.allclose(kl, eps_weight(schedule, kind_of)[t] * squared + rest, rtol=1e-10, atol=0)


def test_c7_the_simple_loss_favours_large_t() -> None:
    """DDPM's weight is a hundred times smaller from t = 300 on; 1 in its place lifts the noisy end."""
    weight = eps_weight(LINEAR, "fixed_large")
    lowest = int(weight.argmin())
    assert 250 < lowest < 350 and (weight[: lowest + 1].diff() < 0).all()
    assert float(weight[0]) == pytest.approx(0.5, rel=1e-3)
    assert weight[0] > 40 * weight[lowest:].max()


@pytest.mark.parametrize("log_scale", [-9.0, -5.0, -2.0, 0.0, 3.0])
def test_c8_the_probabilities_of_the_256_values_sum_to_one(log_scale: float) -> None:
    for mean in (-40.0, -1.0, -0.37, 0.0, BIN / 2, 1.0, 5.0):
        log_p = discretised_log_likelihood(LEVELS, torch.tensor(mean).double(), torch.tensor(2 * log_scale))
        assert not log_p.isnan().any()
        assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-10)


def test_c8_far_tails_keep_their_digits() -> None:
    """30 standard deviations away: erfc of the bin's nearer edge, not log 0."""
    far = discretised_log_likelihood(LEVELS[[128]], LEVELS[[128]] + 0.3 + BIN / 2, torch.tensor(2 * math.log(0.01)))
    assert float(far) == pytest.approx(float(torch.special.log_ndtr(torch.tensor(-30.0).double())), rel=1e-6)


@pytest.mark.parametrize("beta", [1.0, 0.6])
def test_c10_a_vae_with_data_sized_latent_is_a_one_step_diffusion_model(beta: float) -> None:
    """Encoder N(sqrt(1 - beta) x, beta I), decoder a network: its loss is L_T + L_0 of a chain of one step."""
    x = LEVELS[torch.randint(256, (8, 5), generator=seed())]
    network = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.Tanh(), torch.nn.Linear(16, 5)).double()

    encoded = Normal(math.sqrt(1 - beta) * x, math.sqrt(beta))
    z = encoded.mean + encoded.stddev * noise(*x.shape, number=7)
    decoded = Normal(network(z), math.sqrt(beta))
    above = torch.where(x > 0.999, 1.0, decoded.cdf(x + BIN / 2))
    below = torch.where(x < -0.999, 0.0, decoded.cdf(x - BIN / 2))
    negative_elbo = kl_divergence(encoded, Normal(0, 1)).sum(1) - (above - below).log().sum(1)

    chain = vlb(
        DiscreteSchedule(torch.tensor([beta])),
        lambda z_1, t: network(z_1),
        x,
        prediction="sample",
        variance="fixed_large",
        dequantisation="discretised",
        generator=seed(7),
    )
    assert torch.allclose(chain.per_example(), negative_elbo.detach(), rtol=1e-7 if beta < 1 else 1e-10)
    assert chain.terms["L_t-1"].shape == (8, 0)


def test_c11_twice_the_steps_tighten_the_bound_by_the_stated_amount() -> None:
    """VDM: L_2T - L_T = T/2 E[(snr(s) - snr(t')) (|x - x(z_t')|^2 - |x - x(z_t)|^2)], s < t' < t halfway."""
    T, fixed = 8, LogLinearSchedule(-5.0, 4.0)
    x, eps = 0.5 * noise(500, 2), noise(500, 2, number=1)

    def network(z_t: Tensor, t: float) -> Tensor:
        """eps, the best for data of variance 1/4."""
        gamma = fixed.gamma(torch.tensor(t).double())
        return torch.sigmoid(gamma).sqrt() / (0.25 * torch.sigmoid(-gamma) + torch.sigmoid(gamma)) * z_t

    def bound(steps: int) -> float:
        """The sum of KL(q(z_s | z_t, x) || p(z_s | z_t)) as the package computes each, with one eps throughout."""
        chain, total = DiscreteSchedule.from_gamma(fixed, steps + 1), torch.zeros(500, dtype=torch.float64)
        for i in range(1, steps + 1):
            a_t, a_s = chain.alpha_bar[i : i + 1], chain.alpha_bar[i - 1 : i]
            z_t = diffuse(x, eps, a_t)
            output = network(z_t, i / steps)
            mean, variance = posterior(x, z_t, a_t, a_s)
            guessed, log_variance = reverse_step(chain, i, output, z_t, "epsilon", "fixed_small")
            total += gaussian_kl(mean, variance.log(), guessed, log_variance).sum(1)
        return float(total.mean())

    def squared_error(t: float) -> Tensor:
        a = torch.sigmoid(-fixed.gamma(torch.tensor([t]).double()))
        z_t = diffuse(x, eps, a)
        return (x - (z_t - (1 - a).sqrt() * network(z_t, t)) / a.sqrt()).square().sum(1)

    stated = 0.0
    for i in range(1, T + 1):
        s, half, t = (i - 1) / T, (i - 0.5) / T, i / T
        gain = torch.exp(-fixed.gamma(torch.tensor([s, half]).double())).diff().neg()
        stated += 0.5 * float((gain * (squared_error(half) - squared_error(t))).mean())
    assert stated < 0
    assert bound(2 * T) - bound(T) == pytest.approx(stated, rel=1e-6)


def test_antithetic_times_are_evenly_spaced_and_uniform() -> None:
    t = antithetic_times(10, seed())
    assert sorted((10 * t).long().tolist()) == list(range(10))
    assert torch.allclose(t.sort().values.diff(), torch.full((9,), 0.1, dtype=torch.float64))


def test_terms_add_up_and_carry_their_error() -> None:
    result = Likelihood({"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}, 2, "none")
    assert result.per_example().tolist() == [4.0, 10.0]
    assert result.nats() == (7.0, pytest.approx(3.0))
    assert result.bits_per_dim("a").mean == pytest.approx(1 / math.log(2))
    assert math.isnan(Likelihood({"a": torch.tensor([1.0])}, 1, "none").nats().standard_error)


def test_a_float32_network_gets_float32_and_the_sum_stays_exact() -> None:
    def network(z_t: Tensor, t: Tensor) -> Tensor:
        return 0.9 * z_t.tanh()

    def single(z_t: Tensor, t: Tensor) -> Tensor:
        assert z_t.dtype == torch.float32
        return network(z_t, t)

    x_0, schedule = noise(20, 3), DiscreteSchedule.named("linear", 100)
    options: dict[str, Any] = {"prediction": "epsilon", "variance": "fixed_large", "dequantisation": "none"}
    exact = vlb(schedule, network, x_0, generator=seed(), **options)
    rounded = vlb(schedule, single, x_0.float(), generator=seed(), **options)
    assert rounded.nats().mean == pytest.approx(exact.nats().mean, rel=1e-4)


@pytest.mark.parametrize("x_0", [torch.tensor([[0.5, 1.2]]), torch.tensor([[0.1, 0.1]]), torch.tensor([[math.nan]])])
def test_data_off_the_grid_of_256_values_are_refused(x_0: Tensor) -> None:
    with pytest.raises(InputError, match="0..255"):
        discretised_log_likelihood(x_0, torch.zeros(1), torch.zeros(1))
    with pytest.raises(InputError, match="dequantisation 'none'"):
        ode_likelihood(
            LINEAR,
            lambda z, t: z,
            x_0,
            prediction="epsilon",
            dequantisation="uniform",
            steps=1,
            probes=1,
            generator=seed(),
        )


def test_an_eps_prediction_without_any_signal_is_refused() -> None:
    zero = DiscreteSchedule.named("linear", zero_terminal_snr=True)
    x_0 = noise(2, 3)
    options: dict[str, Any] = {"dequantisation": "none", "generator": seed()}
    with pytest.raises(InputError, match="without any signal"):
        vlb(zero, lambda z, t: z, x_0, prediction="epsilon", variance="fixed_large", **options)
    assert vlb(zero, lambda z, t: z, x_0, prediction="v_prediction", variance="fixed_large", **options).nats().mean > 0
    with pytest.raises(InputError, match="not finite"):
        continuous_bound(zero, lambda z, t: z, x_0, prediction="v_prediction", draws=1, **options)
