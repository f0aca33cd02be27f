"""Schedules: the chain they describe (claims C1, C2, C5), diffusers' own numbers, inverses, and what is refused."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EDMEulerScheduler
from torch import Tensor

from latentdiff.diffusion.coordinates import diffuse
from latentdiff.diffusion.learned_schedule import LearnedSchedule
from latentdiff.diffusion.samplers import SAMPLERS, make_scheduler
from latentdiff.diffusion.schedule import (
    BETA_SCHEDULES,
    LEAST_ALPHA_BAR,
    DiscreteSchedule,
    LogLinearSchedule,
    NoiseSchedule,
    alpha_bar_of_flow_time,
    alpha_bar_of_sigma,
    edm_sigmas,
    snr,
    time_of_log_snr,
)
from latentdiff.errors import InputError

AUDIOLDM: dict[str, Any] = {"beta_start": 0.0015, "beta_end": 0.0195}


def learned() -> LearnedSchedule:
    torch.manual_seed(0)
    return LearnedSchedule(width=32).double()


@pytest.mark.parametrize("name", BETA_SCHEDULES)
def test_c1_the_chain_has_the_moments_of_the_closed_form(name: str) -> None:
    """mean <- sqrt(1 - beta) mean, var <- (1 - beta) var + beta, against sqrt(alpha_bar) and 1 - alpha_bar."""
    schedule = DiscreteSchedule.named(name)
    mean, variance = 1.0, 0.0
    for beta, alpha_bar in zip(schedule.betas.tolist(), schedule.alpha_bar.tolist(), strict=True):
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        assert mean == pytest.approx(math.sqrt(alpha_bar), abs=1e-10)
        assert variance == pytest.approx(1 - alpha_bar, abs=1e-10)


@pytest.mark.parametrize("name", BETA_SCHEDULES)
def test_c1_a_sampled_chain_agrees_with_a_sample_in_one_go(name: str) -> None:
    schedule = DiscreteSchedule.named(name, 100)
    generator = torch.Generator().manual_seed(0)
    count = 20_000
    z_0 = torch.full((count, 1), 2.0, dtype=torch.float64)
    z_t = z_0.clone()
    for t in range(60):
        beta = schedule.betas[t]
        z_t = (1 - beta).sqrt() * z_t + beta.sqrt() * torch.randn(z_t.shape, generator=generator, dtype=torch.float64)
    at_once = diffuse(z_0, torch.randn(z_0.shape, generator=generator, dtype=torch.float64), schedule.alpha_bar[59:60])
    variance = float(1 - schedule.alpha_bar[59])
    for sample in (z_t, at_once):
        assert float(sample.mean()) == pytest.approx(
            2 * float(schedule.alpha_bar[59].sqrt()), abs=4 * (variance / count) ** 0.5
        )
        assert float(sample.var()) == pytest.approx(variance, abs=4 * variance * (2 / count) ** 0.5)


@pytest.mark.parametrize("name", BETA_SCHEDULES)
def test_c2_the_factor_keeps_the_variance_at_one(name: str) -> None:
    """Var(z_t) = (1 - beta) Var(z_t-1) + beta stays 1; without the factor it is 1 + the sum of betas."""
    betas = DiscreteSchedule.named(name).betas.tolist()
    kept, grown = [1.0], [1.0]
    for beta in betas:
        kept.append((1 - beta) * kept[-1] + beta)
        grown.append(grown[-1] + beta)
    assert kept == pytest.approx([1.0] * 1001, abs=1e-10)
    assert grown == pytest.approx((1 + np.cumsum([0, *betas])).tolist())
    assert grown[-1] > 7


def test_c5_a_markov_chain_reaches_its_stationary_distribution() -> None:
    """Sunny, cloudy, rainy: powers of the transitions against the eigenvector; and N(0, 1) for the diffusion chain."""
    weather = np.array([[0.8, 0.15, 0.05], [0.4, 0.4, 0.2], [0.2, 0.3, 0.5]])
    values, vectors = np.linalg.eig(weather.T)
    stationary = np.real(vectors[:, np.argmax(values.real)])
    stationary /= stationary.sum()
    assert np.linalg.matrix_power(weather, 60) == pytest.approx(np.tile(stationary, (3, 1)), abs=1e-10)
    # One step of the diffusion chain leaves N(0, 1) as it is and takes every other Gaussian closer to it.
    for mean, variance in ((0.0, 1.0), (3.0, 0.2), (-1.0, 9.0)):
        for beta in DiscreteSchedule.named("cosine").betas.tolist():
            mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        assert (mean, variance) == pytest.approx((0.0, 1.0), abs=1e-3)


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("name", BETA_SCHEDULES)
def test_named_schedules_are_those_of_diffusers(name: str, zero_terminal_snr: bool) -> None:
    schedule = DiscreteSchedule.named(name, 1000, **AUDIOLDM, zero_terminal_snr=zero_terminal_snr)
    for kind in (DDPMScheduler, DDIMScheduler):
        scheduler: Any = kind(**AUDIOLDM, beta_schedule=BETA_SCHEDULES[name], rescale_betas_zero_snr=zero_terminal_snr)
        assert torch.equal(schedule.betas.float(), scheduler.betas)
        # 1e-6 is what diffusers' product in float32 has lost.
        assert torch.allclose(schedule.alpha_bar.float(), scheduler.alphas_cumprod, rtol=1e-4, atol=1e-6)
        assert torch.equal(DiscreteSchedule.from_config(scheduler.config).betas, schedule.betas)


def test_named_schedules_are_those_of_the_papers() -> None:
    """DDPM section 4; latent diffusion's code; improved DDPM, equation 17."""
    i = torch.arange(1000, dtype=torch.float64) / 999
    start, end = AUDIOLDM.values()
    linear, scaled = start + (end - start) * i, (start**0.5 + (end**0.5 - start**0.5) * i) ** 2
    assert torch.allclose(DiscreteSchedule.named("linear", **AUDIOLDM).betas, linear, rtol=1e-6)
    assert torch.allclose(DiscreteSchedule.named("scaled_linear", **AUDIOLDM).betas, scaled, rtol=1e-6)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    f = (torch.cos((t + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)).square()
    assert torch.allclose(DiscreteSchedule.named("cosine").alpha_bar[:-1], f[:-1], rtol=1e-4)


def test_zero_terminal_snr_is_algorithm_1() -> None:
    """Lin et al. 2023: sqrt(alpha_bar) shifted to end at 0 and scaled to begin where it did."""
    root = DiscreteSchedule.named("scaled_linear", **AUDIOLDM).alpha_bar.sqrt()
    rescaled = DiscreteSchedule.named("scaled_linear", **AUDIOLDM, zero_terminal_snr=True)
    expected = (root - root[-1]) * root[0] / (root[0] - root[-1])
    assert torch.allclose(rescaled.alpha_bar.sqrt(), expected, rtol=0, atol=1e-5)
    assert rescaled.betas[-1] == 1 and rescaled.alpha_bar[-1] == 0 and snr(rescaled.alpha_bar)[-1] == 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_runs_the_schedule_it_is_given(sampler: str) -> None:
    schedule = DiscreteSchedule.from_gamma(LogLinearSchedule(-9.0, 5.0), 300)
    scheduler: Any = make_scheduler(sampler, schedule.to_config())
    assert torch.allclose(scheduler.alphas_cumprod, schedule.alpha_bar.float(), rtol=1e-3, atol=1e-6)
    assert torch.allclose(DiscreteSchedule.from_config(scheduler.config).betas, schedule.betas, rtol=1e-6)


def test_levels_and_betas_say_the_same() -> None:
    schedule = DiscreteSchedule.named("cosine")
    again = DiscreteSchedule.from_alpha_bar(schedule.alpha_bar)
    assert torch.allclose(again.betas, schedule.betas, rtol=1e-8)
    log_snr = -schedule.gamma(torch.arange(1000.0))
    assert torch.allclose(log_snr, snr(schedule.alpha_bar).log(), rtol=0, atol=1e-9)
    # diffusers' DPM-Solver works in half of it.
    solver: Any = DPMSolverMultistepScheduler(beta_schedule="squaredcos_cap_v2")
    assert torch.allclose(2 * solver.lambda_t[:-1].double(), log_snr[:-1], rtol=0, atol=0.01)


def test_a_continuous_schedule_is_cut_into_levels() -> None:
    schedule = DiscreteSchedule.from_gamma(LogLinearSchedule(), 51)
    gamma = torch.linspace(-13.3, 5.0, 51, dtype=torch.float64)
    assert torch.allclose(schedule.alpha_bar, torch.sigmoid(-gamma), rtol=1e-12)
    assert torch.allclose(schedule.gamma(torch.arange(51.0)), gamma, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "schedule",
    [DiscreteSchedule.named("linear"), DiscreteSchedule.named("cosine"), LogLinearSchedule(), learned()],
    ids=["linear", "cosine", "log-linear", "learned"],
)
def test_time_of_log_snr_is_the_inverse(schedule: NoiseSchedule) -> None:
    t = torch.linspace(0, schedule.t_end, 77, dtype=torch.float64)
    again = time_of_log_snr(schedule, -schedule.gamma(t).detach())
    assert torch.allclose(again, t, rtol=0, atol=1e-9 * max(schedule.t_end, 1))
    with pytest.raises(InputError, match="log-snr from 99 to 99"):
        time_of_log_snr(schedule, torch.tensor([99.0]))


def test_a_long_schedule_is_lifted_below_its_last_signal() -> None:
    """AudioLDM's thousand steps end at 1e-8 before the 0, which is less than what usually takes its place."""
    schedule = DiscreteSchedule.named("scaled_linear", 1000, **AUDIOLDM, zero_terminal_snr=True)
    assert 0 < schedule.alpha_bar[-2] < LEAST_ALPHA_BAR
    levels = schedule.lifted().alpha_bar
    assert torch.equal(levels[:-1], schedule.alpha_bar[:-1])
    assert float(levels[-1] / levels[-2]) == pytest.approx(0.5)
    again = DiscreteSchedule.from_config(schedule.lifted().to_config() | {"rescale_betas_zero_snr": True})
    assert again.betas[-1] == 1


def test_zero_terminal_snr_goes_through_a_configuration_and_back() -> None:
    schedule = DiscreteSchedule.named("scaled_linear", 200, **AUDIOLDM, zero_terminal_snr=True)
    config = schedule.to_config()
    assert torch.equal(DiscreteSchedule.from_config(config).alpha_bar, schedule.alpha_bar)
    # Lifted, the last level is what diffusers' solvers in sigma have, and the flag brings the exact one back.
    lifted = schedule.lifted()
    assert torch.equal(lifted.alpha_bar[:-1], schedule.alpha_bar[:-1])
    assert float(lifted.alpha_bar[-1]) == pytest.approx(LEAST_ALPHA_BAR, rel=1e-6)
    again = DiscreteSchedule.from_config(lifted.to_config() | {"rescale_betas_zero_snr": True})
    assert torch.allclose(again.alpha_bar, schedule.alpha_bar, rtol=1e-5)
    assert again.betas[-1] == 1
    plain = DiscreteSchedule.named("linear")
    assert plain.lifted() is plain and "rescale_betas_zero_snr" not in plain.to_config()
    # Trained betas that do end with signal are rescaled when the flag says so.
    rescaled = DiscreteSchedule.from_config(plain.to_config() | {"rescale_betas_zero_snr": True})
    assert torch.allclose(
        rescaled.alpha_bar, DiscreteSchedule.named("linear", zero_terminal_snr=True).alpha_bar, rtol=0, atol=1e-6
    )


def test_a_learned_schedule_of_two_ends_stays_log_linear() -> None:
    ends, t = LearnedSchedule(-9.0, 4.0, width=0), torch.linspace(0, 1, 11)
    assert torch.allclose(ends.gamma(t), LogLinearSchedule(-9.0, 4.0).gamma(t), atol=1e-5)
    assert len(list(ends.parameters())) == 2


def test_the_gradient_of_a_learned_schedule_is_split() -> None:
    """Between the ends it goes through the given function, at the ends it does not."""
    schedule, t = learned(), torch.linspace(0.1, 0.9, 5, dtype=torch.float64)

    def gradients(factor: float) -> dict[str, Tensor]:
        schedule.zero_grad()
        gamma, slope = schedule.gamma_and_slope(t, lambda gradient: factor * gradient)
        assert torch.allclose(gamma, schedule.gamma(t), rtol=1e-10)
        (gamma.square() + slope.square()).sum().backward()
        return {name: p.grad.clone() for name, p in schedule.named_parameters() if p.grad is not None}

    once, thrice = gradients(1.0), gradients(3.0)
    for name in ("gamma_min", "log_span"):
        assert torch.allclose(once[name], thrice[name], rtol=1e-10)
    for name in ("first", "inner", "outer"):
        assert torch.allclose(3 * once[name], thrice[name], rtol=1e-10) and once[name].abs().max() > 0


def test_the_learned_schedule_grows_from_end_to_end_and_learns() -> None:
    schedule, t = learned(), torch.linspace(0, 1, 500, dtype=torch.float64)
    assert schedule(t)[[0, -1]].tolist() == pytest.approx([-13.3, 5.0], rel=1e-5)
    assert (schedule.gamma(t) - LogLinearSchedule().gamma(t)).abs().max() < 2
    for parameter in schedule.parameters():
        parameter.data.add_(3 * torch.randn_like(parameter))
    assert (schedule.gamma(t).diff() > 0).all()
    schedule.gamma(t[1:-1]).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in schedule.parameters())


