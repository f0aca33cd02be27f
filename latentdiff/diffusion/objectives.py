"""Training objectives: draw z_t from z_0 and eps, say what the network should predict, weigh the error.

Shapes: z_0, z_t, eps (B, C, h, w); t (B,); alpha_bar (T,).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from latentdiff.diffusion.coordinates import Denoise, diffuse, velocity
from latentdiff.diffusion.schedule import snr

PredictionType = Literal["epsilon", "v_prediction"]


def min_snr_weight(alpha_bar_t: Tensor, gamma: float, prediction: PredictionType) -> Tensor:
    """min(snr, gamma) expressed as a weight (B,) of the eps- or v-error (Hang et al. 2023, section 3.4)."""
    snr_t = snr(alpha_bar_t)
    return snr_t.clamp(max=gamma) / (snr_t if prediction == "epsilon" else snr_t + 1)


@dataclass(frozen=True)
class DenoisingObjective:
    """E |eps_theta(z_t, t) - eps|^2 (DDPM, equation 14), or the same on v, optionally min-SNR weighted."""

    alpha_bar: Tensor
    prediction: PredictionType = "epsilon"
    min_snr_gamma: float | None = None

    def draw_times(self, batch: int, generator: torch.Generator) -> Tensor:
        """t (B,), one from each of B equal parts of 0..T-1: uniform, with less variance than B free draws."""
        offsets = torch.rand(batch, generator=generator)
        order = torch.randperm(batch, generator=generator)
        return ((order + offsets) / batch * len(self.alpha_bar)).long().clamp(max=len(self.alpha_bar) - 1)

    def loss(self, denoise: Denoise, z_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Squared error (B,), mean over the latent's elements."""
        alpha_bar_t = self.alpha_bar.to(z_0.device)[t]
        target = eps if self.prediction == "epsilon" else velocity(z_0, eps, alpha_bar_t)
        error = (denoise(diffuse(z_0, eps, alpha_bar_t), t).float() - target).square().flatten(1).mean(1)
        if self.min_snr_gamma is not None:
            error = error * min_snr_weight(alpha_bar_t, self.min_snr_gamma, self.prediction)
        return error
