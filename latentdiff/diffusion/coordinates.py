"""One Gaussian path, said in different coordinates: z_0, eps, v, score, flow velocity; and the steps along it.

Shapes: z_0, z_t, eps and predictions (B, ...); alpha_bar_t, alpha_bar_s (B,) or (1,), in (0, 1) unless said otherwise.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from latentdiff.diffusion.schedule import DiscreteSchedule
from latentdiff.errors import InputError

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(z_t, t) -> the network's prediction, (B, ...)."""
Coordinate = Literal["epsilon", "sample", "v_prediction", "score", "flow"]
"""What a prediction is; the first three are diffusers' ``prediction_type``.

eps; z_0; v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) z_0; score = grad log q(z_t) = -eps / sqrt(1 - alpha_bar);
flow velocity = eps - z_0, which is d/dt of (1 - t) z_0 + t eps and the same at every scale of z_t."""
Variance = Literal["fixed_large", "fixed_small", "learned_range"]
"""Variance of p(z_t-1 | z_t): beta_t; that of q(z_t-1 | z_t, z_0); or learned between the two (diffusers' names)."""


def column(per_item: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ...), with as many dimensions as ``like`` and on its device."""
    return per_item.to(like.device).reshape(-1, *[1] * (like.dim() - 1))


def diffuse(z_0: Tensor, eps: Tensor, alpha_bar_t: Tensor) -> Tensor:
    """z_t = sqrt(alpha_bar_t) z_0 + sqrt(1 - alpha_bar_t) eps (DDPM, equation 4)."""
    a = column(alpha_bar_t, z_0)
    return a.sqrt() * z_0 + (1 - a).sqrt() * eps


def velocity(z_0: Tensor, eps: Tensor, alpha_bar_t: Tensor) -> Tensor:
    """v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) z_0 (Salimans & Ho 2022, appendix D)."""
    a = column(alpha_bar_t, z_0)
    return a.sqrt() * eps - (1 - a).sqrt() * z_0


def z_0_and_eps(value: Tensor, z_t: Tensor, alpha_bar_t: Tensor, coordinate: Coordinate) -> tuple[Tensor, Tensor]:
    """Both ends of the path through z_t that ``value`` names; the inverse of `in_coordinate`.

    v and flow velocity give both at every alpha_bar in [0, 1]; eps and score need alpha_bar > 0, z_0 needs it below 1.
    """
    a = column(alpha_bar_t, z_t)
    signal, noise = a.sqrt(), (1 - a).sqrt()
    match coordinate:
        case "epsilon":
            return (z_t - noise * value) / signal, value
        case "sample":
            return value, (z_t - signal * value) / noise
        case "v_prediction":
            return signal * z_t - noise * value, noise * z_t + signal * value
        case "score":
            return (z_t + (1 - a) * value) / signal, -noise * value
        case "flow":
            return (z_t - noise * value) / (signal + noise), (z_t + signal * value) / (signal + noise)


def in_coordinate(z_0: Tensor, eps: Tensor, alpha_bar_t: Tensor, coordinate: Coordinate) -> Tensor:
    """What a network that predicts ``coordinate`` should say, (B, ...)."""
    match coordinate:
        case "epsilon":
            return eps
        case "sample":
            return z_0
        case "v_prediction":
            return velocity(z_0, eps, alpha_bar_t)
        case "score":
            return -eps / (1 - column(alpha_bar_t, eps)).sqrt()
        case "flow":
            return eps - z_0


def convert(value: Tensor, z_t: Tensor, alpha_bar_t: Tensor, source: Coordinate, target: Coordinate) -> Tensor:
    """The same prediction in another coordinate, (B, ...)."""
    return in_coordinate(*z_0_and_eps(value, z_t, alpha_bar_t, source), alpha_bar_t, target)


def posterior(z_0: Tensor, z_t: Tensor, alpha_bar_t: Tensor, alpha_bar_s: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, ...) and variance (B, 1, ...) of q(z_s | z_t, z_0) for s < t (DDPM, equation 7, where s = t - 1).

    With beta = 1 - alpha_bar_t / alpha_bar_s, all that was added between s and t:
    mean = sqrt(alpha_bar_s) beta / (1 - alpha_bar_t) z_0 + sqrt(1 - beta) (1 - alpha_bar_s) / (1 - alpha_bar_t) z_t,
    variance = (1 - alpha_bar_s) / (1 - alpha_bar_t) beta. alpha_bar_s = 1 is the data itself.
    """
    a_t, a_s = column(alpha_bar_t, z_t), column(alpha_bar_s, z_t)
    beta = 1 - a_t / a_s
    mean = a_s.sqrt() * beta / (1 - a_t) * z_0 + (1 - beta).sqrt() * (1 - a_s) / (1 - a_t) * z_t
    return mean, (1 - a_s) / (1 - a_t) * beta


