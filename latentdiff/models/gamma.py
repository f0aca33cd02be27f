"""VDM's learned noise schedule: a monotone network of time."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LearnedGamma(nn.Module):
    """gamma(t) = -log snr for t in [0, 1], increasing whatever the weights are (VDM, appendix on the schedule).

    g(t) = l1(t) + l3(sigmoid(l2(l1(t)))) with positive weights, moved and scaled to go from gamma_min to gamma_max.
    A `latentdiff.diffusion.schedule.NoiseSchedule`; it starts close to the log-linear one.
    """

    t_end = 1.0

    def __init__(self, gamma_min: float = -13.3, gamma_max: float = 5.0, width: int = 1024) -> None:
        super().__init__()
        self.gamma_min = nn.Parameter(torch.tensor(gamma_min))
        self.log_span = nn.Parameter(torch.tensor(math.log(gamma_max - gamma_min)))
        self.first = nn.Parameter(torch.tensor([0.0, 0.0]))
        """Weight (before softplus) and bias of l1."""
        self.inner = nn.Parameter(torch.randn(2, width))
        self.outer = nn.Parameter(torch.full((width,), -math.log(width)))

    def gamma(self, t: Tensor) -> Tensor:
        """Any shape of t, the same out."""
        start, end = self._unscaled(torch.tensor([0.0, 1.0]).to(self.inner))
        span = self.log_span.exp() / (end - start)
        return self.gamma_min + span * (self._unscaled(t.to(self.inner)) - start)

    forward = gamma

    def _unscaled(self, t: Tensor) -> Tensor:
        first = F.softplus(self.first[0]) * t + self.first[1]
        inner = torch.sigmoid(F.softplus(self.inner[0]) * first[..., None] + self.inner[1])
        return first + inner @ F.softplus(self.outer)
