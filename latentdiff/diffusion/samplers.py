"""Samplers by name: diffusers schedulers, made from the configuration the model was trained with.

A name means the same method in each family of processes: "euler" is Euler's method for a diffusion, EDM and a flow.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from torch import Tensor

from latentdiff.diffusion.coordinates import check_prediction
from latentdiff.diffusion.process import (
    TRAINED_VARIANCE,
    EDMSchedule,
    Family,
    FlowSchedule,
    family_of,
    prediction_of,
    variance_of,
)
from latentdiff.diffusion.schedule import DiscreteSchedule
from latentdiff.errors import InputError

Samplers = dict[str, tuple[Any, dict[str, Any]]]
SAMPLERS: Samplers = {
    "ddim": (DDIMScheduler, {"clip_sample": False, "timestep_spacing": "trailing"}),
    "ddpm": (DDPMScheduler, {"clip_sample": False, "timestep_spacing": "trailing"}),
    "dpmsolver++": (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", "timestep_spacing": "trailing"},
    ),
    "dpmsolver++-karras": (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", "timestep_spacing": "trailing", "use_karras_sigmas": True},
    ),
    "unipc": (UniPCMultistepScheduler, {"timestep_spacing": "trailing"}),
    "heun": (HeunDiscreteScheduler, {"timestep_spacing": "trailing"}),
    "euler": (EulerDiscreteScheduler, {"timestep_spacing": "trailing"}),
}
"""For variance-preserving processes, the usual ones. With Karras et al.'s spacing (2022, equation 5) a few steps reach
far less noise before the last one, which jumps from there to none; what lies below it is averaged away."""
_FLOW_SOLVER = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
FLOW_SAMPLERS: Samplers = {
    "euler": (FlowMatchEulerDiscreteScheduler, {}),
    "heun": (FlowMatchHeunDiscreteScheduler, {}),
    "dpmsolver++": (DPMSolverMultistepScheduler, _FLOW_SOLVER | {"algorithm_type": "dpmsolver++"}),
    "unipc": (UniPCMultistepScheduler, _FLOW_SOLVER),
}
EDM_SAMPLERS: Samplers = {
    "euler": (EDMEulerScheduler, {}),
    "dpmsolver++": (EDMDPMSolverMultistepScheduler, {}),
}
CONSISTENCY_SAMPLERS: Samplers = {
    "lcm": (LCMScheduler, {"clip_sample": False}),
    "cm": (CMStochasticIterativeScheduler, {"clip_denoised": False}),
}
"""For few-step students: of a variance-preserving teacher, and in EDM's sigmas."""
FORWARD_PROCESS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
    "prediction_type",
    "variance_type",
)
"""The keys that belong to the trained model and not to the sampler."""
_DDPM_BETAS = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
"""What a configuration means that leaves one of them out; LCMScheduler alone would take others."""


def make_scheduler(name: str, config: Mapping[str, Any]) -> SchedulerMixin:
    """The sampler ``name`` on the forward process of ``config`` (a scheduler's configuration).

    Raises:
        InputError: if there is no such sampler, or none for this kind of model.
    """
    if name in CONSISTENCY_SAMPLERS:
        return _consistency_scheduler(name, config)
    if name not in SAMPLERS:
        raise InputError(f"unknown sampler '{name}'; choose one of {', '.join(SAMPLERS)}.")
    if own := few_step_sampler(config):
        raise InputError(f"this model is a few-step student, which '{name}' cannot sample; use its sampler, {own}.")
    match family_of(config):
        case "flow":
            return _flow_scheduler(name, FlowSchedule.from_config(config))
        case "edm":
            scheduler, options = _choose(name, EDM_SAMPLERS, "edm")
            prediction = {"prediction_type": prediction_of(config)}
            return scheduler(**EDMSchedule.from_config(config).to_config(), **prediction, **options)
        case "variance_preserving":
            scheduler, options = SAMPLERS[name]
            return _variance_preserving(scheduler, options, config)


def name_of(scheduler: SchedulerMixin) -> str:
    """The name under which `make_scheduler` gives this sampler; the class of a foreign one."""
    kind, karras = type(scheduler), scheduler.config.get("use_karras_sigmas", False)
    for samplers in (SAMPLERS, FLOW_SAMPLERS, EDM_SAMPLERS, CONSISTENCY_SAMPLERS):
        for name, (own, options) in samplers.items():
            if own is kind and options.get("use_karras_sigmas", False) == karras:
                return name
    return kind.__name__


