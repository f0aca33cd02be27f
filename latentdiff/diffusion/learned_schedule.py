"""VDM's learned noise schedule: its two ends, and a monotone function of time between them."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LearnedSchedule(nn.Module):
    """gamma(t) = -log snr for t in [0, 1], increasing whatever the weights are (VDM, appendix on the schedule).

    g(t) = l1(t) + l3(sigmoid(l2(l1(t)))) with positive weights, moved and scaled to go from gamma_min to gamma_max.
    A `latentdiff.diffusion.schedule.NoiseSchedule`; it starts close to the log-linear one.

    Args:
        gamma_min: Where gamma begins before it is trained.
        gamma_max: Where it ends.
        width: Hidden units of l2; 0 learns the two ends only and stays log-linear (VDM's code for CIFAR-10).
    """

    t_end = 1.0

    def __init__(self, gamma_min: float = -13.3, gamma_max: float = 5.0, width: int = 1024) -> None:
        super().__init__()
        self.gamma_min = nn.Parameter(torch.tensor(gamma_min))
        self.log_span = nn.Parameter(torch.tensor(math.log(gamma_max - gamma_min)))
        self.width = width
        if width:
            self.first = nn.Parameter(torch.tensor([0.0, 0.0]))
            """Weight (before softplus) and bias of l1."""
            self.inner = nn.Parameter(torch.randn(2, width))
            self.outer = nn.Parameter(torch.full((width,), -math.log(width)))

    def gamma(self, t: Tensor) -> Tensor:
        """Any shape of t, the same out."""
        return self.gamma_min + self.log_span.exp() * self.interior(t)

    forward = gamma

    def interior(self, t: Tensor) -> Tensor:
        """How far gamma has come at t, from 0 at 0 to 1 at 1."""
        t = t.to(self.gamma_min)
        if not self.width:
            return t
        start, end = self._unscaled(torch.tensor([0.0, 1.0]).to(t))
        return (self._unscaled(t) - start) / (end - start)

    def gamma_and_slope(self, t: Tensor, interior_gradient: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """gamma and d gamma / dt at t (B,), where the interior's gradient goes through a function (B,) -> (B,)."""
        interior, slope = torch.func.jvp(self.interior, (t,), (torch.ones_like(t),))[:2]
        for value in (interior, slope):
            if value.requires_grad:
                value.register_hook(interior_gradient)
        return self.gamma_min + self.log_span.exp() * interior, self.log_span.exp() * slope

    def _unscaled(self, t: Tensor) -> Tensor:
        first = F.softplus(self.first[0]) * t + self.first[1]
        inner = torch.sigmoid(F.softplus(self.inner[0]) * first[..., None] + self.inner[1])
        return first + inner @ F.softplus(self.outer)
