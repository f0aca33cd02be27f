"""Training objectives on discrete times: draw t, say what the network should predict, weigh the error.

An objective is what `Objective` asks for. Its t is what the network is told, as the scheduler tells it when sampling;
objectives on continuous times are in `latentdiff.diffusion.continuous_objectives`.

Shapes: z_0, z_t, eps (B, C, h, w); t (B,); alpha_bar (T,).
"""

import math
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from latentdiff.diffusion.coordinates import (
    Coordinate,
    Denoise,
    Variance,
    check_prediction,
    diffuse,
    in_coordinate,
)
from latentdiff.diffusion.likelihood import prior_kl, vlb_term
from latentdiff.diffusion.schedule import DiscreteSchedule, snr

PredictionType = Literal["epsilon", "sample", "v_prediction"]


class Objective(Protocol):
    """What a training recipe asks of an objective."""

    @property
    def output_channels(self) -> int:
        """Channels of the network's output for each one of z: 1, or 2 where it also says its variance."""

    def draw_times(self, batch: int, generator: torch.Generator) -> Tensor:
        """t (B,), drawn on the generator's device."""

    def loss(self, denoise: Denoise, z_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """The loss of each example (B,); its mean is what is minimised."""


def stratified(batch: int, generator: torch.Generator) -> Tensor:
    """One number from each of B equal parts of [0, 1), in random order: uniform, with less variance than free draws."""
    offsets = torch.rand(batch, generator=generator, device=generator.device)
    order = torch.randperm(batch, generator=generator, device=generator.device)
    return (order + offsets) / batch


def discrete_times(steps: int, batch: int, generator: torch.Generator) -> Tensor:
    """t (B,) of 0..T-1, int64, uniform and spread evenly over the batch."""
    return (stratified(batch, generator) * steps).long().clamp(max=steps - 1)


def error_weight(z_0_weight: Tensor, alpha_bar_t: Tensor, prediction: PredictionType) -> Tensor:
    """A weight (B,) of |z_0 - z_0'|^2, said as the weight of the squared error of what is predicted.

    |eps - eps'|^2 is snr times that, and |v - v'|^2 is snr + 1 times.
    """
    match prediction:
        case "epsilon":
            return z_0_weight / snr(alpha_bar_t)
        case "sample":
            return z_0_weight
        case "v_prediction":
            return z_0_weight / (snr(alpha_bar_t) + 1)


def min_snr_weight(alpha_bar_t: Tensor, gamma: float, prediction: PredictionType) -> Tensor:
    """min(snr, gamma) expressed as a weight (B,) of the predicted value's error (Hang et al. 2023, section 3.4)."""
    return error_weight(snr(alpha_bar_t).clamp(max=gamma), alpha_bar_t, prediction)


def p2_weight(alpha_bar_t: Tensor, gamma: float, k: float, prediction: PredictionType) -> Tensor:
    """1 / (k + snr)^gamma on the error of eps (Choi et al. 2022, equation 8), as a weight of the predicted value's."""
    snr_t = snr(alpha_bar_t)
    return error_weight(snr_t / (k + snr_t) ** gamma, alpha_bar_t, prediction)


@dataclass(frozen=True)
class WeightedLoss:
    """E w(t) |prediction - target|^2 at uniform t; `weight` is 1 here.

    Args:
        alpha_bar: The schedule's levels (T,).
        prediction: What the network predicts, and the squared error is of.
        channels: Weights (C,) of the channels of z, 1 on average; None weighs them alike. The minimum is the same for
            any, since each channel's best prediction is its own mean: they say where a small network should err.

    Raises:
        InputError: if the prediction is eps and the last level is 0.
    """

    alpha_bar: Tensor
    prediction: PredictionType = "epsilon"
    channels: Tensor | None = field(default=None, kw_only=True)

    output_channels = 1

    def __post_init__(self) -> None:
        check_prediction(self.prediction, self.alpha_bar)

    def draw_times(self, batch: int, generator: torch.Generator) -> Tensor:
        """t (B,) of 0..T-1, int64, spread evenly over the batch."""
        return discrete_times(len(self.alpha_bar), batch, generator)

    def loss(self, denoise: Denoise, z_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Weighted squared error (B,), mean over the latent's elements."""
        alpha_bar_t = self.alpha_bar.to(t.device, torch.promote_types(z_0.dtype, torch.float32))[t]
        target = in_coordinate(z_0, eps, alpha_bar_t, self.prediction)
        error = (denoise(diffuse(z_0, eps, alpha_bar_t), t).to(target.dtype) - target).square()
        if self.channels is not None:
            error = error * self.channels.to(error)[:, None, None]
        return error.flatten(1).mean(1) * self.weight(alpha_bar_t)

    def weight(self, alpha_bar_t: Tensor) -> Tensor:
        """w at these levels (B,)."""
        return torch.ones_like(alpha_bar_t)


@dataclass(frozen=True)
class DenoisingObjective(WeightedLoss):
    """L_simple = E |eps_theta(z_t, t) - eps|^2 (DDPM, equation 14), or the same on z_0 or v; optionally min-SNR.

    Args:
        min_snr_gamma: Clamp of the weight (Hang et al. 2023); None weighs every time alike.
    """

    min_snr_gamma: float | None = None

    def weight(self, alpha_bar_t: Tensor) -> Tensor:
        """1, or `min_snr_weight`."""
        if self.min_snr_gamma is None:
            return torch.ones_like(alpha_bar_t)
        return min_snr_weight(alpha_bar_t, self.min_snr_gamma, self.prediction)


@dataclass(frozen=True)
class P2(WeightedLoss):
    """Perception-prioritised weighting: L_simple with less weight where little noise is left (Choi et al. 2022)."""

    gamma: float = 1.0
    k: float = 1.0

    def weight(self, alpha_bar_t: Tensor) -> Tensor:
        """`p2_weight`."""
        return p2_weight(alpha_bar_t, self.gamma, self.k, self.prediction)


@dataclass(frozen=True)
class VLB:
    """L_vlb = L_T + T E_t L_t-1 (L_0 at t = 0), an unbiased draw of the bound in bits per dimension (DDPM, equation 5).

    With one step and ``sample`` this is the loss of a VAE whose latent is as large as its data, whose encoder is
    N(sqrt(1 - beta_1) z_0, beta_1 I), and whose decoder is the network with variance beta_1: see `one_step_vae`.

    Args:
        variance: Of p(z_t-1 | z_t); for ``learned_range`` the network has twice the channels.
        dequantisation: ``discretised`` for pixels 0..255 in [-1, 1], ``none`` for a density (latents).

    Raises:
        InputError: if the prediction is eps and the last level is 0.
    """

    schedule: DiscreteSchedule
    prediction: Coordinate = "epsilon"
    variance: Variance = "fixed_large"
    dequantisation: Literal["none", "discretised"] = "discretised"

    def __post_init__(self) -> None:
        check_prediction(self.prediction, self.schedule.alpha_bar)

    @property
    def output_channels(self) -> int:
        """2 with a learned variance."""
        return 2 if self.variance == "learned_range" else 1

    def draw_times(self, batch: int, generator: torch.Generator) -> Tensor:
        """t (B,) of 0..T-1, int64, spread evenly over the batch."""
        return discrete_times(len(self.schedule.betas), batch, generator)

    def loss(self, denoise: Denoise, z_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Bits per dimension (B,).

        Raises:
            InputError: if the data do not fit the decoder.
        """
        z_t = diffuse(z_0.double(), eps.double(), self.schedule.alpha_bar.to(t.device)[t])
        return self.bits(denoise(z_t.to(z_0.dtype), t), z_0, t, z_t)

    def bits(self, output: Tensor, z_0: Tensor, t: Tensor, z_t: Tensor) -> Tensor:
        """The same of a prediction that is there already: output (B, C or 2 C, ...) at z_t (B, C, ...)."""
        settings = (self.prediction, self.variance, self.dequantisation)
        nats = len(self.schedule.betas) * vlb_term(self.schedule, t, output, z_t, z_0, *settings)
        return (nats + prior_kl(z_0, self.schedule.alpha_bar[-1:])) / (z_0[0].numel() * math.log(2))


def one_step_vae(beta: float = 1.0, dequantisation: Literal["none", "discretised"] = "discretised") -> VLB:
    """A VAE with a latent as large as its data, as the bound of a diffusion of one step with beta_1 = ``beta``.

    Raises:
        InputError: if beta is not in (0, 1].
    """
    schedule = DiscreteSchedule(torch.tensor([beta], dtype=torch.float64))
    return VLB(schedule, "sample", "fixed_large", dequantisation)


@dataclass(frozen=True)
class Hybrid:
    """L_hybrid = L_simple + lambda L_vlb, where L_vlb teaches the variance alone (improved DDPM, equation 16).

    The network has twice the channels: prediction, and the variance's place in its range.

    Args:
        vlb_weight: lambda; L_vlb is in bits per dimension.
    """

    schedule: DiscreteSchedule
    prediction: PredictionType = "epsilon"
    vlb_weight: float = 0.001
    dequantisation: Literal["none", "discretised"] = "discretised"

    output_channels = 2

    def __post_init__(self) -> None:
        check_prediction(self.prediction, self.schedule.alpha_bar)

    def draw_times(self, batch: int, generator: torch.Generator) -> Tensor:
        """t (B,) of 0..T-1, int64, spread evenly over the batch."""
        return discrete_times(len(self.schedule.betas), batch, generator)

    def loss(self, denoise: Denoise, z_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """L_simple + lambda L_vlb (B,); the mean's gradient comes from L_simple alone."""
        alpha_bar_t = self.schedule.alpha_bar.to(t.device)[t]
        z_t = diffuse(z_0.double(), eps.double(), alpha_bar_t)
        output = denoise(z_t.to(z_0.dtype), t)
        mean, learned = output.chunk(2, dim=1)
        target = in_coordinate(z_0, eps, alpha_bar_t.to(z_0.dtype), self.prediction)
        simple = (mean.to(target.dtype) - target).square().flatten(1).mean(1)
        bound = VLB(self.schedule, self.prediction, "learned_range", self.dequantisation)
        return simple + self.vlb_weight * bound.bits(torch.cat([mean.detach(), learned], dim=1), z_0, t, z_t)
