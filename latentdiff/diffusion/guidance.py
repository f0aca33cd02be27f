"""Classifier-free guidance: two predictions of one network made into one."""

import torch
from torch import Tensor


def guide(without: Tensor, with_prompt: Tensor, scale: float | Tensor, rescale: float = 0.0) -> Tensor:
    """eps_neg + s (eps - eps_neg) (Ho and Salimans 2022, equation 6), made no larger than eps by a share of the way.

    Guidance stretches what it steers: sounds get too loud, pictures too rich in contrast. Rescaled, each medium's
    prediction has the standard deviation that it would have unguided (Lin et al. 2024, equations 15 and 16).

    Args:
        without: prediction (B, ...) for the negative prompt.
        with_prompt: prediction (B, ...) for the prompt.
        scale: s, one for all or in a shape that broadcasts.
        rescale: the share, from 0 (left as it is) to 1.
    """
    prediction = without + scale * (with_prompt - without)
    if not rescale:
        return prediction
    axes = tuple(range(1, prediction.ndim))
    fitting = with_prompt.std(axes, keepdim=True) / prediction.std(axes, keepdim=True)
    return prediction * torch.lerp(torch.ones_like(fitting), fitting, rescale)
