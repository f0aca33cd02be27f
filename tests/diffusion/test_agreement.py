"""What each objective trains is what the diffusers scheduler it names samples: step by step, to 1e-5, in float64.

Every step is written here from its paper's equation, on the package's own levels and coordinates. The schedulers'
float32 levels are replaced by the exact ones where they keep them: 1 - alpha_bar has three digits at small t otherwise.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from latentdiff.diffusion.consistency import KarrasConsistency, LatentConsistency, sample
from latentdiff.diffusion.continuous_objectives import EDM, ContinuousTime, Flow, Precondition
from latentdiff.diffusion.coordinates import Coordinate, ddim_step, posterior, reverse_step, z_0_and_eps
from latentdiff.diffusion.objectives import VLB, DenoisingObjective, Hybrid, Objective
from latentdiff.diffusion.process import FlowSchedule
from latentdiff.diffusion.samplers import make_scheduler, readable_output
from latentdiff.diffusion.schedule import DiscreteSchedule, LogLinearSchedule

PREDICTIONS: tuple[Coordinate, ...] = ("epsilon", "sample", "v_prediction")
SCHEDULE = DiscreteSchedule.named("scaled_linear", beta_start=0.0015, beta_end=0.0195)
STEPS = 10


def noise(*shape: int, number: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(number))


def network(z_t: Tensor, t: Tensor) -> Tensor:
    """Any function of both: the agreement must not depend on a good one."""
    t = torch.as_tensor(t, dtype=torch.float64).reshape(-1, *[1] * (z_t.dim() - 1))
    return 0.7 * z_t.tanh() + 0.2 * torch.sin(t / 300) + 0.1 * z_t.flip(-1)


def scheduler_of(name: str, prediction: Coordinate, **settings: Any) -> Any:
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195, **settings}
    scheduler: Any = make_scheduler(name, config | {"prediction_type": prediction})
    scheduler.alphas_cumprod = SCHEDULE.alpha_bar
    scheduler.set_timesteps(STEPS)
    return scheduler


def follow(scheduler: Any, z: Tensor, step: Callable[[Tensor, int], Tensor], model: Any = network) -> None:
    """Both along the whole path, each from where the scheduler is."""
    generator = torch.Generator().manual_seed(1)
    extra = {"generator": generator} if "generator" in scheduler.step.__code__.co_varnames else {}
    for i, t in enumerate(scheduler.timesteps):
        expected = step(z, i)
        output = readable_output(scheduler, model(scheduler.scale_model_input(z, t), t), z)
        z = scheduler.step(output, t, z, **extra).prev_sample
        assert torch.allclose(z, expected, rtol=1e-5, atol=1e-5), f"step {i}, t = {t}"


def levels(scheduler: Any) -> Tensor:
    """alpha_bar at each of the steps, and 1 for the data."""
    return torch.cat([SCHEDULE.alpha_bar[scheduler.timesteps], torch.ones(1, dtype=torch.float64)])


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim(prediction: Coordinate) -> None:
    scheduler = scheduler_of("ddim", prediction)
    a = levels(scheduler)

    def step(z: Tensor, i: int) -> Tensor:
        return ddim_step(network(z, scheduler.timesteps[i]), z, a[i : i + 1], a[i + 1 : i + 2], prediction)

    follow(scheduler, noise(2, 4, 8, 8), step)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddpm(prediction: Coordinate, variance: str) -> None:
    """Strided: q(z_s | z_t, z_0) of the longer step, whose variances are its own.

    The scheduler leaves noise out at time 0 only: a strided chain with ``fixed_large`` ends on noisy data.
    """
    scheduler = scheduler_of("ddpm", prediction, variance_type=variance)
    a, generator = levels(scheduler), torch.Generator().manual_seed(1)

    def step(z: Tensor, i: int) -> Tensor:
        a_t, a_s = a[i : i + 1], a[i + 1 : i + 2]
        z_0, _ = z_0_and_eps(network(z, scheduler.timesteps[i]), z, a_t, prediction)
        mean, small = posterior(z_0, z, a_t, a_s)
        drawn = torch.randn(z.shape, dtype=torch.float64, generator=generator)
        return mean + (small if variance == "fixed_small" else 1 - a_t / a_s).sqrt() * drawn

    follow(scheduler, noise(2, 4, 8, 8), step)


def test_ddpm_with_the_variance_that_hybrid_learns() -> None:
    """At the last training steps, which no stride separates."""
    assert Hybrid(SCHEDULE).output_channels == 2
    scheduler = scheduler_of("ddpm", "epsilon", variance_type="learned_range")
    scheduler.set_timesteps(timesteps=[4, 3, 2, 1, 0])
    generator = torch.Generator().manual_seed(1)

    def model(z: Tensor, t: Tensor) -> Tensor:
        return torch.cat([network(z, t), torch.tanh(z)], dim=1)

    def step(z: Tensor, i: int) -> Tensor:
        t = int(scheduler.timesteps[i])
        mean, log_variance = reverse_step(SCHEDULE, t, model(z, torch.tensor(t)), z, "epsilon", "learned_range")
        if t == 0:
            return mean
        return mean + (log_variance / 2).exp() * torch.randn(z.shape, dtype=torch.float64, generator=generator)

    follow(scheduler, noise(2, 3, 8, 8), step, model)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_dpm_solver_pp_2m(prediction: Coordinate) -> None:
    """Lu et al. 2022, algorithm 2, with lambda = log snr / 2; the first and the last step are of first order."""
    scheduler = scheduler_of("dpmsolver++", prediction)
    a = levels(scheduler)
    half_log_snr = 0.5 * (a / (1 - a)).log()
    guesses: list[Tensor] = []

    def step(z: Tensor, i: int) -> Tensor:
        guesses.append(z_0_and_eps(network(z, scheduler.timesteps[i]), z, a[i : i + 1], prediction)[0])
        if i == STEPS - 1:
            return guesses[i]
        h, d = half_log_snr[i + 1] - half_log_snr[i], guesses[i]
        if i > 0:
            r = (half_log_snr[i] - half_log_snr[i - 1]) / h
            d = (1 + 1 / (2 * r)) * guesses[i] - 1 / (2 * r) * guesses[i - 1]
        noise_ratio = ((1 - a[i + 1]) / (1 - a[i])).sqrt()
        return noise_ratio * z - a[i + 1].sqrt() * torch.expm1(-h) * d

    follow(scheduler, noise(2, 4, 8, 8), step)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_heun(prediction: Coordinate) -> None:
    """EDM, algorithm 1 without churn: x = z / sqrt(alpha_bar), dx / dsigma = eps; two evaluations a step."""
    scheduler = scheduler_of("heun", prediction)
    times = [*scheduler.timesteps[::2].tolist()]
    a = torch.cat([SCHEDULE.alpha_bar[times], torch.ones(1, dtype=torch.float64)])
    sigma = ((1 - a) / a).sqrt()

    def eps_at(x: Tensor, i: int) -> Tensor:
        z = a[i].sqrt() * x
        return z_0_and_eps(network(z, torch.tensor(times[i])), z, a[i : i + 1], prediction)[1]

    x = noise(2, 4, 8, 8) * scheduler.init_noise_sigma
    for i in range(len(times)):
        slope, h = eps_at(x, i), sigma[i + 1] - sigma[i]
        expected = x + h * slope
        if i < len(times) - 1:
            expected = x + h / 2 * (slope + eps_at(expected, i + 1))
        for t in scheduler.timesteps[2 * i : 2 * i + 2]:
            x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x).prev_sample
        assert torch.allclose(x, expected, rtol=1e-5, atol=1e-5), f"step {i}"


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_euler(shift: float) -> None:
    """z + (sigma_s - sigma_t) u, told t = 1000 sigma."""
    flow = Flow(FlowSchedule(shift))
    scheduler: Any = make_scheduler("euler", flow.scheduler_config())
    scheduler.set_timesteps(STEPS)
    z = noise(2, 4, 8, 8).float()
    # diffusers spaces its steps between the ends it has shifted already, and shifts once more.
    ends = flow.schedule.sigma(torch.tensor([1, 1 / 1000], dtype=torch.float64)).tolist()
    sigma = flow.schedule.sigma(torch.linspace(*ends, STEPS, dtype=torch.float64))
    sigma = torch.cat([sigma, torch.zeros(1, dtype=torch.float64)])
    for i, t in enumerate(scheduler.timesteps):
        assert float(t) == pytest.approx(1000 * float(sigma[i]), rel=1e-5)
        output = network(z, t).float()
        expected = z + (sigma[i + 1] - sigma[i]).float() * output
        z = scheduler.step(output, t, z).prev_sample
        assert torch.allclose(z, expected, rtol=1e-5, atol=1e-5)


def test_edm_euler() -> None:
    """EDM, equation 1 by Euler's method on D = c_skip x + c_out F(c_in x; ln sigma / 4)."""
    edm = EDM()
    scheduler: Any = make_scheduler("euler", edm.scheduler_config())
    scheduler.set_timesteps(STEPS)
    precondition, x = Precondition(edm.schedule.sigma_data), noise(2, 4, 8, 8) * scheduler.init_noise_sigma
    sigma = edm.schedule.sigma(torch.linspace(1, 0, STEPS, dtype=torch.float64))
    sigma = torch.cat([sigma, torch.zeros(1, dtype=torch.float64)])
    for i, t in enumerate(scheduler.timesteps):
        assert float(t) == pytest.approx(float(sigma[i].log() / 4), rel=1e-5)
        denoised = precondition.denoised(network, x, sigma[i : i + 1])
        expected = x + (sigma[i + 1] - sigma[i]) * (x - denoised) / sigma[i]
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x).prev_sample
        assert torch.allclose(x, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_lcm(prediction: Coordinate) -> None:
    form = LatentConsistency(SCHEDULE, prediction)
    scheduler = scheduler_of("lcm", prediction)
    scheduler.set_timesteps(4, original_inference_steps=50)
    assert set(scheduler.timesteps.tolist()) <= set(form.times(50).tolist())
    z_T = noise(2, 4, 8, 8)
    ours = sample(form, network, z_T, scheduler.timesteps.tolist(), torch.Generator().manual_seed(1))
    z, generator = z_T, torch.Generator().manual_seed(1)
    for t in scheduler.timesteps:
        z = scheduler.step(network(z, t), t, z, generator=generator).prev_sample
    assert torch.allclose(z, ours, rtol=1e-5, atol=1e-5)


def test_consistency_in_sigma() -> None:
    form = KarrasConsistency()
    scheduler: Any = make_scheduler("cm", form.schedule.to_config())
    scheduler.set_timesteps(4)
    z_T = noise(2, 4, 8, 8).float() * scheduler.init_noise_sigma
    ours = sample(
        form,
        lambda z, t: network(z, t).float(),
        z_T,
        scheduler.sigmas[:4].tolist(),
        torch.Generator().manual_seed(1),
    )
    z, generator = z_T, torch.Generator().manual_seed(1)
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(z, t), t).float()
        z = scheduler.step(output, t, z, generator=generator).prev_sample
    assert torch.allclose(z, ours, rtol=1e-5, atol=1e-4)  # z is of order 80


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_vdm_runs_in_a_scheduler_on_the_times_it_was_trained_at(prediction: Coordinate) -> None:
    """The network hears t (T - 1) in training, and the scheduler's index, whose level is gamma(t), in sampling."""
    objective = ContinuousTime(LogLinearSchedule(-9.0, 5.0), prediction, "none", 200)
    scheduler: Any = make_scheduler("ddpm", objective.scheduler_config())
    heard: list[tuple[Tensor, Tensor]] = []

    def listen(z_t: Tensor, t: Tensor) -> Tensor:
        heard.append((z_t, t))
        return z_t

    z_0, t = torch.zeros(5, 3), torch.tensor([0.0, 1.0, 57.0, 198.0, 199.0])
    objective.loss(listen, z_0, t, torch.ones(5, 3))
    told, scale = heard[0][1], heard[0][0][:, 0]
    assert torch.equal(told, t)
    assert torch.allclose(scale.square(), 1 - scheduler.alphas_cumprod[t.long()], rtol=0, atol=1e-5)


