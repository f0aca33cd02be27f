"""Consistency models: one network that maps every point of an ODE's path to the path's beginning.

f(z_t, t) = c_skip(t) z_t + c_out(t) F(z_t, t) with c_skip = 1 and c_out = 0 at the first t, so that f is the identity
there. Training makes f agree at neighbouring points t > s of a path; the point at s comes from the data (consistency
training) or from a teacher's ODE step (distillation).

Two forms of F, made for the diffusers scheduler that samples them: `KarrasConsistency` in EDM's sigma
(``CMStochasticIterativeScheduler``), and `LatentConsistency` on discrete times (``LCMScheduler``).
Shapes: z_0, z_t, eps (B, ...); t, s (B,): sigma for the one, an index for the other.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from latentdiff.diffusion.continuous_objectives import Precondition
from latentdiff.diffusion.coordinates import Coordinate, Denoise, check_prediction, column, ddim_step, diffuse
from latentdiff.diffusion.coordinates import z_0_and_eps as ends_of
from latentdiff.diffusion.guidance import guide
from latentdiff.diffusion.process import EDMSchedule
from latentdiff.diffusion.schedule import DiscreteSchedule, edm_sigmas
from latentdiff.errors import InputError

Distance = Callable[[Tensor, Tensor], Tensor]
"""(B, ...), (B, ...) -> (B,)."""


class ConsistencyForm(Protocol):
    """A process with the boundary-respecting function on it."""

    def times(self, intervals: int) -> Tensor:
        """The ends of so many intervals (intervals + 1,), rising from the first time to the last."""

    def sigma(self, t: Tensor) -> Tensor:
        """Noise over signal at t, (B,) float64."""

    def noised(self, z_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """z_t of the path's definition."""

    def consistent(self, network: Denoise, z_t: Tensor, t: Tensor) -> Tensor:
        """f(z_t, t), an estimate of z_0."""

    def ode_step(self, teacher: Denoise, z_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """z_s by one step of a solver with the teacher's prediction."""

    def renoised(self, z_0: Tensor, eps: Tensor, s: Tensor) -> Tensor:
        """z_s in sampling: an estimate of z_0 with noise put back."""


@dataclass(frozen=True)
class KarrasConsistency:
    """z_t = z_0 + sigma eps (Song et al. 2023, appendix C); the network's input is scaled by c_in.

    c_skip = d^2 / ((sigma - sigma_min)^2 + d^2), c_out = d (sigma - sigma_min) / sqrt(sigma^2 + d^2), d = sigma_data.
    The teacher is a network of `latentdiff.diffusion.continuous_objectives.EDM`, and its step is Heun's.

    Args:
        time_scale: The network is told this times ln sigma: 250 as ``CMStochasticIterativeScheduler`` does, or 1 / 4
            for a student that begins as a copy of its EDM teacher, which then only `sample` can sample.
    """

    schedule: EDMSchedule = EDMSchedule()
    time_scale: float = 250.0

    def times(self, intervals: int) -> Tensor:
        """EDM's sigmas, rising, float64."""
        _check_intervals(intervals)
        return edm_sigmas(intervals + 1, self.schedule.sigma_min, self.schedule.sigma_max, self.schedule.rho).flip(0)

    def sigma(self, t: Tensor) -> Tensor:
        """t itself."""
        return t.double()

    def noised(self, z_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """z_0 + sigma eps."""
        return z_0 + column(t, z_0).to(z_0.dtype) * eps

    def consistent(self, network: Denoise, z_t: Tensor, t: Tensor) -> Tensor:
        """f(z_t, sigma)."""
        precondition, sigma = Precondition(self.schedule.sigma_data), column(t.double(), z_t)
        d, rise = self.schedule.sigma_data, sigma - self.schedule.sigma_min
        c_skip, c_out = d**2 / (rise.square() + d**2), d * rise * precondition.c_in(sigma)
        output = network(precondition.c_in(sigma).to(z_t.dtype) * z_t, (self.time_scale * t.log()).to(z_t.dtype))
        return c_skip.to(z_t.dtype) * z_t + c_out.to(z_t.dtype) * output

    def ode_step(self, teacher: Denoise, z_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Heun's step of dz / dsigma = (z - D(z, sigma)) / sigma."""
        return heun_step(Precondition(self.schedule.sigma_data), teacher, z_t, t, s)

    def renoised(self, z_0: Tensor, eps: Tensor, s: Tensor) -> Tensor:
        """z_0 + sqrt(sigma^2 - sigma_min^2) eps: the estimate has sigma_min already."""
        added = (s.double().square() - self.schedule.sigma_min**2).clamp(min=0).sqrt()
        return z_0 + column(added, z_0).to(z_0.dtype) * eps


@dataclass(frozen=True)
class LatentConsistency:
    """On the discrete times of the teacher (Luo et al. 2023), whose prediction the network goes on making.

    c_skip = d^2 / ((scaling t)^2 + d^2), c_out = scaling t / sqrt((scaling t)^2 + d^2), F the predicted z_0.
    The teacher's step is DDIM's.

    Args:
        prediction: The teacher's and the student's.
        timestep_scaling: LCMScheduler's.

    Raises:
        InputError: if the prediction is eps and the last level is 0.
    """

    schedule: DiscreteSchedule
    prediction: Coordinate = "epsilon"
    sigma_data: float = 0.5
    timestep_scaling: float = 10.0

    def __post_init__(self) -> None:
        check_prediction(self.prediction, self.schedule.alpha_bar)

    def times(self, intervals: int) -> Tensor:
        """0 and the last time of each of so many equal parts, as LCMScheduler counts them, int64."""
        steps = len(self.schedule.betas)
        _check_intervals(intervals)
        if 2 * intervals > steps:
            raise InputError(f"{intervals} intervals do not fit in {steps} training times; take at most {steps // 2}.")
        return (torch.arange(intervals + 1) * steps // intervals - 1).clamp(min=0)

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt((1 - alpha_bar) / alpha_bar)."""
        alpha_bar_t = self._alpha_bar(t)
        return ((1 - alpha_bar_t) / alpha_bar_t).sqrt()

    def noised(self, z_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """sqrt(alpha_bar) z_0 + sqrt(1 - alpha_bar) eps."""
        return diffuse(z_0, eps, self._alpha_bar(t)).to(z_0.dtype)

    def consistent(self, network: Denoise, z_t: Tensor, t: Tensor) -> Tensor:
        """f(z_t, t)."""
        scaled = column(t.double() * self.timestep_scaling, z_t)
        c_skip = self.sigma_data**2 / (scaled.square() + self.sigma_data**2)
        c_out = scaled / (scaled.square() + self.sigma_data**2).sqrt()
        z_0, _ = ends_of(network(z_t, t), z_t, self._alpha_bar(t), self.prediction)
        return (c_skip * z_t + c_out * z_0).to(z_t.dtype)

    def ode_step(self, teacher: Denoise, z_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """DDIM's step."""
        levels = self._alpha_bar(t), self._alpha_bar(s)
        return ddim_step(teacher(z_t, t), z_t, *levels, self.prediction).to(z_t.dtype)

    def renoised(self, z_0: Tensor, eps: Tensor, s: Tensor) -> Tensor:
        """As `noised`."""
        return self.noised(z_0, eps, s)

    def _alpha_bar(self, t: Tensor) -> Tensor:
        return self.schedule.alpha_bar.to(t.device)[t]


def heun_step(precondition: Precondition, network: Denoise, x: Tensor, sigma: Tensor, next_sigma: Tensor) -> Tensor:
    """Heun's step of EDM's ODE from sigma to next_sigma, both (B,) and above 0 (EDM, algorithm 1)."""
    now, then = (column(value.double(), x).to(x.dtype) for value in (sigma, next_sigma))
    slope = (x - precondition.denoised(network, x, sigma)) / now
    euler = x + (then - now) * slope
    next_slope = (euler - precondition.denoised(network, euler, next_sigma)) / then
    return x + (then - now) * (slope + next_slope) / 2


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference (B,)."""
    return (a - b).square().flatten(1).mean(1)


def pseudo_huber_distance(a: Tensor, b: Tensor) -> Tensor:
    """sqrt(|a - b|^2 + c^2) - c with c = 0.00054 sqrt(dimensions) (Song & Dhariwal 2024, section 3.3), (B,)."""
    c = 0.00054 * math.sqrt(a[0].numel())
    return ((a - b).square().flatten(1).sum(1) + c**2).sqrt() - c


@dataclass(frozen=True)
class ConsistencyObjective:
    """distance(f(z_t, t), f'(z_s, s)) at neighbouring times t > s; f' has no gradient.

    The defaults are improved consistency training's (Song & Dhariwal 2024); the first consistency training has uniform
    pairs and no weight.

    Args:
        pairs: Intervals drawn uniformly, or with ln sigma about N(-1.1, 2^2) (``lognormal``).
        inverse_gap: Weigh by 1 / (sigma_t - sigma_s).
    """

    form: ConsistencyForm
    distance: Distance = pseudo_huber_distance
    pairs: Literal["uniform", "lognormal"] = "lognormal"
    inverse_gap: bool = True

    def draw_pair(self, intervals: int, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """t and s (B,), the two ends of one of so many intervals each."""
        times = self.form.times(intervals)
        weight = torch.ones(intervals, dtype=torch.float64)
        if self.pairs == "lognormal":
            # P(ln sigma is in the interval); a last level without signal has ln sigma = inf, which ends the last one.
            weight = torch.special.ndtr((self.form.sigma(times).log() + 1.1) / 2.0).diff()
        index = torch.multinomial(weight.to(generator.device), batch, replacement=True, generator=generator).cpu()
        return times[index + 1], times[index]

    def training_loss(
        self, student: Denoise, target: Denoise, z_0: Tensor, t: Tensor, s: Tensor, eps: Tensor
    ) -> Tensor:
        """Consistency training (B,): z_t and z_s are the same z_0 and eps.

        Args:
            target: The student itself, or a moving average of it.
        """
        return self._loss(student, target, self.form.noised(z_0, eps, t), self.form.noised(z_0, eps, s), t, s)

    def distillation_loss(
        self, student: Denoise, target: Denoise, teacher: Denoise, z_0: Tensor, t: Tensor, s: Tensor, eps: Tensor
    ) -> Tensor:
        """Consistency distillation (B,): z_s is the teacher's ODE step from z_t.

        Args:
            target: The student itself, or a moving average of it.
            teacher: A network trained to denoise, guided if need be (`guided`).
        """
        z_t = self.form.noised(z_0, eps, t)
        with torch.no_grad():
            z_s = self.form.ode_step(teacher, z_t, t, s)
        return self._loss(student, target, z_t, z_s, t, s)

    def _loss(self, student: Denoise, target: Denoise, z_t: Tensor, z_s: Tensor, t: Tensor, s: Tensor) -> Tensor:
        with torch.no_grad():
            goal = self.form.consistent(target, z_s, s)
        distance = self.distance(self.form.consistent(student, z_t, t), goal)
        if self.inverse_gap:
            distance = distance / (self.form.sigma(t) - self.form.sigma(s)).to(distance)
        return distance


def training_intervals(step: int, steps: int, first: int = 2, last: int = 150) -> int:
    """Intervals at a step of consistency training: N(k) - 1, about the square root of progress (Song et al. 2023)."""
    _check_progress(step, steps, first, last)
    share = step / steps
    return max(math.ceil(math.sqrt(share * ((last + 1) ** 2 - first**2) + first**2) - 1), 1)


def target_decay(intervals: int, first: int = 2, first_decay: float = 0.9) -> float:
    """Decay of the target's moving average that goes with `training_intervals`: exp(s_0 ln mu_0 / N)."""
    return math.exp(first * math.log(first_decay) / (intervals + 1))


def doubling_intervals(step: int, steps: int, first: int = 10, last: int = 1280) -> int:
    """Intervals at a step of improved consistency training: doubled after equal parts of the run (Song & Dhariwal)."""
    _check_progress(step, steps, first, last)
    part = max(steps // (int(math.log2(last // first)) + 1), 1)
    return int(min(first * 2 ** (step // part), last))


def guided(
    with_prompt: Denoise, without_prompt: Denoise, guidance_scale: Tensor, guidance_rescale: float = 0.0
) -> Denoise:
    """Classifier-free guidance of a teacher, a scale for each example (B,); 1 is none."""

    def denoise(z_t: Tensor, t: Tensor) -> Tensor:
        base = without_prompt(z_t, t)
        return guide(base, with_prompt(z_t, t), column(guidance_scale, base).to(base.dtype), guidance_rescale)

    return denoise


def draw_guidance(low: float, high: float, batch: int, generator: torch.Generator) -> Tensor:
    """Guidance scales (B,) for the student to learn, uniform.

    Raises:
        InputError: if they are not 0 <= low <= high.
    """
    if not 0 <= low <= high:
        raise InputError(f"guidance scales from {low} to {high} cannot be drawn: 0 <= lowest <= highest is needed.")
    return low + (high - low) * torch.rand(batch, generator=generator, device=generator.device)


def guidance_embedding(guidance_scale: Tensor, width: int) -> Tensor:
    """The scale as the student's input ``timestep_cond`` (B, width): sines and cosines of 1000 (scale - 1), as LCM's.

    ``width`` is the U-Net's ``time_cond_proj_dim``.
    """
    half = width // 2
    frequencies = torch.exp(-math.log(10000.0) / (half - 1) * torch.arange(half, device=guidance_scale.device))
    angles = 1000 * (guidance_scale - 1)[:, None] * frequencies
    return torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))


@torch.no_grad()
def sample(
    form: ConsistencyForm, network: Denoise, z_T: Tensor, times: Sequence[float], generator: torch.Generator
) -> Tensor:
    """z_0 in as many evaluations as there are times: denoise, put noise back, denoise ... (Song et al. 2023, alg. 1).

    Args:
        z_T: Noise at the first of the times, (B, ...).
        times: Falling; sigma or index as the form has them.
    """
    z_0 = z_T
    for number, time in enumerate(times):
        t = torch.full((len(z_T),), time, device=z_T.device)
        if number:
            noise = torch.randn(z_T.shape, generator=generator, dtype=z_T.dtype, device=generator.device)
            z_T = form.renoised(z_0, noise.to(z_T.device), t)
        z_0 = form.consistent(network, z_T, t)
    return z_0


def _check_intervals(intervals: int) -> None:
    if intervals < 1:
        raise InputError(f"{intervals} intervals of time were asked for; a pair of neighbours needs at least 1.")


def _check_progress(step: int, steps: int, first: int, last: int) -> None:
    if not (0 <= step <= steps and steps > 0 and 1 <= first <= last):
        raise InputError(
            f"step {step} of {steps} with {first} to {last} intervals is no place in a run: "
            "0 <= step <= steps and 1 <= first <= last are needed."
        )
