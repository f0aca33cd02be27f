"""Training objectives on continuous times: EDM's, the straight flow's and VDM's.

Each is an `latentdiff.diffusion.objectives.Objective`: t (B,) is real, and what the network is told; z_t is scaled as
the network sees it when the scheduler of `scheduler_config` samples.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from latentdiff.diffusion.coordinates import Coordinate, Denoise, column
from latentdiff.diffusion.learned_schedule import LearnedSchedule
from latentdiff.diffusion.likelihood import antithetic_times, diffusion_term, end_terms
from latentdiff.diffusion.objectives import stratified
from latentdiff.diffusion.process import EDMSchedule, FlowSchedule
from latentdiff.diffusion.schedule import DiscreteSchedule, NoiseSchedule, check_increasing
from latentdiff.errors import InputError


def stratified_normal(batch: int, generator: torch.Generator) -> Tensor:
    """Standard normal numbers (B,) float64, one from each of B equally likely parts, in random order."""
    u = stratified(batch, generator).double().clamp(1e-7, 1 - 1e-7)
    return torch.special.ndtri(u)


@dataclass(frozen=True)
class Precondition:
    """D(x; sigma) = c_skip x + c_out F(c_in x; ln sigma / 4): both ends of F have unit variance (EDM, table 1).

    Args:
        sigma_data: Standard deviation of the data.
    """

    sigma_data: float = 0.5

    def c_in(self, sigma: Tensor) -> Tensor:
        """Scale of the network's input."""
        return (sigma.square() + self.sigma_data**2).rsqrt()

    def c_skip(self, sigma: Tensor) -> Tensor:
        """Scale of the noisy input in the output."""
        return self.sigma_data**2 / (sigma.square() + self.sigma_data**2)

    def c_out(self, sigma: Tensor) -> Tensor:
        """Scale of the network's output."""
        return sigma * self.sigma_data * (sigma.square() + self.sigma_data**2).rsqrt()

    def denoised(self, network: Denoise, x: Tensor, sigma: Tensor) -> Tensor:
        """D (B, ...) at x = x_0 + sigma eps, sigma (B,)."""
        s = column(sigma, x).to(x.dtype)
        output = network(self.c_in(s) * x, (sigma.log() / 4).to(x.dtype))
        return self.c_skip(s) * x + self.c_out(s) * output


