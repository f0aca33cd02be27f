"""Noise schedules: how much of the signal is left at time t.

Everything is variance preserving: z_t = sqrt(alpha_bar_t) z_0 + sqrt(1 - alpha_bar_t) eps. The other families are the
same path at another scale: with snr = alpha_bar / (1 - alpha_bar), EDM's sigma is snr^(-1/2) (`alpha_bar_of_sigma`) and
the time of a straight flow is sigma / (1 + sigma) (`alpha_bar_of_flow_time`).

Time is an index 0 .. T-1, as in diffusers, where a schedule is discrete (index t is the papers' t + 1), and lies in
[0, 1] where it is continuous. gamma = -log snr, as in VDM, is how either says its noise at any real t.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from diffusers import DDPMScheduler
from torch import Tensor
from torch.nn import functional as F

from latentdiff.errors import InputError

BETA_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
"""The papers' names and diffusers' names. "linear" is DDPM's, linear in beta; what CompVis and AudioLDM code calls
"linear" is ``scaled_linear``, linear in sqrt(beta). "cosine" is improved DDPM's (equation 17)."""
CONFIG_KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)
"""The keys of a diffusers scheduler's configuration that fix its betas."""
LEAST_ALPHA_BAR = 2.0**-24
"""What diffusers' solvers in sigma put in the place of a last alpha_bar of 0, where sigma would be infinite."""


class NoiseSchedule(Protocol):
    """What discrete and continuous schedules have in common."""

    @property
    def t_end(self) -> float:
        """The last time; the first is 0."""

    def gamma(self, t: Tensor) -> Tensor:
        """gamma = -log snr at real times t, increasing; any shape, the same out."""


