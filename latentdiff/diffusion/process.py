"""Any diffusers scheduler's configuration, read as the forward process that it undoes.

Three families: variance preserving (`DiscreteSchedule`), EDM's x_0 + sigma eps (`EDMSchedule`), and the straight flow
(1 - sigma) x_0 + sigma eps (`FlowSchedule`). A consistency model's scheduler runs the process of its teacher.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from latentdiff.diffusion.coordinates import Coordinate
from latentdiff.diffusion.schedule import DiscreteSchedule, NoiseSchedule, edm_sigmas
from latentdiff.errors import InputError

Family = Literal["variance_preserving", "edm", "flow"]


@dataclass(frozen=True)
class EDMSchedule:
    """Noise of standard deviation sigma from sigma_min to sigma_max (EDM, equation 5), t in [0, 1] against it.

    Args:
        sigma_data: Standard deviation of the data; the network is preconditioned by it.

    Raises:
        InputError: if sigma does not grow or a value is not positive.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    rho: float = 7.0
    t_end: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        edm_sigmas(2, self.sigma_min, self.sigma_max, self.rho)  # refuses what cannot be
        if self.sigma_data <= 0:
            raise InputError(f"sigma_data is {self.sigma_data}; a standard deviation is positive.")

    def sigma(self, t: Tensor) -> Tensor:
        """sigma at t in [0, 1]."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (low + t * (high - low)) ** self.rho

    def gamma(self, t: Tensor) -> Tensor:
        """-log snr = 2 log sigma."""
        return 2 * self.sigma(t).log()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "EDMSchedule":
        """Of an ``EDM...Scheduler`` or ``CMStochasticIterativeScheduler``."""
        if config.get("sigma_schedule", "karras") != "karras":
            raise InputError(
                f"sigma_schedule is '{config['sigma_schedule']}'; only EDM's own, 'karras', is known here."
            )
        return cls(**{key: float(config[key]) for key in cls.__dataclass_fields__ if config.get(key) is not None})

    def to_config(self) -> dict[str, Any]:
        """The keys with which diffusers' EDM schedulers run this process."""
        return asdict(self)


@dataclass(frozen=True)
class FlowSchedule:
    """(1 - sigma) x_0 + sigma eps with sigma = shift t / (1 + (shift - 1) t), t in [0, 1].

    Args:
        shift: Above 1, more of the steps at high noise (Esser et al. 2024, equation 23).
        num_train_timesteps: What the network is told is sigma times this.

    Raises:
        InputError: if a value is not positive.
    """

    shift: float = 1.0
    num_train_timesteps: int = 1000
    t_end: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        if self.shift <= 0 or self.num_train_timesteps < 1:
            raise InputError(
                f"a flow with shift {self.shift} and {self.num_train_timesteps} training times cannot be: "
                "shift must be positive and num_train_timesteps at least 1."
            )

    def sigma(self, t: Tensor) -> Tensor:
        """Share of the noise at t in [0, 1]."""
        return self.shift * t / (1 + (self.shift - 1) * t)

    def gamma(self, t: Tensor) -> Tensor:
        """-log snr = 2 log(sigma / (1 - sigma)), infinite at both ends."""
        return 2 * (t.log() - (1 - t).log() + math.log(self.shift))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "FlowSchedule":
        """Of a ``FlowMatch...Scheduler``, or of a solver with ``use_flow_sigmas``."""
        if config.get("use_dynamic_shifting"):
            raise InputError("use_dynamic_shifting shifts by the size of the picture; give a fixed shift instead.")
        shift = config.get("flow_shift" if config.get("use_flow_sigmas") else "shift")
        return cls(1.0 if shift is None else float(shift), int(config.get("num_train_timesteps", 1000)))

    def to_config(self) -> dict[str, Any]:
        """The keys with which diffusers' flow schedulers run this process."""
        return asdict(self)


