"""The one place where a configured objective becomes a class of `latentdiff.diffusion`, with the process it runs."""

from collections.abc import Mapping
from typing import Any, Literal

from latentdiff.config import DiffusionRecipe
from latentdiff.config.objectives import (
    ContinuousObjective,
    EDMObjective,
    FlowObjective,
    HybridObjective,
    MinSNRObjective,
    OneStepVAEObjective,
    P2Objective,
    SimpleObjective,
    VDMObjective,
    VLBObjective,
)
from latentdiff.diffusion.continuous_objectives import EDM, ContinuousTime, Flow
from latentdiff.diffusion.importance import ImportanceSampled
from latentdiff.diffusion.learned_schedule import LearnedSchedule
from latentdiff.diffusion.objectives import P2, VLB, DenoisingObjective, Hybrid, Objective, one_step_vae
from latentdiff.diffusion.process import EDMSchedule, FlowSchedule, prediction_of
from latentdiff.diffusion.schedule import DiscreteSchedule, LogLinearSchedule

Decoder = Literal["none", "discretised"]


def new_objective(
    config: DiffusionRecipe, finished: Mapping[str, Any] | None = None, pixels: bool | None = None
) -> Objective:
    """What the configuration asks for; of pixels the bounds are about 8-bit values, of latents about a density.

    Args:
        config: of the run.
        finished: the scheduler's configuration of a pipeline to go on from, which says process and prediction.
        pixels: whether z is x itself; None: as the configuration's ``vae`` says.

    Raises:
        InputError: if the schedule cannot be, or does not go with the prediction.
    """
    pixels = config.vae is None if pixels is None else pixels
    decoder: Decoder = "discretised" if pixels else "none"
    if isinstance(config.objective, ContinuousObjective):
        return _on_its_own_process(config.objective, decoder)
    process = finished if finished is not None else _discrete_process(config)
    schedule, prediction = DiscreteSchedule.from_config(process), prediction_of(process)
    assert prediction == "epsilon" or prediction == "sample" or prediction == "v_prediction"  # of discrete times
    match config.objective:
        case SimpleObjective():
            return DenoisingObjective(schedule.alpha_bar, prediction)
        case MinSNRObjective(gamma=gamma):
            return DenoisingObjective(schedule.alpha_bar, prediction, gamma)
        case P2Objective(gamma=gamma, k=k):
            return P2(schedule.alpha_bar, prediction, gamma, k)
        case HybridObjective(vlb_weight=weight):
            return Hybrid(schedule, prediction, weight, decoder)
        case VLBObjective(variance=variance):
            return VLB(schedule, prediction, variance, decoder)


def _on_its_own_process(config: ContinuousObjective, decoder: Decoder) -> Objective:
    match config:
        case EDMObjective():
            sigma_data = config.sigma_data or (0.5 if decoder == "discretised" else 1.0)
            schedule = EDMSchedule(config.sigma_min, config.sigma_max, sigma_data, config.rho)
            return EDM(schedule, config.mean, config.std)
        case FlowObjective():
            return Flow(FlowSchedule(config.shift, config.num_train_timesteps), config.mean, config.std)
        case VDMObjective():
            ends = config.gamma_min, config.gamma_max
            line = LogLinearSchedule(*ends)  # refuses ends that do not grow
            gamma = line if config.gamma == "fixed" else LearnedSchedule(*ends, 0 if "ends" in config.gamma else 1024)
            return ContinuousTime(gamma, config.prediction, decoder, config.num_train_timesteps)
        case OneStepVAEObjective():
            return one_step_vae(config.beta, decoder)


def process_of(config: DiffusionRecipe, objective: Objective) -> dict[str, Any]:
    """What `latentdiff.diffusion.samplers.make_scheduler` makes samplers of, with a learned schedule as it is now."""
    if isinstance(objective, EDM | Flow | ContinuousTime):
        return objective.scheduler_config()
    if isinstance(config.objective, OneStepVAEObjective):
        assert isinstance(objective, VLB)
        said = {"prediction_type": objective.prediction, "variance_type": objective.variance}
        return {**objective.schedule.to_config(), **said}
    return _discrete_process(config)


def _discrete_process(config: DiffusionRecipe) -> dict[str, Any]:
    assert config.schedule is not None and not isinstance(config.objective, ContinuousObjective)  # it was checked
    variance = "learned_range" if isinstance(config.objective, HybridObjective) else config.objective.variance
    return {
        **config.schedule.model_dump(),
        "prediction_type": config.objective.prediction,
        "variance_type": variance,
    }


def learned_schedule_of(objective: Objective) -> LearnedSchedule | None:
    """The noise schedule that is trained together with the network, if there is one."""
    schedule = objective.schedule if isinstance(objective, ContinuousTime) else None
    return schedule if isinstance(schedule, LearnedSchedule) else None


def with_drawn_times(
    config: DiffusionRecipe, objective: Objective, finished: Mapping[str, Any] | None = None
) -> Objective:
    """The objective at the times that training draws: its own, or by importance."""
    if isinstance(config.objective, ContinuousObjective) or config.objective.times == "uniform":
        return objective
    process = finished if finished is not None else _discrete_process(config)
    return ImportanceSampled(objective, process["num_train_timesteps"])