OBJECTIVES: list[Objective] = [DenoisingObjective(SCHEDULE.alpha_bar), VLB(SCHEDULE, dequantisation="none")]


@pytest.mark.parametrize("objective", [*OBJECTIVES, Flow(), EDM()], ids=lambda o: type(o).__name__)
def test_the_network_is_given_what_the_scheduler_gives_it(objective: Objective) -> None:
    """Input and time at equal noise: the same numbers in training and in sampling."""
    continuous = isinstance(objective, Flow | EDM)
    config = objective.scheduler_config() if continuous else SCHEDULE.to_config()  # type: ignore[attr-defined]
    scheduler: Any = make_scheduler("euler", config)
    scheduler.set_timesteps(STEPS)
    z_0, eps, heard = noise(1, 4).float(), noise(1, 4, number=1).float(), []

    def listen(z_t: Tensor, t: Tensor) -> Tensor:
        heard.append((z_t, t))
        return z_t

    for i, t in enumerate(scheduler.timesteps):
        objective.loss(listen, z_0, t.reshape(1) if continuous else t.reshape(1).long(), eps)
        sigma = scheduler.sigmas[i]
        noised = (1 - sigma) * z_0 + sigma * eps if isinstance(objective, Flow) else z_0 + sigma * eps
        given = noised if isinstance(objective, Flow) else scheduler.scale_model_input(noised, t)
        assert torch.allclose(heard[-1][0], given, rtol=1e-4, atol=1e-5)
        scheduler.step(noised, t, noised)