@dataclass(frozen=True, eq=False)
class DiscreteSchedule:
    """T steps of q(z_t | z_t-1) = N(sqrt(1 - beta_t) z_t-1, beta_t I) (DDPM, equation 2).

    Args:
        betas: (T,), each in (0, 1); the last one may be 1, which leaves no signal at all (zero terminal snr).

    Raises:
        InputError: if there is no step or a beta is out of range.
    """

    betas: Tensor

    def __post_init__(self) -> None:
        betas = self.betas.double()
        if betas.dim() != 1 or len(betas) == 0:
            raise InputError(f"betas have the shape {tuple(betas.shape)}; a schedule needs T >= 1 of them in a row.")
        wrong = ~((betas > 0) & (betas < 1))
        wrong[-1] &= betas[-1] != 1
        if wrong.any():
            t = int(wrong.nonzero()[0])
            raise InputError(f"beta at t = {t} is {betas[t]:g}; betas lie in (0, 1), and only the last one may be 1.")
        object.__setattr__(self, "betas", betas)

    @classmethod
    def named(
        cls,
        name: str,
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        zero_terminal_snr: bool = False,
    ) -> "DiscreteSchedule":
        """A schedule of `BETA_SCHEDULES`; cosine has no ends to choose.

        Args:
            zero_terminal_snr: Shift and scale sqrt(alpha_bar) so that it ends at 0 (Lin et al. 2023, algorithm 1).

        Raises:
            InputError: if the name is unknown or a value is out of range.
        """
        if name not in BETA_SCHEDULES:
            raise InputError(f"unknown noise schedule '{name}'; choose one of {', '.join(BETA_SCHEDULES)}.")
        return cls.from_config(
            {
                "num_train_timesteps": num_train_timesteps,
                "beta_start": beta_start,
                "beta_end": beta_end,
                "beta_schedule": BETA_SCHEDULES[name],
                "rescale_betas_zero_snr": zero_terminal_snr,
            }
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "DiscreteSchedule":
        """The betas that diffusers itself makes of a scheduler's configuration, so that both are the same process.

        Raises:
            InputError: if the configuration has no betas or ones that cannot be.
        """
        process = {key: config[key] for key in CONFIG_KEYS if config.get(key) is not None}
        if not {"beta_schedule", "trained_betas"} & set(process):
            raise InputError("the scheduler's configuration has neither beta_schedule nor trained_betas.")
        steps, trained = process.get("num_train_timesteps", 1000), process.get("trained_betas")
        if trained is not None and len(trained) != steps:
            raise InputError(f"trained_betas has {len(trained)} values but num_train_timesteps is {steps}.")
        if steps < 1:
            raise InputError(f"num_train_timesteps is {steps}; a schedule needs at least 1 step.")
        for key in ("beta_start", "beta_end"):
            if not 0 < process.get(key, 0.01) < 1:
                raise InputError(f"{key} is {process[key]}; betas lie in (0, 1).")
        try:
            betas = DDPMScheduler(**{**process, "rescale_betas_zero_snr": False}).betas.double()
            rescale = process.get("rescale_betas_zero_snr", False)
            if rescale and trained is not None and torch.log1p(-betas).sum() <= math.log(1.01 * LEAST_ALPHA_BAR):
                betas[-1] = 1.0  # these have been rescaled already, by `to_config` or by `make_scheduler`
            elif rescale:
                betas = DDPMScheduler(**process).betas
            return cls(betas)
        except NotImplementedError:
            raise InputError(f"beta_schedule '{process['beta_schedule']}' is not one that diffusers knows.") from None

    @classmethod
    def from_alpha_bar(cls, alpha_bar: Tensor) -> "DiscreteSchedule":
        """The schedule with these signal levels (T,).

        Raises:
            InputError: if they do not fall strictly from below 1 to 0 or more.
        """
        alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar.double()])
        if not ((alpha_bar.diff() < 0).all() and alpha_bar[-1] >= 0):
            raise InputError("alpha_bar must fall strictly with t, from below 1 to no less than 0.")
        return cls(1 - alpha_bar[1:] / alpha_bar[:-1])

    @classmethod
    def from_gamma(cls, schedule: NoiseSchedule, num_train_timesteps: int) -> "DiscreteSchedule":
        """T equally spaced levels of a continuous schedule, both ends included: VDM's discrete model of T - 1 steps.

        beta_t = 1 - exp(log alpha_bar_t - log alpha_bar_t-1), which keeps its digits where both are close to 1.
        """
        times = torch.linspace(0, schedule.t_end, num_train_timesteps, dtype=torch.float64)
        log_alpha_bar = F.logsigmoid(-schedule.gamma(times).detach().double().cpu())
        return cls(-torch.expm1(log_alpha_bar.diff(prepend=torch.zeros(1, dtype=torch.float64))))

    def to_config(self) -> dict[str, Any]:
        """The keys with which any diffusers scheduler runs this process (it holds betas in float32).

        Zero terminal snr is said as well: the solvers in sigma must know (and rescaling once more changes nothing).
        """
        config: dict[str, Any] = {"num_train_timesteps": len(self.betas), "trained_betas": self.betas.tolist()}
        if self.betas[-1] == 1:
            config["rescale_betas_zero_snr"] = True
        return config

    def lifted(self) -> "DiscreteSchedule":
        """The same with a last alpha_bar of `LEAST_ALPHA_BAR` where it was 0, for what has to divide by it.

        Where the one before is about as small (long schedules), it is half of that: alpha_bar falls in any case.
        """
        if self.betas[-1] < 1:
            return self
        before = self.alpha_bar[-2] if len(self.betas) > 1 else torch.ones((), dtype=torch.float64)
        kept = (LEAST_ALPHA_BAR / before).clamp(max=0.5)
        return DiscreteSchedule(torch.cat([self.betas[:-1], (1 - kept).reshape(1)]))

    @cached_property
    def alpha_bar(self) -> Tensor:
        """alpha_bar_t = prod (1 - beta_s), s <= t (T,) float64: in float32 1 - alpha_bar_0 loses half its digits."""
        return self._log_alpha_bar.exp()

    @cached_property
    def _log_alpha_bar(self) -> Tensor:
        return torch.log1p(-self.betas).cumsum(0)

    @cached_property
    def _gamma(self) -> Tensor:
        return torch.log(-torch.expm1(self._log_alpha_bar)) - self._log_alpha_bar

    @property
    def t_end(self) -> float:
        """T - 1."""
        return float(len(self.betas) - 1)

    def gamma(self, t: Tensor) -> Tensor:
        """-log snr at t in [0, T-1], linear between two training times.

        Raises:
            InputError: if the snr ends at zero, where gamma is infinite.
        """
        if self.betas[-1] == 1:
            raise InputError("the schedule ends without any signal (zero terminal snr), so its log-snr is not finite.")
        gamma = self._gamma.to(t.device)
        low = t.floor().long().clamp(0, max(len(gamma) - 2, 0))
        high = (low + 1).clamp(max=len(gamma) - 1)
        return torch.lerp(gamma[low], gamma[high], (t - low).to(gamma))


