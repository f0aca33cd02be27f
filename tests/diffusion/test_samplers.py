"""Every sampler against a denoiser whose answer is known in closed form."""

from typing import Any

import pytest
import torch
from torch import Tensor

from latentdiff.config import DiffusionRecipe, NoiseScheduleConfig
from latentdiff.diffusion.samplers import FORWARD_PROCESS, SAMPLERS, make_scheduler
from latentdiff.errors import InputError
from latentdiff.names import SAMPLER_NAMES

PREDICTIONS = ("epsilon", "v_prediction")


def gaussian_prediction(z_t: Tensor, alpha_bar: Tensor, mean: Tensor, variance: float, kind: str) -> Tensor:
    """The best eps or v where the data are N(mean, variance): no network is better.

    E[z_0 | z_t] = mean + sqrt(a) variance / (a variance + 1 - a) (z_t - sqrt(a) mean).
    """
    gain = alpha_bar.sqrt() * variance / (alpha_bar * variance + 1 - alpha_bar)
    z_0 = mean + gain * (z_t - alpha_bar.sqrt() * mean)
    eps = (z_t - alpha_bar.sqrt() * z_0) / (1 - alpha_bar).sqrt()
    return eps if kind == "epsilon" else alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * z_0


def alpha_bar_at(scheduler: Any, t: Tensor) -> Tensor:
    """Between two training times (Heun and Euler may ask there) the noise level is interpolated."""
    levels = scheduler.alphas_cumprod
    t = torch.as_tensor(t, dtype=torch.float32).clamp(0, len(levels) - 1)
    low, part = t.floor().long(), t - t.floor()
    high = (low + 1).clamp(max=len(levels) - 1)
    sigma = ((1 - levels) / levels).sqrt()
    return 1 / (1 + ((1 - part) * sigma[low] + part * sigma[high]).square())


def sample(name: str, kind: str, mean: Tensor, variance: float, steps: int, count: int) -> Tensor:
    """``count`` samples of a Gaussian, as the pipeline takes its steps."""
    scheduler: Any = make_scheduler(name, NoiseScheduleConfig(prediction_type=kind).model_dump())
    generator = torch.Generator().manual_seed(0)
    scheduler.set_timesteps(steps)
    z = torch.randn(count, *mean.shape, generator=generator) * scheduler.init_noise_sigma
    extra = {"generator": generator} if name in ("ddpm", "ddim") else {}
    for t in scheduler.timesteps:
        given = scheduler.scale_model_input(z, t)
        prediction = gaussian_prediction(given, alpha_bar_at(scheduler, t), mean, variance, kind)
        z = scheduler.step(prediction, t, z, **extra).prev_sample
    return z


def test_names_are_those_of_the_command_line_and_the_config() -> None:
    assert tuple(SAMPLERS) == SAMPLER_NAMES
    annotation = DiffusionRecipe.model_fields["sampler"].annotation
    assert annotation is not None and annotation.__args__ == SAMPLER_NAMES


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("name", SAMPLER_NAMES)
def test_every_sampler_recovers_z_0(name: str, kind: str) -> None:
    """Where only one z_0 is possible, every sampler must end on it."""
    mean = torch.randn(4, 8, 2, generator=torch.Generator().manual_seed(1))
    made = sample(name, kind, mean, variance=0.0, steps=20, count=2)
    assert (made - mean).abs().max() < 1e-3


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("name", SAMPLER_NAMES)
def test_every_sampler_has_the_moments_of_the_data(name: str, kind: str) -> None:
    mean = torch.tensor([[[1.5, -0.5, 0.0, 3.0]]])
    # DDPM's ancestral steps need many: their variance is right only where steps are small.
    steps = 500 if name == "ddpm" else 50
    made = sample(name, kind, mean, variance=0.25, steps=steps, count=4000)
    assert (made.mean(0) - mean).abs().max() < 0.06
    assert (made.std(0) - 0.5).abs().max() < 0.06


def test_forward_process_is_taken_over_and_the_rest_is_not() -> None:
    process = NoiseScheduleConfig(
        beta_schedule="linear", beta_start=1e-4, beta_end=0.02, prediction_type="v_prediction"
    )
    first = make_scheduler("ddim", process.model_dump())
    for name in SAMPLER_NAMES:
        scheduler: Any = make_scheduler(name, dict(first.config))
        for key in FORWARD_PROCESS:
            assert scheduler.config[key] == first.config[key], (name, key)
        assert torch.allclose(scheduler.alphas_cumprod, first.alphas_cumprod)
        assert scheduler.config.timestep_spacing == "trailing"


def test_first_step_is_at_the_last_training_time() -> None:
    """Leading spacing would begin with less noise than the network is given (Lin et al. 2024)."""
    for name in SAMPLER_NAMES:
        scheduler: Any = make_scheduler(name, NoiseScheduleConfig().model_dump())
        scheduler.set_timesteps(20)
        assert int(scheduler.timesteps[0]) == 999, name


def test_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(InputError, match="unknown sampler 'plms'.*ddim"):
        make_scheduler("plms", NoiseScheduleConfig().model_dump())
