"""Bounds and the ODE likelihood against entropies known in closed form, with the denoiser that no network can beat."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from latentdiff.diffusion import likelihood
from latentdiff.diffusion.learned_schedule import LearnedSchedule
from latentdiff.diffusion.likelihood import BIN, Likelihood, continuous_bound, ode_likelihood, vlb
from latentdiff.diffusion.schedule import DiscreteSchedule, LogLinearSchedule, NoiseSchedule

LEVELS = torch.arange(256, dtype=torch.float64) * BIN - 1
LINEAR = DiscreteSchedule.named("linear")


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def levels_at(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """alpha_bar (B, 1)."""
    return torch.sigmoid(-schedule.gamma(t.double()))[:, None]


COVARIANCE = torch.tensor([[1.13, 0.11, -0.1], [0.11, 0.74, 0.25], [-0.1, 0.25, 0.25]], dtype=torch.float64)
GAUSSIAN = MultivariateNormal(torch.zeros(3, dtype=torch.float64), COVARIANCE)
CENTRES = torch.tensor([[1.2, 0.3], [-0.9, 0.8], [0.1, -1.2]], dtype=torch.float64)
SHARES = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
WIDTH = 0.4
MIXTURE = MixtureSameFamily(Categorical(SHARES), Independent(Normal(CENTRES, torch.full_like(CENTRES, WIDTH)), 1))


def gaussian_eps(schedule: NoiseSchedule) -> Callable[[Tensor, Tensor], Tensor]:
    """eps = sigma (alpha_bar C + sigma^2 I)^-1 z_t, in the eigenvectors of C."""
    values, vectors = torch.linalg.eigh(COVARIANCE)

    def denoise(z_t: Tensor, t: Tensor) -> Tensor:
        a = levels_at(schedule, t)
        return (1 - a).sqrt() * ((z_t @ vectors) / (a * values + 1 - a)) @ vectors.T

    return denoise


def mixture_eps(schedule: NoiseSchedule) -> Callable[[Tensor, Tensor], Tensor]:
    """eps = -sigma score, the score of a mixture with centres and widths as time has moved them."""

    def denoise(z_t: Tensor, t: Tensor) -> Tensor:
        a = levels_at(schedule, t)
        offsets = z_t[:, None] - a[..., None].sqrt() * CENTRES
        variance = a * WIDTH**2 + 1 - a
        share = torch.softmax(SHARES.log() - offsets.square().sum(-1) / (2 * variance), dim=1)
        return (1 - a).sqrt() * (share[..., None] * offsets).sum(1) / variance

    return denoise


def mixture_entropy() -> float:
    """- integral of p log p over a fine grid, in nats."""
    axis = torch.linspace(-5, 5, 501, dtype=torch.float64)
    log_p = MIXTURE.log_prob(torch.cartesian_prod(axis, axis))
    return float(-(log_p.exp() * log_p).sum() * (axis[1] - axis[0]) ** 2)


KNOWN = {
    "gaussian": (GAUSSIAN, gaussian_eps, float(GAUSSIAN.entropy())),
    "mixture": (MIXTURE, mixture_eps, mixture_entropy()),
}


class KnownData:
    """Samples, their best denoiser, and two variables of known mean that take most of the sampling noise away.

    A bound's mean over N samples and their eps is far noisier than 1 %. It is corrected, by least squares, with
    -log p(x_0), whose mean is the entropy, and the sum of w_t (|eps|^2 - d), whose mean is 0.
    """

    def __init__(self, name: str, schedule: NoiseSchedule, weight: Callable[[Tensor], Tensor], count: int) -> None:
        torch.manual_seed(1)
        distribution, optimal, self.entropy = KNOWN[name]
        self.x_0 = distribution.sample((count,))
        self.surprise = -distribution.log_prob(self.x_0)
        self.noise = torch.zeros(count, dtype=torch.float64)
        self.schedule, self.weight, self.optimal = schedule, weight, optimal(schedule)

    def denoise(self, z_t: Tensor, t: Tensor) -> Tensor:
        a = levels_at(self.schedule, t)
        eps = (z_t - a.sqrt() * self.x_0) / (1 - a).sqrt()
        self.noise += self.weight(t) * (eps.square().sum(1) - z_t.shape[1])
        return self.optimal(z_t, t)

    def off_by(self, result: Likelihood) -> tuple[float, float]:
        """(mean - entropy) / entropy, and the standard error of that."""
        controls = torch.stack([self.surprise - self.entropy, self.noise], dim=1)
        design = torch.cat([torch.ones(len(controls), 1, dtype=torch.float64), controls], dim=1)
        nats = result.per_example()
        solution = torch.linalg.lstsq(design, nats[:, None]).solution[:, 0]
        error = (nats - design @ solution).std() / math.sqrt(len(nats))
        return float(solution[0] / self.entropy - 1), float(error / self.entropy)


def known_vlb(name: str, schedule: DiscreteSchedule) -> tuple[float, float]:
    weight = schedule.betas / (1 - schedule.alpha_bar) * schedule.alpha_bar**2
    data = KnownData(name, schedule, lambda t: weight[t], 2000)
    return data.off_by(
        vlb(
            schedule,
            data.denoise,
            data.x_0,
            prediction="epsilon",
            variance="fixed_large",
            dequantisation="none",
            generator=seed(),
        )
    )


def known_continuous(name: str, schedule: NoiseSchedule) -> tuple[float, float]:
    data = KnownData(name, schedule, lambda t: levels_at(schedule, t)[:, 0] ** 2, 40000)
    return data.off_by(
        continuous_bound(
            schedule,
            data.denoise,
            data.x_0,
            prediction="epsilon",
            dequantisation="none",
            draws=30,
            generator=seed(),
        )
    )


def known_ode(name: str, schedule: NoiseSchedule) -> tuple[float, float]:
    data = KnownData(name, schedule, lambda t: torch.zeros_like(t), 300)
    result = ode_likelihood(
        schedule,
        data.optimal,
        data.x_0,
        prediction="epsilon",
        dequantisation="none",
        steps=60,
        probes=None,
        generator=seed(),
    )
    off = result.per_example() - data.surprise
    return float(off.mean() / data.entropy), float(off.abs().max() / data.entropy)


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_vlb_at_1000_steps_is_within_one_percent_of_the_entropy(name: str, kind: str) -> None:
    off, error = known_vlb(name, DiscreteSchedule.named(kind))
    assert error < 0.004
    assert abs(off) < 0.01


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("kind", ["fixed", "learned"])
def test_continuous_bound_is_within_one_percent_of_the_entropy(name: str, kind: str) -> None:
    torch.manual_seed(0)
    learned = LearnedSchedule(width=8).double()
    off, error = known_continuous(name, LogLinearSchedule() if kind == "fixed" else learned)
    assert error < 0.005
    assert abs(off) < 0.01


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("schedule", [LogLinearSchedule(-13.3, 12.0), LINEAR], ids=["fixed", "linear"])
def test_ode_likelihood_is_the_density_of_every_sample(name: str, schedule: NoiseSchedule) -> None:
    off, worst = known_ode(name, schedule)
    assert abs(off) < 0.001
    assert worst < 0.02


def test_a_wrong_weight_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks above would see 5 % in the weight of either bound, and a divergence that is counted twice."""
    kl, jvp, divergence = likelihood.gaussian_kl, torch.func.jvp, likelihood._divergence
    with monkeypatch.context() as patch:
        patch.setattr(likelihood, "gaussian_kl", lambda *given: 1.05 * kl(*given))
        assert abs(known_vlb("mixture", LINEAR)[0]) > 0.05
    with monkeypatch.context() as patch:
        patch.setattr(torch.func, "jvp", lambda *given: (jvp(*given)[0], 1.05 * jvp(*given)[1]))
        assert abs(known_continuous("mixture", LogLinearSchedule())[0]) > 0.05
    with monkeypatch.context() as patch:
        patch.setattr(likelihood, "_divergence", lambda *given: 2 * divergence(*given))
        assert abs(known_ode("mixture", LogLinearSchedule())[0]) > 0.3