def family_of(config: Mapping[str, Any]) -> Family:
    """Which process a scheduler's configuration describes; by its class where it names one, else by its keys."""
    name = str(config.get("_class_name", ""))
    if name.startswith("FlowMatch") or config.get("use_flow_sigmas") or (not name and "shift" in config):
        return "flow"
    if name.startswith(("EDM", "CMStochastic")) or (not name and "sigma_data" in config):
        return "edm"
    return "variance_preserving"


def schedule_of(config: Mapping[str, Any]) -> NoiseSchedule:
    """The forward process of any diffusers scheduler's configuration.

    Raises:
        InputError: if the configuration has none or one that cannot be.
    """
    match family_of(config):
        case "flow":
            return FlowSchedule.from_config(config)
        case "edm":
            return EDMSchedule.from_config(config)
        case "variance_preserving":
            return DiscreteSchedule.from_config(config)


def prediction_of(config: Mapping[str, Any]) -> Coordinate:
    """What the scheduler takes the network's output for.

    Raises:
        InputError: if it is none of the coordinates.
    """
    if family_of(config) == "flow":
        return "flow"
    known: dict[str, Coordinate] = {"epsilon": "epsilon", "sample": "sample", "v_prediction": "v_prediction"}
    kind = config.get("prediction_type") or "epsilon"
    if kind not in known:
        raise InputError(f"prediction_type is '{kind}'; choose one of {', '.join(known)}.")
    return known[kind]


def check_same_process(config: Mapping[str, Any], trained: Mapping[str, Any]) -> None:
    """Refuse a scheduler that would undo another process than the one a model came with.

    What only chooses the steps of a sampler may differ: the range of an EDM's sigma, the shift of a flow.

    Args:
        config: The scheduler's configuration.
        trained: That of the scheduler that the model came with.

    Raises:
        InputError: if family, prediction or noise levels are not the model's.
    """
    families = family_of(config), family_of(trained)
    if families[1] == "variance_preserving":
        return check_scheduler(config, DiscreteSchedule.from_config(trained), prediction_of(trained))
    if families[0] != families[1]:
        raise InputError(
            f"the scheduler undoes a process of the {families[0]} kind, but the model was trained on one of the "
            f"{families[1]} kind."
        )
    if prediction_of(config) != prediction_of(trained):
        raise InputError(
            f"the scheduler takes the network's output for '{prediction_of(config)}', but the model predicts "
            f"'{prediction_of(trained)}'."
        )
    key = "sigma_data" if families[1] == "edm" else "num_train_timesteps"
    found, expected = (getattr(schedule_of(part), key) for part in (config, trained))
    if found != expected:
        raise InputError(f"the scheduler has {key} {found:g}, but the model was trained with {expected:g}.")


def check_scheduler(config: Mapping[str, Any], schedule: DiscreteSchedule, prediction: Coordinate) -> None:
    """Refuse a scheduler that would undo another process than the one a model was trained on.

    Args:
        config: The scheduler's configuration.
        schedule: The model's process.
        prediction: What the model predicts.

    Raises:
        InputError: if family, prediction or noise levels are not the model's.
    """
    if family_of(config) != "variance_preserving":
        raise InputError(
            f"the scheduler undoes a process of the {family_of(config)} kind, but the model was trained on a "
            "variance-preserving one."
        )
    if prediction_of(config) != prediction:
        raise InputError(
            f"the scheduler takes the network's output for '{prediction_of(config)}', but the model predicts "
            f"'{prediction}'; set the scheduler's prediction_type to that."
        )
    found = DiscreteSchedule.from_config(config)
    if len(found.betas) != len(schedule.betas):
        raise InputError(f"the scheduler has {len(found.betas)} training times, but the model {len(schedule.betas)}.")
    off = (found.alpha_bar - schedule.alpha_bar).abs()
    if off.max() > 1e-4:
        t = int(off.argmax())
        raise InputError(
            f"the scheduler has another noise schedule than the model: at t = {t} alpha_bar is "
            f"{found.alpha_bar[t]:.4g}, and the model was trained on {schedule.alpha_bar[t]:.4g}."
        )
