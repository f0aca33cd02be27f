"""Which z_0 fits its prompt: on data of two known Gaussians, whose best denoiser is in closed form."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from latentdiff.diffusion.coordinates import column, in_coordinate
from latentdiff.diffusion.process import EDMSchedule, FlowSchedule, family_of, prediction_of
from latentdiff.diffusion.schedule import DiscreteSchedule
from latentdiff.diffusion.selection import NOISE_LEVELS, prompt_gain

MEAN, STD = 1.0, 0.3
VP = {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195, "num_train_timesteps": 1000}
EDM_SIGMAS = EDMSchedule(sigma_data=0.5).to_config()
PROCESSES = {
    "epsilon": {**VP, "prediction_type": "epsilon"},
    "sample": {**VP, "prediction_type": "sample"},
    "v_prediction": {**VP, "prediction_type": "v_prediction"},
    "zero terminal snr": {**VP, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    "edm": {**EDM_SIGMAS, "_class_name": "EDMEulerScheduler", "prediction_type": "epsilon"},
    "flow": {**FlowSchedule(shift=2.0).to_config(), "_class_name": "FlowMatchEulerDiscreteScheduler"},
}


def expected_z_0(z_t: Tensor, signal: Tensor, noise: Tensor, label: Tensor) -> Tensor:
    """E[z_0 | z_t = signal z_0 + noise eps], where each item is N(label MEAN, STD^2), or either sign with label 0."""

    def of(mean: Tensor | float) -> Tensor:
        gain = signal * STD**2 / (signal**2 * STD**2 + noise**2)
        return mean + gain * (z_t - signal * mean)

    variance = signal**2 * STD**2 + noise**2
    sides = (2 * signal * MEAN * z_t / variance).flatten(1).sum(1)  # log odds of + against -
    plus = torch.sigmoid(sides)[:, None, None, None]
    unknown = plus * of(MEAN) + (1 - plus) * of(-MEAN)
    told = label[:, None, None, None]
    return torch.where(told == 0, unknown, of(MEAN * told))


def best_network(config: dict[str, Any], label: Tensor) -> Any:
    """(z_t, t) -> what a perfect network says that is told these labels, in the words of the process."""

    def network(z_t: Tensor, t: Tensor) -> Tensor:
        match family_of(config):
            case "edm":
                sigma, data = column((4 * t.double()).exp(), z_t), config["sigma_data"]
                x = z_t / (sigma**2 + data**2).rsqrt()
                z_0 = expected_z_0(x, torch.ones_like(sigma), sigma, label)
                out, skip = sigma * data * (sigma**2 + data**2).rsqrt(), data**2 / (sigma**2 + data**2)
                return (z_0 - skip * x) / out
            case "flow":
                sigma = column(t.double() / 1000, z_t)
                z_0 = expected_z_0(z_t, 1 - sigma, sigma, label)
                return (z_t - (1 - sigma) * z_0) / sigma - z_0
            case "variance_preserving":
                a = DiscreteSchedule.from_config(config).alpha_bar[t]
                signal, noise = column(a.sqrt(), z_t), column((1 - a).sqrt(), z_t)
                z_0 = expected_z_0(z_t, signal, noise, label)
                return in_coordinate(z_0, (z_t - signal * z_0) / noise, a, prediction_of(config))

    return network


@pytest.mark.parametrize("name", PROCESSES)
def test_what_fits_its_prompt_gains_by_it_and_what_does_not_loses(name: str) -> None:
    config = PROCESSES[name]
    sides = torch.tensor([1.0, 1.0, -1.0, -1.0])
    told = torch.tensor([1.0, -1.0, 1.0, -1.0])
    z_0 = MEAN * column(sides, torch.zeros(4, 1, 2, 2))
    z_0 = z_0 + STD * torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(5))
    gain = prompt_gain(config, best_network(config, torch.cat([torch.zeros(4), told])), z_0)
    assert gain.shape == (4,) and ((gain > 0) == (sides == told)).all()
    # The same z_0 gains the same beside any others.
    alone = prompt_gain(config, best_network(config, torch.cat([torch.zeros(1), told[:1]])), z_0[:1])
    torch.testing.assert_close(alone, gain[:1])


def test_a_network_that_does_not_listen_has_nothing_to_say() -> None:
    gain = prompt_gain(
        PROCESSES["epsilon"], best_network(PROCESSES["epsilon"], torch.zeros(6)), torch.randn(3, 1, 2, 2)
    )
    assert torch.equal(gain, torch.zeros(3))


def test_the_network_hears_the_times_of_its_own_process() -> None:
    heard: dict[str, list[float]] = {}
    for name, config in PROCESSES.items():
        told = heard.setdefault(name, [])

        def network(z_t: Tensor, t: Tensor, told: list[float] = told) -> Tensor:
            assert len(z_t) == len(t) == 2 and t[0] == t[1]
            told.append(float(t[0]))
            return torch.zeros_like(z_t)

        prompt_gain(config, network, torch.zeros(1, 1, 2, 2))
    assert heard["epsilon"] == heard["sample"] == [599, 699, 799, 899]
    schedule = EDMSchedule(sigma_data=0.5)
    levels = [math.log(float(schedule.sigma(torch.tensor(share, dtype=torch.float64)))) / 4 for share in NOISE_LEVELS]
    assert heard["edm"] == pytest.approx(levels)
    assert heard["flow"] == pytest.approx([1000 * 2 * share / (1 + share) for share in NOISE_LEVELS])
