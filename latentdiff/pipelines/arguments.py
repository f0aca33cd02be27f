"""What a caller gives either pipeline, checked before anything is computed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentdiff.errors import InputError

Callback = Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any]]
"""diffusers' ``callback_on_step_end(pipeline, step, timestep, {"latents": z}) -> {"latents": z}``."""


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance by two runs of the network, as `Sampling` describes it, nothing left open."""

    scale: float
    interval: tuple[float, float]
    rescale: float


@dataclass(frozen=True)
class Sampling:
    """How z_0 is drawn, whatever the prompt and the size. None is the model's default."""

    each: int = 1
    """Media of each prompt."""
    steps: int | None = None
    guidance_scale: float | None = None
    """Of classifier-free guidance, 1 or less turns it off. A distilled student hears it as an input, all other
    networks are run twice for it."""
    guidance_interval: tuple[float, float] | None = None
    """The part of the steps that is guided, as shares from 0 to 1. In the others the network is run once
    (Kynkaanniemi et al. 2024)."""
    guidance_rescale: float | None = None
    """How far guidance is kept from making the medium louder or richer in contrast (`diffusion.guidance`)."""
    callback: Callback | None = None


def checked_interval(given: tuple[float, float] | None, default: tuple[float, float] | None) -> tuple[float, float]:
    """The part of the steps that is guided; all of them where nobody says.

    Raises:
        InputError: if it is none.
    """
    low, high = given if given is not None else (default or (0.0, 1.0))
    if not 0 <= low < high <= 1:
        raise InputError(f"a guidance_interval from {low:g} to {high:g} cannot be; both lie in 0 to 1, low first.")
    return low, high


def checked_rescale(given: float | None, default: float) -> float:
    """How far guidance is rescaled.

    Raises:
        InputError: if it is no share.
    """
    share = default if given is None else given
    if not 0 <= share <= 1:
        raise InputError(f"a guidance_rescale of {share:g} cannot be; it lies in 0 to 1.")
    return share


def require_output_type(wanted: str, known: tuple[str, ...]) -> None:
    """Refuse an ``output_type`` that a pipeline does not have.

    Raises:
        InputError: naming those it has.
    """
    if wanted not in known:
        raise InputError(f"unknown output_type '{wanted}'; choose {', '.join(known[:-1])} or {known[-1]}.")


def require_generators(generator: torch.Generator | list[torch.Generator] | None, count: int, made: str) -> None:
    """Refuse a list that has not one generator for each medium.

    Raises:
        InputError: with both numbers.
    """
    if isinstance(generator, list) and len(generator) != count:
        raise InputError(f"{len(generator)} generators were given for {count} {made}; give one for each.")


def one_for_each(negative: str | list[str] | None, prompts: int) -> list[str]:
    """Negative prompts for so many prompts, the empty caption where none is given.

    Raises:
        InputError: if there are others than one or one for each.
    """
    if negative is None or isinstance(negative, str):
        return [negative or ""] * prompts
    if len(negative) != prompts:
        raise InputError(f"{len(negative)} negative prompts were given for {prompts} prompts.")
    return list(negative)


def as_list(prompt: str | list[str]) -> list[str]:
    """One prompt or several, as a list.

    Raises:
        InputError: if one of them is empty or no text.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise InputError("no prompt was given.")
    for text in prompts:
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"a prompt must be a text that is not empty, this one is {text!r}.")
    return prompts