def few_step_sampler(config: Mapping[str, Any]) -> str | None:
    """The one sampler of a few-step student, by its scheduler's configuration; None for other models."""
    own = {"timestep_scaling": "lcm", "clip_denoised": "cm"}  # found in their configurations alone
    return next((name for key, name in own.items() if key in config), None)


def start_of(scheduler: SchedulerMixin, noise: Tensor) -> Tensor:
    """Noise of unit variance at the scale of the scheduler's first step; a flow's schedulers name no other."""
    scaled: Tensor = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    return scaled


def network_input(scheduler: SchedulerMixin, z_t: Tensor, t: Tensor) -> Tensor:
    """z_t as the network was trained to see it; a flow's schedulers do not scale it."""
    if not hasattr(scheduler, "scale_model_input"):
        return z_t
    scaled: Tensor = scheduler.scale_model_input(z_t, t)
    return scaled


def readable_output(scheduler: SchedulerMixin, output: Tensor, z_t: Tensor) -> Tensor:
    """What the scheduler's ``step`` reads of a network's output: no learned variance, but for a DDPM that takes it.

    Args:
        output: (B, C, ...), or (B, 2 C, ...) of a network that learned its variance.
        z_t: (B, C, ...).
    """
    reads_both = isinstance(scheduler, DDPMScheduler) and scheduler.config["variance_type"] == "learned_range"
    if output.shape[1] == 2 * z_t.shape[1] and not reads_both:
        return output[:, : z_t.shape[1]]
    return output


def _variance_preserving(scheduler: Any, options: dict[str, Any], config: Mapping[str, Any]) -> SchedulerMixin:
    """With the keys of the process that the scheduler knows; the others are kept in its configuration.

    Kept, so that another sampler can be made from it; diffusers saves and loads such keys.
    """
    process = _DDPM_BETAS | {key: config[key] for key in FORWARD_PROCESS if config.get(key) is not None}
    if variance := variance_of(config):
        process["variance_type"] = variance
    known = set(inspect.signature(scheduler.__init__).parameters)
    if scheduler is DPMSolverMultistepScheduler and str(process.get("variance_type")).startswith("learned"):
        # It would cut the output to three channels; see `readable_output`.
        process[TRAINED_VARIANCE] = process.pop("variance_type")
    zero_snr = process.get("rescale_betas_zero_snr", False)
    if zero_snr:
        schedule = DiscreteSchedule.from_config(process)
        check_prediction(prediction_of(process), schedule.alpha_bar)
        if "rescale_betas_zero_snr" not in known:  # Heun, which works in sigma and needs a finite one
            process["trained_betas"] = schedule.lifted().betas.tolist()
        elif "trained_betas" in process:
            process["trained_betas"] = schedule.betas.tolist()
    made: SchedulerMixin = scheduler(**{key: value for key, value in process.items() if key in known}, **options)
    made.register_to_config(**{key: value for key, value in process.items() if key not in known})
    return made


def _flow_scheduler(name: str, schedule: FlowSchedule) -> SchedulerMixin:
    scheduler, options = _choose(name, FLOW_SAMPLERS, "flow")
    shift = "flow_shift" if "use_flow_sigmas" in options else "shift"
    made: SchedulerMixin = scheduler(
        num_train_timesteps=schedule.num_train_timesteps, **{shift: schedule.shift}, **options
    )
    return made


def _consistency_scheduler(name: str, config: Mapping[str, Any]) -> SchedulerMixin:
    scheduler, options = CONSISTENCY_SAMPLERS[name]
    expected: Family = "variance_preserving" if name == "lcm" else "edm"
    if family_of(config) != expected:
        raise InputError(f"sampler '{name}' is for students of another kind of model than this one.")
    if expected == "variance_preserving":
        kept = {key: config[key] for key in ("original_inference_steps", "timestep_scaling") if key in config}
        return _variance_preserving(scheduler, options | kept, config)
    made: SchedulerMixin = scheduler(**EDMSchedule.from_config(config).to_config(), **options)
    return made


def _choose(name: str, samplers: Samplers, family: Family) -> tuple[Any, dict[str, Any]]:
    if name not in samplers:
        raise InputError(f"sampler '{name}' cannot run a model of the {family} kind; choose {' or '.join(samplers)}.")
    return samplers[name]
