"""Every sampler against a denoiser whose answer is known in closed form."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latentdiff.config import DiffusionRecipe, NoiseScheduleConfig
from latentdiff.diffusion.continuous_objectives import EDM, Precondition
from latentdiff.diffusion.process import EDMSchedule, FlowSchedule, variance_of
from latentdiff.diffusion.samplers import (
    CONSISTENCY_SAMPLERS,
    EDM_SAMPLERS,
    FLOW_SAMPLERS,
    FORWARD_PROCESS,
    SAMPLERS,
    make_scheduler,
    name_of,
    network_input,
    readable_output,
    start_of,
)
from latentdiff.diffusion.schedule import DiscreteSchedule
from latentdiff.errors import InputError
from latentdiff.names import SAMPLER_NAMES

PREDICTIONS = ("epsilon", "sample", "v_prediction")


def gaussian_prediction(z_t: Tensor, alpha_bar: Tensor, mean: Tensor, variance: float, kind: str) -> Tensor:
    """The best eps or v where the data are N(mean, variance): no network is better.

    E[z_0 | z_t] = mean + sqrt(a) variance / (a variance + 1 - a) (z_t - sqrt(a) mean).
    """
    gain = alpha_bar.sqrt() * variance / (alpha_bar * variance + 1 - alpha_bar)
    z_0 = mean + gain * (z_t - alpha_bar.sqrt() * mean)
    eps = (z_t - alpha_bar.sqrt() * z_0) / (1 - alpha_bar).sqrt()
    if kind == "sample":
        return z_0
    return eps if kind == "epsilon" else alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * z_0


def alpha_bar_at(scheduler: Any, t: Tensor) -> Tensor:
    """Between two training times (Heun and Euler may ask there) the noise level is interpolated."""
    levels = scheduler.alphas_cumprod
    t = torch.as_tensor(t, dtype=torch.float32).clamp(0, len(levels) - 1)
    low, part = t.floor().long(), t - t.floor()
    high = (low + 1).clamp(max=len(levels) - 1)
    sigma = ((1 - levels) / levels.clamp(min=1e-30)).sqrt()
    return 1 / (1 + ((1 - part) * sigma[low] + part * sigma[high]).square())


def sample(
    name: str, kind: str, mean: Tensor, variance: float, steps: int, count: int, process: dict[str, Any] | None = None
) -> Tensor:
    """``count`` samples of a Gaussian, as the pipeline takes its steps."""
    process = process or NoiseScheduleConfig().model_dump()
    scheduler: Any = make_scheduler(name, process | {"prediction_type": kind})
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
    assert (*SAMPLERS, *CONSISTENCY_SAMPLERS) == SAMPLER_NAMES
    annotation = DiffusionRecipe.model_fields["sampler"].annotation
    choices, nothing = annotation.__args__  # type: ignore[union-attr]
    assert choices.__args__ == tuple(SAMPLERS) and nothing is type(None)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("name", list(SAMPLERS))
def test_every_sampler_recovers_z_0(name: str, kind: str) -> None:
    """Where only one z_0 is possible, every sampler must end on it."""
    mean = torch.randn(4, 8, 2, generator=torch.Generator().manual_seed(1))
    made = sample(name, kind, mean, variance=0.0, steps=20, count=2)
    assert (made - mean).abs().max() < 1e-3


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("name", list(SAMPLERS))
def test_every_sampler_has_the_moments_of_the_data(name: str, kind: str) -> None:
    mean = torch.tensor([[[1.5, -0.5, 0.0, 3.0]]])
    # DDPM's ancestral steps need many: their variance is right only where steps are small.
    steps = 500 if name == "ddpm" else 50
    made = sample(name, kind, mean, variance=0.25, steps=steps, count=4000)
    assert (made.mean(0) - mean).abs().max() < 0.06
    assert (made.std(0) - 0.5).abs().max() < 0.06


def test_karras_spacing_leaves_the_last_step_little_noise() -> None:
    """The last step goes to no noise at once, and what the noise before it hides comes out as its average."""
    process = NoiseScheduleConfig().model_dump()
    last = {}
    for name in ("dpmsolver++", "dpmsolver++-karras"):
        scheduler: Any = make_scheduler(name, process)
        scheduler.set_timesteps(10)
        last[name] = float(scheduler.sigmas[-2])
    assert last["dpmsolver++"] > 0.3 and last["dpmsolver++-karras"] < 0.05


def test_a_sampler_is_known_by_its_name() -> None:
    process = NoiseScheduleConfig().model_dump()
    for name in SAMPLERS:
        assert name_of(make_scheduler(name, process)) == name
        assert name_of(make_scheduler(name, dict(make_scheduler("dpmsolver++-karras", process).config))) == name


def test_forward_process_is_taken_over_and_the_rest_is_not() -> None:
    process = NoiseScheduleConfig(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
    first = make_scheduler("ddim", process.model_dump() | {"prediction_type": "v_prediction"})
    for name in SAMPLERS:
        scheduler: Any = make_scheduler(name, dict(first.config))
        for key in set(FORWARD_PROCESS) - {"variance_type"}:
            assert scheduler.config.get(key) == first.config.get(key), (name, key)
        assert torch.allclose(scheduler.alphas_cumprod, first.alphas_cumprod)
        assert scheduler.config.timestep_spacing == "trailing"


def test_first_step_is_at_the_last_training_time() -> None:
    """Leading spacing would begin with less noise than the network is given (Lin et al. 2024)."""
    for name in SAMPLERS:
        scheduler: Any = make_scheduler(name, NoiseScheduleConfig().model_dump())
        scheduler.set_timesteps(20)
        assert int(scheduler.timesteps[0]) == 999, name


def zero_snr() -> dict[str, Any]:
    return {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}


@pytest.mark.parametrize("name", [*SAMPLERS, "lcm"])
@pytest.mark.parametrize("ends", [{}, {"beta_start": 0.0015, "beta_end": 0.0195}], ids=["DDPM's", "AudioLDM's"])
def test_zero_terminal_snr_reaches_every_sampler(name: str, ends: dict[str, float]) -> None:
    """The solvers in sigma have 2^-24 in the place of the last 0; Heun too, which does not know the key."""
    exact = DiscreteSchedule.from_config(zero_snr() | ends).alpha_bar
    scheduler: Any = make_scheduler(name, zero_snr() | ends)
    assert torch.allclose(scheduler.alphas_cumprod[:-1].double(), exact[:-1], rtol=2e-3, atol=1e-6)
    assert float(scheduler.alphas_cumprod[-1]) == pytest.approx(0.0, abs=1e-7)
    scheduler.set_timesteps(4)
    assert bool(torch.isfinite(torch.as_tensor(scheduler.init_noise_sigma)))
    # A sampler made from this one's configuration, as saved or as it is, undoes the same process.
    for other in SAMPLERS if name != "lcm" else ():
        again: Any = make_scheduler(other, dict(scheduler.config))
        assert torch.allclose(again.alphas_cumprod.double(), exact, rtol=0, atol=1e-5), other
        assert DiscreteSchedule.from_config(again.config).betas[-1] == 1


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_every_sampler_recovers_z_0_from_no_signal_at_all(name: str) -> None:
    mean = torch.randn(4, 8, 2, generator=torch.Generator().manual_seed(1))
    made = sample(name, "v_prediction", mean, variance=0.0, steps=20, count=2, process=zero_snr())
    assert (made - mean).abs().max() < 2e-3


@pytest.mark.parametrize("name", ["heun", "dpmsolver++", "ddim"])
def test_zero_terminal_snr_survives_saving(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first: Any = make_scheduler(name, zero_snr())
    first.save_pretrained(tmp_path)
    again: Any = type(first).from_pretrained(tmp_path)
    assert not caplog.text
    assert torch.equal(first.alphas_cumprod, again.alphas_cumprod)
    back: Any = make_scheduler("euler", again.config)
    exact = DiscreteSchedule.from_config(zero_snr()).alpha_bar
    assert torch.allclose(back.alphas_cumprod.double(), exact, rtol=0, atol=1e-5)


def test_eps_without_any_signal_is_refused() -> None:
    for name in SAMPLERS:
        with pytest.raises(InputError, match="'epsilon' says nothing of the data"):
            make_scheduler(name, zero_snr() | {"prediction_type": "epsilon"})


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_every_sampler_reads_a_network_that_learned_its_variance(name: str) -> None:
    """DDPM has use for the second half, the others get the first; the key outlives a change of sampler."""
    process = NoiseScheduleConfig().model_dump() | {"variance_type": "learned_range"}
    scheduler: Any = make_scheduler(name, process)
    scheduler.set_timesteps(5)
    z_t = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    output = torch.cat([torch.zeros_like(z_t), torch.full_like(z_t, 0.3)], dim=1)
    read = readable_output(scheduler, output, z_t)
    assert read.shape[1] == (12 if name == "ddpm" else 6)
    scheduler.scale_model_input(z_t, scheduler.timesteps[0])
    assert scheduler.step(read, scheduler.timesteps[0], z_t).prev_sample.shape == z_t.shape
    assert variance_of(scheduler.config) == "learned_range"
    assert make_scheduler("ddpm", dict(scheduler.config)).config["variance_type"] == "learned_range"
    assert readable_output(scheduler, z_t, z_t) is z_t


class Perfect:
    """A network that knows the data are N(mean, variance), in the words of each family."""

    def __init__(self, mean: float, variance: float) -> None:
        self.mean, self.variance = mean, variance

    def flow(self, z_t: Tensor, sigma: Tensor) -> Tensor:
        gain = (1 - sigma) * self.variance / ((1 - sigma) ** 2 * self.variance + sigma**2)
        z_0 = self.mean + gain * (z_t - (1 - sigma) * self.mean)
        return (z_t - z_0) / sigma

    def edm(self, scaled: Tensor, log_sigma: Tensor) -> Tensor:
        precondition, sigma = Precondition(0.5), log_sigma.exp()
        x = scaled / precondition.c_in(sigma)
        z_0 = self.mean + self.variance / (self.variance + sigma**2) * (x - self.mean)
        return (z_0 - precondition.c_skip(sigma) * x) / precondition.c_out(sigma)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("name", FLOW_SAMPLERS)
def test_flow_samplers_have_the_moments_of_the_data(name: str, shift: float) -> None:
    scheduler: Any = make_scheduler(name, FlowSchedule(shift).to_config())
    scheduler.set_timesteps(50)
    z = start_of(scheduler, torch.randn(4000, 4, generator=torch.Generator().manual_seed(0)))
    for t in scheduler.timesteps:
        z = scheduler.step(Perfect(1.5, 0.25).flow(network_input(scheduler, z, t), t / 1000), t, z).prev_sample
    assert (z.mean(0) - 1.5).abs().max() < 0.06
    assert (z.std(0) - 0.5).abs().max() < 0.06
    assert FlowSchedule.from_config(scheduler.config) == FlowSchedule(shift)


@pytest.mark.parametrize("name", EDM_SAMPLERS)
def test_edm_samplers_have_the_moments_of_the_data(name: str) -> None:
    scheduler: Any = make_scheduler(name, EDM().scheduler_config())
    scheduler.set_timesteps(40)
    z = start_of(scheduler, torch.randn(4000, 4, generator=torch.Generator().manual_seed(0)))
    for t in scheduler.timesteps:
        given = network_input(scheduler, z, t)
        z = scheduler.step(Perfect(1.5, 0.25).edm(given, 4 * t), t, z).prev_sample
    assert (z.mean(0) - 1.5).abs().max() < 0.06
    assert (z.std(0) - 0.5).abs().max() < 0.06
    assert EDMSchedule.from_config(scheduler.config) == EDMSchedule()


def test_a_sampler_of_another_kind_of_model_is_refused() -> None:
    flow, edm = FlowSchedule().to_config(), EDM().scheduler_config()
    with pytest.raises(InputError, match="'ddim' cannot run a model of the flow kind; choose euler or heun"):
        make_scheduler("ddim", flow)
    with pytest.raises(InputError, match="'heun' cannot run a model of the edm kind; choose euler or dpmsolver"):
        make_scheduler("heun", edm)
    for name, config in (("lcm", flow), ("lcm", edm), ("cm", flow), ("cm", zero_snr())):
        with pytest.raises(InputError, match=f"sampler '{name}' is for students of another kind"):
            make_scheduler(name, config)
    for name, config in (("lcm", NoiseScheduleConfig().model_dump()), ("cm", edm)):
        with pytest.raises(InputError, match=f"few-step student, which 'euler' cannot.*its sampler, {name}"):
            make_scheduler("euler", make_scheduler(name, config).config)
        assert type(make_scheduler(name, make_scheduler(name, config).config)) is type(make_scheduler(name, config))


def test_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(InputError, match="unknown sampler 'plms'.*ddim"):
        make_scheduler("plms", NoiseScheduleConfig().model_dump())
