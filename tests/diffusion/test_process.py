"""Scheduler configurations of every family, read as processes and written again; and what is refused."""

from typing import Any

import pytest
import torch
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
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from latentdiff.diffusion.process import (
    EDMSchedule,
    FlowSchedule,
    check_scheduler,
    family_of,
    prediction_of,
    schedule_of,
)
from latentdiff.diffusion.schedule import (
    DiscreteSchedule,
    NoiseSchedule,
    alpha_bar_of_flow_time,
    alpha_bar_of_sigma,
    check_increasing,
    snr,
    time_of_log_snr,
)
from latentdiff.errors import InputError

LINEAR = DiscreteSchedule.named("linear")


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler, LCMScheduler])
def test_schedulers_with_betas_are_discrete_schedules(kind: Any, saved: bool) -> None:
    scheduler = kind(num_train_timesteps=500, beta_schedule="scaled_linear", beta_start=0.001, beta_end=0.02)
    schedule = schedule_of(as_config(scheduler, saved))
    assert isinstance(schedule, DiscreteSchedule)
    assert torch.equal(schedule.betas.float(), scheduler.betas)


def as_config(scheduler: Any, saved: bool) -> dict[str, Any]:
    """As an object has it, or as its file does, with the class's name."""
    return dict(scheduler.config) | ({"_class_name": type(scheduler).__name__} if saved else {})


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize(
    "kind",
    [EDMEulerScheduler, EDMDPMSolverMultistepScheduler, CMStochasticIterativeScheduler],
    ids=lambda k: k.__name__,
)
def test_edm_schedulers_are_edm_schedules(kind: Any, saved: bool) -> None:
    scheduler = kind(sigma_min=0.01, sigma_max=40.0, sigma_data=0.7, rho=5.0)
    config = as_config(scheduler, saved)
    schedule = schedule_of(config)
    assert schedule == EDMSchedule(0.01, 40.0, 0.7, 5.0)
    assert schedule_of(schedule.to_config()) == schedule  # type: ignore[attr-defined]
    scheduler.set_timesteps(13)
    # The consistency scheduler takes 13 of its 40 training times, 3 apart.
    last = 1 - 36 / 39 if kind is CMStochasticIterativeScheduler else 0.0
    t = torch.linspace(1, last, 13, dtype=torch.float64)
    assert torch.allclose(schedule.gamma(t), 2 * scheduler.sigmas[:13].double().log(), rtol=0, atol=1e-5)
    assert torch.allclose(time_of_log_snr(schedule, -schedule.gamma(t)), t, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize(
    "kind",
    [FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, DPMSolverMultistepScheduler],
    ids=lambda k: k.__name__,
)
def test_flow_schedulers_are_flow_schedules(kind: Any, saved: bool, shift: float) -> None:
    solver = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
    scheduler = kind(**(solver if kind is DPMSolverMultistepScheduler else {"shift": shift}))
    config = as_config(scheduler, saved)
    schedule = schedule_of(config)
    assert schedule == FlowSchedule(shift, 1000) and prediction_of(config) == "flow"
    assert schedule_of(schedule.to_config()) == schedule  # type: ignore[attr-defined]


def test_edm_and_flow_say_the_noise_that_they_add() -> None:
    t = torch.linspace(0.01, 0.99, 7, dtype=torch.float64)
    edm, flow = EDMSchedule(), FlowSchedule(2.5)
    assert torch.allclose(torch.sigmoid(-edm.gamma(t)), alpha_bar_of_sigma(edm.sigma(t)), rtol=1e-10)
    assert torch.allclose(torch.sigmoid(-flow.gamma(t)), alpha_bar_of_flow_time(flow.sigma(t)), rtol=1e-10)
    assert torch.allclose(snr(torch.sigmoid(-edm.gamma(t))), edm.sigma(t) ** -2, rtol=1e-8)


def test_prediction_types() -> None:
    for kind in ("epsilon", "sample", "v_prediction"):
        assert prediction_of(DDIMScheduler(prediction_type=kind).config) == kind
    assert prediction_of({"beta_schedule": "linear"}) == "epsilon"
    with pytest.raises(InputError, match="prediction_type is 'x0'; choose one of epsilon, sample, v_prediction"):
        prediction_of({"prediction_type": "x0"})


def test_a_scheduler_that_undoes_another_process_is_refused() -> None:
    def scheduler(**settings: Any) -> Any:
        return DDIMScheduler(**{"beta_schedule": "linear", **settings}).config

    check_scheduler(scheduler(), LINEAR, "epsilon")
    check_scheduler(scheduler(prediction_type="v_prediction"), LINEAR, "v_prediction")
    with pytest.raises(InputError, match="for 'v_prediction', but the model predicts 'epsilon'; set"):
        check_scheduler(scheduler(prediction_type="v_prediction"), LINEAR, "epsilon")
    with pytest.raises(InputError, match="at t = .* alpha_bar is .*, and the model was trained on"):
        check_scheduler(scheduler(beta_schedule="scaled_linear"), LINEAR, "epsilon")
    with pytest.raises(InputError, match="has 500 training times, but the model 1000"):
        check_scheduler(scheduler(num_train_timesteps=500), LINEAR, "epsilon")
    with pytest.raises(InputError, match="a process of the flow kind"):
        check_scheduler(UniPCMultistepScheduler(use_flow_sigmas=True).config, LINEAR, "epsilon")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"shift": 0.0}, "flow with shift 0.0"),
        ({"shift": 1.0, "num_train_timesteps": 0}, "0 training times"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}, "give a fixed shift"),
        ({"sigma_data": -1.0}, "sigma_data is -1"),
        ({"sigma_data": 0.5, "sigma_min": 2.0, "sigma_max": 1.0}, "0 < sigma_min < sigma_max"),
        ({"sigma_data": 0.5, "sigma_schedule": "exponential"}, "'exponential'; only EDM's own"),
        ({"_class_name": "DDIMScheduler"}, "neither beta_schedule nor trained_betas"),
    ],
)
def test_configurations_that_cannot_be_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        schedule_of(config)


def test_the_class_decides_before_the_keys() -> None:
    assert family_of({"_class_name": "DDIMScheduler", "shift": 1.0, "sigma_data": 0.5}) == "variance_preserving"


class Bent:
    """Noise that shrinks for a while."""

    t_end = 1.0

    def gamma(self, t: torch.Tensor) -> torch.Tensor:
        return 10 * t + 3 * torch.sin(9 * t)


def test_schedules_that_are_not_monotone_are_refused() -> None:
    with pytest.raises(InputError, match=r"not monotone: gamma = -log snr goes from .* between t = 0\.2"):
        check_increasing(Bent())
    steady: list[NoiseSchedule] = [LINEAR, EDMSchedule(), DiscreteSchedule(torch.tensor([0.5]))]
    for schedule in steady:
        check_increasing(schedule)