@dataclass(frozen=True)
class EDM:
    """E |D(z_0 + sigma eps; sigma) - z_0|^2 / c_out(sigma)^2 with ln sigma ~ N(mean, std^2) (EDM, equation 8).

    The network says F of `Precondition`, whose squared error has weight 1.

    Args:
        schedule: Range of sigma in sampling, and the standard deviation of the data.
        mean: Of ln sigma in training.
        std: Of ln sigma in training.
    """

    schedule: EDMSchedule = EDMSchedule()
    mean: float = -1.2
    std: float = 1.2

    output_channels = 1

    def draw_times(self, batch: int, generator: torch.Generator) -> Tensor:
        """t = ln sigma / 4 (B,), spread evenly over the batch."""
        return ((self.mean + self.std * stratified_normal(batch, generator)) / 4).float()

    def loss(self, denoise: Denoise, z_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Weighted squared error (B,), mean over the latent's elements."""
        sigma = (4 * t).exp()
        precondition = Precondition(self.schedule.sigma_data)
        guess = precondition.denoised(denoise, z_0 + column(sigma, z_0).to(z_0.dtype) * eps, sigma)
        error = (guess - z_0).square().flatten(1).mean(1)
        return error / precondition.c_out(sigma).square()

    def scheduler_config(self) -> dict[str, Any]:
        """What `latentdiff.diffusion.samplers.make_scheduler` makes samplers of."""
        return {**self.schedule.to_config(), "prediction_type": "epsilon"}


@dataclass(frozen=True)
class Flow:
    """E |u_theta(z_t, t) - (eps - z_0)|^2 with z_t = (1 - sigma) z_0 + sigma eps (flow matching, rectified flow).

    sigma is logit-normal (Esser et al. 2024, equation 19), then shifted by the schedule; t = sigma times its
    num_train_timesteps.

    Args:
        mean: Of logit sigma; above 0 prefers noise.
        std: Of logit sigma.
    """

    schedule: FlowSchedule = FlowSchedule()
    mean: float = 0.0
    std: float = 1.0

    output_channels = 1

    def draw_times(self, batch: int, generator: torch.Generator) -> Tensor:
        """t in (0, num_train_timesteps) (B,), spread evenly over the batch."""
        share = torch.sigmoid(self.mean + self.std * stratified_normal(batch, generator))
        return (self.schedule.sigma(share) * self.schedule.num_train_timesteps).float()

    def loss(self, denoise: Denoise, z_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Squared error of the velocity (B,), mean over the latent's elements."""
        sigma = column(t / self.schedule.num_train_timesteps, z_0).to(z_0.dtype)
        z_t = (1 - sigma) * z_0 + sigma * eps
        return (denoise(z_t, t).to(z_0.dtype) - (eps - z_0)).square().flatten(1).mean(1)

    def scheduler_config(self) -> dict[str, Any]:
        """What `latentdiff.diffusion.samplers.make_scheduler` makes samplers of."""
        return self.schedule.to_config()


@dataclass(frozen=True)
class ContinuousTime:
    """VDM's bound in continuous time, one antithetic draw of t, in bits per dimension (VDM, section 4).

    The network is told t (T - 1), so that the schedule's T levels are its times 0..T-1 when it samples. The gradient of
    a `LearnedSchedule`'s ends is the bound's; between them, where the bound does not depend on the schedule, it is that
    of the squared loss, which makes the draws' variance small (VDM, section 5).

    Args:
        schedule: Fixed, or learned: then its parameters are trained with the network's.
        prediction: What the network predicts.
        dequantisation: ``discretised`` for pixels 0..255 in [-1, 1], ``none`` for a density (latents).
        num_train_timesteps: T.

    Raises:
        InputError: if the noise does not grow with t or there are no two levels.
    """

    schedule: NoiseSchedule
    prediction: Coordinate = "epsilon"
    dequantisation: Literal["none", "discretised"] = "discretised"
    num_train_timesteps: int = 1000

    output_channels = 1

    def __post_init__(self) -> None:
        if self.num_train_timesteps < 2:
            raise InputError(f"num_train_timesteps is {self.num_train_timesteps}; both ends of the schedule need one.")
        check_increasing(self.schedule)

    def draw_times(self, batch: int, generator: torch.Generator) -> Tensor:
        """t in [0, T - 1) (B,), evenly spaced from a random start."""
        return (antithetic_times(batch, generator) * (self.num_train_timesteps - 1)).float()

    def loss(self, denoise: Denoise, z_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Bits per dimension (B,); one eps serves all terms.

        Raises:
            InputError: if the data do not fit the decoder.
        """
        dimensions = z_0[0].numel() * math.log(2)
        share = t.double() * self.schedule.t_end / (self.num_train_timesteps - 1)
        ends = end_terms(self.schedule, z_0, eps, self.dequantisation)
        diffusion = torch.zeros_like(ends["prior"])

        def of_the_square(gradient: Tensor) -> Tensor:
            return gradient * (2 * diffusion.detach() / dimensions).to(gradient)

        if isinstance(self.schedule, LearnedSchedule):
            gamma, slope = self.schedule.gamma_and_slope(share, of_the_square)
        else:
            gamma, slope = torch.func.jvp(
                self.schedule.gamma, (share,), (torch.full_like(share, self.schedule.t_end),)
            )[:2]
        diffusion = diffusion_term(gamma, slope, denoise, z_0, t, eps, self.prediction)
        return (ends["prior"] + ends["reconstruction"] + diffusion) / dimensions

    def scheduler_config(self) -> dict[str, Any]:
        """What `latentdiff.diffusion.samplers.make_scheduler` makes samplers of, with the schedule as it is now."""
        levels = DiscreteSchedule.from_gamma(self.schedule, self.num_train_timesteps)
        return {**levels.to_config(), "prediction_type": self.prediction}
