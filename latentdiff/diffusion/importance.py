"""Times drawn by how much their loss varies: improved DDPM's importance sampling."""

import torch
from torch import Tensor, nn

from latentdiff.diffusion.coordinates import Denoise
from latentdiff.diffusion.objectives import Objective, stratified
from latentdiff.errors import InputError


class ImportanceSampled(nn.Module):
    """Another objective at t drawn by p_t ~ sqrt(E loss_t^2), each loss divided by T p_t (improved DDPM, equation 18).

    The draw is uniform until every t has been met ``history`` times. All state is in the buffers: it changes in
    `update` and nowhere else, so that ``state_dict`` brings a run back exactly. With several processes, `update` takes
    the times and losses gathered from all of them, so that each holds the same state.

    Args:
        objective: One on discrete times.
        steps: T.
        history: Losses kept for each t.
        uniform: Share of t that stays uniform, so that none is ever forgotten.
    """

    losses: Tensor
    """The last losses at each t (T, history), the newest last."""
    counts: Tensor
    """How many of them there are (T,)."""

    def __init__(self, objective: Objective, steps: int, history: int = 10, uniform: float = 0.001) -> None:
        super().__init__()
        if steps < 1 or history < 1 or not 0 < uniform <= 1:
            raise InputError(
                f"importance sampling of {steps} times with a history of {history} and a uniform share of {uniform} "
                "cannot be: there must be at least one of each, and the share must lie in (0, 1]."
            )
        self.objective, self.uniform = objective, uniform
        self.register_buffer("losses", torch.zeros(steps, history, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(steps, dtype=torch.int64))

    @property
    def output_channels(self) -> int:
        """The objective's."""
        return self.objective.output_channels

    def probabilities(self) -> Tensor:
        """p_t (T,) float64."""
        steps, history = self.losses.shape
        even = torch.full_like(self.losses[:, 0], 1 / steps)
        if (self.counts < history).any() or not self.losses.any():
            return even
        weight = self.losses.square().mean(1).sqrt()
        return (1 - self.uniform) * weight / weight.sum() + self.uniform * even

    def draw_times(self, batch: int, generator: torch.Generator) -> Tensor:
        """t (B,), spread evenly over the batch by probability."""
        edges = self.probabilities().cumsum(0).to(generator.device)
        drawn = torch.searchsorted(edges, stratified(batch, generator).double(), right=True)
        return drawn.clamp(max=len(edges) - 1)

    def loss(self, denoise: Denoise, z_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """The objective's loss over T p_t (B,), whose mean over drawn t is the uniform one's."""
        return self.objective.loss(denoise, z_0, t, eps) / self._lift(t).to(z_0)

    @torch.no_grad()
    def update(self, t: Tensor, loss: Tensor) -> None:
        """Remember what `loss` gave for t, both (B,), before t is drawn again."""
        plain = (loss.double() * self._lift(t)).to(self.losses.device)
        for step, value in zip(t.tolist(), plain, strict=True):
            self.losses[step] = torch.cat([self.losses[step, 1:], value[None]])
            self.counts[step] = (self.counts[step] + 1).clamp(max=self.losses.shape[1])

    def _lift(self, t: Tensor) -> Tensor:
        """T p_t (B,)."""
        return len(self.counts) * self.probabilities().to(t.device)[t]