def test_edm_sigmas_are_the_papers_and_those_of_diffusers() -> None:
    sigmas = edm_sigmas(18)
    by_hand = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    assert sigmas.tolist() == pytest.approx(by_hand, rel=1e-10)
    scheduler: Any = EDMEulerScheduler()
    scheduler.set_timesteps(18)
    assert torch.allclose(sigmas.float(), scheduler.sigmas[:-1], rtol=1e-5)
    assert snr(alpha_bar_of_sigma(sigmas)).tolist() == pytest.approx((sigmas**-2).tolist(), rel=1e-6)


def test_flow_times_are_noise_over_signal() -> None:
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert torch.allclose(snr(alpha_bar_of_flow_time(t)).sqrt()[1:], ((1 - t) / t)[1:], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ([], "T >= 1"),
        ([[0.1, 0.2]], r"\(1, 2\)"),
        ([0.1, 0.0, 0.2], "t = 1 is 0;"),
        ([0.1, 1.0, 0.2], "t = 1 is 1;"),
        ([0.1, -0.2], "t = 1 is -0.2"),
        ([0.1, 1.5], "t = 1 is 1.5"),
        ([math.nan], "t = 0 is nan"),
    ],
)
def test_betas_out_of_range_are_refused(betas: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DiscreteSchedule(torch.tensor(betas))


@pytest.mark.parametrize("levels", [[0.9, 0.9, 0.5], [0.5, 0.6], [1.0, 0.5], [0.9, -0.1], [0.9, math.nan]])
def test_levels_that_do_not_fall_are_refused(levels: list[float]) -> None:
    with pytest.raises(InputError, match="fall strictly"):
        DiscreteSchedule.from_alpha_bar(torch.tensor(levels))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"beta_schedule": "linear", "num_train_timesteps": 0}, "num_train_timesteps is 0"),
        ({"beta_schedule": "linear", "beta_start": 0.0}, "beta_start is 0.0"),
        ({"beta_schedule": "scaled_linear", "beta_end": 1.5}, "beta_end is 1.5"),
        ({"beta_schedule": "sqrt_linear"}, "'sqrt_linear' is not one that diffusers knows"),
        ({"trained_betas": [0.1, 0.2], "num_train_timesteps": 3}, "2 values but num_train_timesteps is 3"),
        ({"sigma_max": 80.0}, "neither beta_schedule nor trained_betas"),
    ],
)
def test_scheduler_configurations_without_a_process_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DiscreteSchedule.from_config(config)


def test_other_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="unknown noise schedule 'quadratic'.*scaled_linear"):
        DiscreteSchedule.named("quadratic")
    with pytest.raises(InputError, match="T >= 1"):
        DiscreteSchedule.from_gamma(LogLinearSchedule(), 0)
    with pytest.raises(InputError, match="gamma must grow"):
        LogLinearSchedule(5.0, -13.3)
    with pytest.raises(InputError, match="not finite"):
        DiscreteSchedule.named("linear", zero_terminal_snr=True).gamma(torch.zeros(1))
    for wrong in ((1, 0.002, 80.0), (18, 80.0, 0.002), (18, 0.0, 80.0)):
        with pytest.raises(InputError, match="sigmas from"):
            edm_sigmas(*wrong)


def descending(t: Tensor) -> Tensor:
    return -t


def test_a_gamma_that_falls_is_refused() -> None:
    class Falling:
        t_end = 1.0
        gamma = staticmethod(descending)

    with pytest.raises(InputError, match="betas lie in"):
        DiscreteSchedule.from_gamma(Falling(), 10)
