"""Which of several z_0 its prompt explains best, by what the network has learnt: no other model judges.

The network denoises a z_0 that fits its prompt better when it is told the prompt than when it is not. The difference,
weighed over all noise levels, is the pointwise mutual information of the two (Kong et al. 2023), and the error with the
prompt alone is the diffusion classifier's (Li et al. 2023). Here it is taken at high noise, where the network decides
what and how many things there are and not how they look or sound.
Shapes: z_0 (B, C, h, w).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from latentdiff.diffusion.continuous_objectives import EDM, Flow
from latentdiff.diffusion.coordinates import Denoise
from latentdiff.diffusion.objectives import DenoisingObjective, Objective
from latentdiff.diffusion.process import EDMSchedule, FlowSchedule, family_of, prediction_of
from latentdiff.diffusion.schedule import DiscreteSchedule

NOISE_LEVELS = (0.6, 0.7, 0.8, 0.9)
"""Shares of the process's times, each with one noise, the same for every z_0."""


def prompt_gain(config: Mapping[str, Any], without_and_with: Denoise, z_0: Tensor) -> Tensor:
    """How much less the simple loss is with the prompt than without (B,), mean over `NOISE_LEVELS`.

    Args:
        config: of a scheduler, which says the process and what the network predicts.
        without_and_with: the network on (2 B, C, h, w) and t (2 B,), told no prompt in the first half of the batch, and
            each one's in the second.
        z_0: what was made.
    """
    objective, times = _simple_loss(config)
    both, gain = torch.cat([z_0, z_0]).float(), torch.zeros(len(z_0), device=z_0.device)
    for number, t in enumerate(times):
        noise = torch.randn(z_0.shape[1:], generator=torch.Generator().manual_seed(number))
        error = objective.loss(
            without_and_with, both, t.to(both.device).expand(len(both)), noise.to(both).expand_as(both)
        )
        without, with_prompt = error.chunk(2)
        gain += (without - with_prompt) / len(times)
    return gain


def _simple_loss(config: Mapping[str, Any]) -> tuple[Objective, Tensor]:
    """The loss of the process, and the noise levels in the words that the network is told."""
    shares = torch.tensor(NOISE_LEVELS, dtype=torch.float64)
    match family_of(config):
        case "flow":
            flow = FlowSchedule.from_config(config)
            return Flow(flow), (flow.sigma(shares) * flow.num_train_timesteps).float()
        case "edm":
            edm = EDMSchedule.from_config(config)
            return EDM(edm), (edm.sigma(shares).log() / 4).float()
        case "variance_preserving":
            schedule, prediction = DiscreteSchedule.from_config(config), prediction_of(config)
            assert prediction == "epsilon" or prediction == "sample" or prediction == "v_prediction"
            return DenoisingObjective(schedule.alpha_bar, prediction), (shares * schedule.t_end).round().long()