@dataclass(frozen=True)
class LogLinearSchedule:
    """gamma(t) = gamma_min + (gamma_max - gamma_min) t: VDM's fixed schedule, with the ends it learned on CIFAR-10.

    Raises:
        InputError: if gamma does not grow.
    """

    gamma_min: float = -13.3
    gamma_max: float = 5.0
    t_end: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        if not self.gamma_min < self.gamma_max:
            raise InputError(f"gamma must grow with t, but goes from {self.gamma_min} to {self.gamma_max}.")

    def gamma(self, t: Tensor) -> Tensor:
        """-log snr at t in [0, 1]."""
        return self.gamma_min + (self.gamma_max - self.gamma_min) * t


def check_increasing(schedule: NoiseSchedule) -> None:
    """Refuse a schedule with less noise at a later time, judged at 1,001 times.

    Raises:
        InputError: if gamma falls or stands still anywhere, or is not a number.
    """
    times = torch.linspace(0, schedule.t_end, 1001, dtype=torch.float64)
    gamma = schedule.gamma(times).detach()
    wrong = ~(gamma.diff() > 0)
    if schedule.t_end > 0 and wrong.any():
        i = int(wrong.nonzero()[0])
        raise InputError(
            f"the noise schedule is not monotone: gamma = -log snr goes from {gamma[i]:g} to {gamma[i + 1]:g} "
            f"between t = {times[i]:g} and {times[i + 1]:g}, but noise must grow with t."
        )


def snr(alpha_bar: Tensor) -> Tensor:
    """alpha_bar / (1 - alpha_bar), any shape (VDM, equation 2)."""
    return alpha_bar / (1 - alpha_bar)


def time_of_log_snr(schedule: NoiseSchedule, log_snr: Tensor) -> Tensor:
    """The inverse of log snr(t) = -gamma(t): real times in [0, t_end], float64, found by bisection.

    Raises:
        InputError: if the schedule never has such a log-snr.
    """
    log_snr = log_snr.double()
    low = torch.zeros_like(log_snr)
    high = torch.full_like(log_snr, schedule.t_end)
    first, last = -schedule.gamma(low), -schedule.gamma(high)
    slack = 1e-9 * (1 + log_snr.abs())
    if ((log_snr > first + slack) | (log_snr < last - slack)).any():
        raise InputError(
            f"log-snr from {log_snr.min():g} to {log_snr.max():g} is asked for, "
            f"but the schedule has {last.max():g} to {first.max():g}."
        )
    for _ in range(64):
        middle = (low + high) / 2
        before = -schedule.gamma(middle) > log_snr
        low, high = torch.where(before, middle, low), torch.where(before, high, middle)
    return (low + high) / 2


def edm_sigmas(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """sigma_i = (sigma_max^(1/rho) + i/(n-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho, (n,) falling (EDM, eq. 5).

    Raises:
        InputError: if there are no two steps, the ends are not 0 < sigma_min < sigma_max or rho is not positive.
    """
    if steps < 2 or not 0 < sigma_min < sigma_max or rho <= 0:
        raise InputError(
            f"{steps} sigmas from {sigma_min} to {sigma_max} with rho {rho} cannot be made: "
            "at least 2 steps, 0 < sigma_min < sigma_max and rho > 0 are needed."
        )
    return torch.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), steps, dtype=torch.float64) ** rho


def alpha_bar_of_sigma(sigma: Tensor) -> Tensor:
    """1 / (1 + sigma^2): x_0 + sigma eps (EDM) is z_t / sqrt(alpha_bar_t)."""
    return 1 / (1 + sigma.square())


def alpha_bar_of_flow_time(t: Tensor) -> Tensor:
    """(1 - t)^2 / ((1 - t)^2 + t^2): (1 - t) x_0 + t eps (straight flow) is z_t / (sqrt(alpha_bar) + sqrt(1 - it))."""
    return (1 - t).square() / ((1 - t).square() + t.square())