def test_hutchinson_estimates_the_exact_trace() -> None:
    torch.manual_seed(1)
    x_0 = GAUSSIAN.sample((1,)).expand(2000, 3)

    def result(probes: int | None, x: Tensor) -> Likelihood:
        return ode_likelihood(
            LINEAR,
            gaussian_eps(LINEAR),
            x,
            prediction="epsilon",
            dequantisation="none",
            steps=15,
            probes=probes,
            generator=seed(),
        )

    exact = result(None, x_0[:1]).nats("divergence").mean
    one, four = result(1, x_0).nats("divergence"), result(4, x_0).nats("divergence")
    assert abs(one.mean - exact) < 4 * one.standard_error
    assert four.standard_error == pytest.approx(one.standard_error / 2, rel=0.1)


def test_uniform_dequantisation_gives_the_bits_of_the_discrete_data() -> None:
    """A Gaussian rounded to 0..255 has an entropy that is a sum."""
    width = 0.3
    normal = Normal(torch.zeros((), dtype=torch.float64), width)
    p = (normal.cdf(LEVELS + BIN / 2) - normal.cdf(LEVELS - BIN / 2)).clamp(min=1e-300)
    bits = float(-(p * p.log2()).sum())
    # As many of each value as it is likely.
    shares = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    values = LEVELS[torch.searchsorted(p.cumsum(0) / p.sum(), shares)]

    def denoise(z_t: Tensor, t: Tensor) -> Tensor:
        a = levels_at(LINEAR, t)
        return (1 - a).sqrt() / (a * width**2 + 1 - a) * z_t

    found = ode_likelihood(
        LINEAR,
        denoise,
        values[:, None],
        prediction="epsilon",
        dequantisation="uniform",
        steps=30,
        probes=None,
        generator=seed(),
    )
    assert found.bits_per_dim().mean == pytest.approx(bits, rel=0.001)
    assert found.bits_per_dim("bins").mean == pytest.approx(math.log2(127.5))