def posterior_variances(schedule: DiscreteSchedule) -> Tensor:
    """Variances (T,) of q(z_t-1 | z_t, z_0), with the first one, which is 0, made usable as that of a decoder.

    It becomes the second one, as in the code of DDPM and improved DDPM; or beta_1 where there is only one step, or
    where the first is longer than the second: VDM's schedule begins with all the noise that its decoder is to undo.
    """
    a_t = schedule.alpha_bar
    variance = (1 - a_t[:-1]) / (1 - a_t[1:]) * schedule.betas[1:]
    like_ddpm = len(variance) > 0 and schedule.betas[0] <= schedule.betas[1]
    return torch.cat([variance[:1] if like_ddpm else schedule.betas[:1], variance])


def reverse_log_variance(
    schedule: DiscreteSchedule, t: int | Tensor, variance: Variance, like: Tensor, learned: Tensor | None = None
) -> Tensor:
    """log variance of p(z_t-1 | z_t), (B or 1, 1, ...) with as many dimensions as ``like``, or (B, ...) where learned.

    Args:
        t: Index of the step, one for all or (B,).
        learned: For ``learned_range`` the network's second half, v in [-1, 1]: with f = (v + 1) / 2 it is
            f log beta_t + (1 - f) log posterior variance (improved DDPM, equation 15).
    """
    index = torch.as_tensor(t).reshape(-1)
    large, small = (
        column(values.to(index.device)[index].log(), like) for values in (schedule.betas, posterior_variances(schedule))
    )
    match variance:
        case "fixed_large":
            return large
        case "fixed_small":
            return small
        case "learned_range":
            assert learned is not None, "a learned variance comes with the prediction"
            return torch.lerp(small.to(learned), large.to(learned), (learned + 1) / 2)


def reverse_step(
    schedule: DiscreteSchedule,
    t: int | Tensor,
    output: Tensor,
    z_t: Tensor,
    prediction: Coordinate,
    variance: Variance,
) -> tuple[Tensor, Tensor]:
    """Mean and log variance of p(z_t-1 | z_t) = q(z_t-1 | z_t, z_0 = the predicted one) (DDPM, section 3.2).

    Args:
        t: Index of the step, one for all or (B,); index 0 leads to the data.
        output: The network's output (B, C, ...), or (B, 2 C, ...) with a learned variance.
    """
    learned = None
    if variance == "learned_range":
        output, learned = output.chunk(2, dim=1)
    index = torch.as_tensor(t).reshape(-1)
    alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), schedule.alpha_bar]).to(index.device)
    z_0, _ = z_0_and_eps(output, z_t, alpha_bar[index + 1], prediction)
    mean, _ = posterior(z_0, z_t, alpha_bar[index + 1], alpha_bar[index])
    return mean, reverse_log_variance(schedule, index, variance, z_t, learned)


def ddim_step(value: Tensor, z_t: Tensor, alpha_bar_t: Tensor, alpha_bar_s: Tensor, coordinate: Coordinate) -> Tensor:
    """z_s at the same z_0 and eps as the prediction has at z_t (DDIM, equation 12 with eta = 0).

    One Euler step of the probability-flow ODE, (B, ...), to any other level s.
    """
    return diffuse(*z_0_and_eps(value, z_t, alpha_bar_t, coordinate), alpha_bar_s)


def check_prediction(prediction: Coordinate, alpha_bar: Tensor) -> None:
    """Refuse to read the data off a z_T that holds nothing of them.

    Args:
        alpha_bar: (T,).

    Raises:
        InputError: if the last one is 0 and the prediction is eps or the score.
    """
    if prediction in ("epsilon", "score") and alpha_bar[-1] == 0:
        raise InputError(
            f"the schedule ends without any signal (zero terminal snr), where '{prediction}' says nothing of the data; "
            "use v_prediction."
        )
