"""Samplers by name: diffusers schedulers, made from the configuration the model was trained with."""

from typing import Any

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from latentdiff.errors import InputError

SAMPLERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {"clip_sample": False, "timestep_spacing": "trailing"}),
    "ddpm": (DDPMScheduler, {"clip_sample": False, "timestep_spacing": "trailing"}),
    "dpmsolver++": (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", "timestep_spacing": "trailing"},
    ),
    "unipc": (UniPCMultistepScheduler, {"timestep_spacing": "trailing"}),
    "heun": (HeunDiscreteScheduler, {"timestep_spacing": "trailing"}),
    "euler": (EulerDiscreteScheduler, {"timestep_spacing": "trailing"}),
}
FORWARD_PROCESS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
)
"""The keys that belong to the trained model and not to the sampler."""


def make_scheduler(name: str, config: dict[str, Any]) -> SchedulerMixin:
    """The sampler ``name`` on the forward process of ``config`` (a scheduler's configuration).

    Raises:
        InputError: if there is no such sampler.
    """
    if name not in SAMPLERS:
        raise InputError(f"unknown sampler '{name}'; choose one of {', '.join(SAMPLERS)}.")
    scheduler, options = SAMPLERS[name]
    process = {key: config[key] for key in FORWARD_PROCESS if config.get(key) is not None}
    return scheduler(**process, **options)
