"""Every objective through the ordinary trainer: trained, saved, resumed, and sampled by the scheduler it names."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from PIL import Image
from safetensors.torch import load_file

from latentdiff import InputError, TextToImagePipeline
from latentdiff.config import DiffusionRecipe, load_config
from latentdiff.diffusion.process import EDMSchedule, prediction_of, schedule_of
from latentdiff.diffusion.samplers import make_scheduler
from latentdiff.diffusion.schedule import DiscreteSchedule, LogLinearSchedule
from latentdiff.training.loop import Trainer
from latentdiff.training.objective import new_objective, process_of
from latentdiff.training.recipes import RECIPES
from tests.training.conftest import CONFIGS, train

OBJECTIVES = {
    "simple, x_0": ["objective={kind: simple, prediction: sample}", "sampler=ddim"],
    "simple, v": [
        "objective={kind: simple, prediction: v_prediction, variance: fixed_large}",
        "schedule.rescale_betas_zero_snr=true",
    ],
    "min_snr": ["objective={kind: min_snr}", "sampler=heun"],
    "p2": ["objective={kind: p2, k: 0.5}", "sampler=unipc"],
    "hybrid": ["sampler=dpmsolver++"],
    "vlb": ["objective={kind: vlb, prediction: sample}"],
    "one_step_vae": ["objective={kind: one_step_vae, beta: 0.5}", "schedule=null", "default_steps=1"],
    "edm": ["objective={kind: edm}", "schedule=null", "sampler=euler"],
    "flow": ["objective={kind: flow, shift: 2}", "schedule=null", "sampler=heun"],
    "vdm": ["objective={kind: vdm, num_train_timesteps: 50}", "schedule=null", "unet.fourier_features=true"],
}


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten 8 x 8 pictures in grey, and not one caption."""
    folder = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(0)
    for i in range(10):
        picture = np.kron(rng.integers(0, 256, (2, 2)), np.ones((4, 4))).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{i}.png")
    return folder


def configure(data: Path, output: Path, *overrides: str) -> DiffusionRecipe:
    common = [f"data.path={data}", f"output={output}", "data.held_out=0.2", "data.channels=1", "train.batch_size=4",
              "train.max_steps=4", "train.validate_every=4", "train.checkpoint_every=2", "train.trackers=[]",
              "unet.block_out_channels=[8, 16]", "unet.norm_num_groups=4", "train.overfit_check_steps=0",
              "objective.times=uniform"]  # fmt: skip
    config = load_config(CONFIGS / "image_pixels.yaml", [*common, *overrides])
    assert isinstance(config, DiffusionRecipe)
    return config


def loaded(output: Path) -> TextToImagePipeline:
    pipe = TextToImagePipeline.from_pretrained(output / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def runs(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of every objective, four steps long."""
    root = tmp_path_factory.mktemp("objectives")
    return {name: train(configure(scans, root / name, *said)) for name, said in OBJECTIVES.items()}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_is_trained_is_sampled(name: str, runs: dict[str, Path], scans: Path, tmp_path: Path) -> None:
    """The saved scheduler undoes the objective's process, and the network's output has the place that it reads."""
    pipe = loaded(runs[name])
    config = configure(scans, tmp_path, *OBJECTIVES[name])
    expected = process_of(config, new_objective(config))
    assert prediction_of(pipe.scheduler.config) == prediction_of(expected) == pipe.config.prediction
    assert type(pipe.scheduler) is type(make_scheduler(config.sampler, expected))
    if name != "vdm":  # which has learned since
        saved, wanted = schedule_of(pipe.scheduler.config), schedule_of(expected)
        if isinstance(wanted, DiscreteSchedule):
            assert isinstance(saved, DiscreteSchedule)
            assert torch.allclose(saved.alpha_bar, wanted.alpha_bar, rtol=0, atol=1e-6)
        else:
            assert saved == wanted
    made = pipe(num_images_per_prompt=2, generator=[torch.Generator().manual_seed(seed) for seed in (0, 1)])
    assert [picture.size for picture in made.images] == [(8, 8)] * 2
    alone = pipe(num_images_per_prompt=1, generator=[torch.Generator().manual_seed(1)])
    difference = np.asarray(alone.images[0], float) - np.asarray(made.images[1], float)
    assert abs(difference).max() <= 1  # a picture is the same alone and among others
    shown = {path.name for path in (runs[name] / "validation/step-00000004").iterdir()}
    assert shown == {f"{number}.png" for number in range(4)}


def test_a_learned_schedule_is_trained_averaged_and_saved_with_the_sampler(runs: dict[str, Path]) -> None:
    states = [load_file(runs["vdm"] / f"checkpoints/step-0000000{step}/model.safetensors") for step in (2, 4)]
    for name in ("gamma_min", "log_span", "first", "inner", "outer"):
        assert not torch.equal(states[0][f"schedule.{name}"], states[1][f"schedule.{name}"]), name
    levels = DiscreteSchedule.from_config(loaded(runs["vdm"]).scheduler.config).alpha_bar
    assert len(levels) == 50 and levels[0] == pytest.approx(1 / (1 + math.exp(-13.3)), abs=1e-6)
    assert not torch.equal(levels, DiscreteSchedule.from_gamma(LogLinearSchedule(), 50).alpha_bar)


def test_the_sampler_of_a_learned_schedule_follows_it(scans: Path, tmp_path: Path) -> None:
    recipe: Any = RECIPES["diffusion"](configure(scans, tmp_path, *OBJECTIVES["vdm"]), torch.device("cpu"))
    with torch.no_grad():
        recipe.networks["denoiser"].schedule.gamma_min.fill_(-6.0)
    scheduler = recipe.pipeline().scheduler
    assert float(scheduler.alphas_cumprod[0]) == pytest.approx(1 / (1 + math.exp(-6.0)), abs=1e-6)


@pytest.mark.parametrize("said", [["objective.times=importance"], OBJECTIVES["vdm"]], ids=["importance", "vdm"])
def test_resumed_equals_unbroken(said: list[str], scans: Path, tmp_path: Path) -> None:
    """With the losses that importance sampling has seen, and with a learned schedule."""
    overrides = [*said, "optimizer.schedule=constant", "default_steps=2", "schedule.num_train_timesteps=2"]
    if said == OBJECTIVES["vdm"]:
        overrides.pop()
    whole = train(configure(scans, tmp_path / "whole", *overrides, "train.max_steps=12"))
    train(configure(scans, tmp_path / "halves", *overrides, "train.max_steps=8"))
    halves = train(configure(scans, tmp_path / "halves", *overrides, "train.max_steps=12"))
    first, second = (load_file(run / "checkpoints/step-00000012/model.safetensors") for run in (whole, halves))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    if said != OBJECTIVES["vdm"]:  # both times have been met ten times, so they are no longer drawn alike
        assert second["times.counts"].tolist() == [10, 10] and (second["times.losses"] > 0).all()


def test_importance_steers_the_draw(scans: Path, tmp_path: Path) -> None:
    said = ["objective.times=importance", "schedule.num_train_timesteps=2", "default_steps=2", "train.max_steps=9"]
    trainer = Trainer(configure(scans, tmp_path, *said), RECIPES["diffusion"])
    trainer.run()
    drawn = trainer.recipe.drawn
    shares = drawn.probabilities()
    assert shares.sum() == pytest.approx(1.0) and abs(shares[0] - 0.5) > 0.01
    t = drawn.draw_times(1000, torch.Generator().manual_seed(0))
    assert float((t == 0).float().mean()) == pytest.approx(float(shares[0]), abs=0.002)


def test_more_steps_than_training_times_are_refused(runs: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="41 steps cannot be taken: .* cannot be larger than"):
        loaded(runs["simple, x_0"])(num_inference_steps=41)


def test_pixels_are_on_the_grid_that_the_bounds_count_on(scans: Path, tmp_path: Path) -> None:
    """Half precision alone, which the cache has, would be off it, and the bound would refuse the data."""
    recipe: Any = RECIPES["diffusion"](configure(scans, tmp_path, "objective={kind: vlb}"), torch.device("cpu"))
    cached = recipe.latents.mean[:8]
    levels = (recipe.first_stage.exact(cached).double() + 1) * 127.5
    assert (levels - levels.round()).abs().max() < 1e-4 < ((cached.double() + 1) * 127.5 % 1).max()


def test_a_scheduler_that_contradicts_the_model_is_refused(runs: dict[str, Path]) -> None:
    pipe = loaded(runs["simple, v"])
    own = pipe.scheduler
    pipe.scheduler = DDIMScheduler.from_config(own.config, prediction_type="epsilon")
    with pytest.raises(InputError, match="takes the network's output for 'epsilon', but the model predicts 'v_predic"):
        pipe()
    pipe.scheduler = EulerDiscreteScheduler(prediction_type="v_prediction")
    with pytest.raises(InputError, match="1000 training times, but the model 40"):
        pipe()
    with pytest.raises(InputError, match="for 'epsilon', but the model predicts 'v_prediction'"):
        TextToImagePipeline.from_pretrained(runs["simple, v"] / "pipeline", scheduler=DDIMScheduler())
    pipe.scheduler = make_scheduler("euler", own.config)
    assert len(pipe().images) == 1
    flow, edm = loaded(runs["flow"]), loaded(runs["edm"])
    flow.scheduler = own
    with pytest.raises(InputError, match="but the model predicts 'flow'"):
        flow()
    edm.scheduler = make_scheduler("dpmsolver++", EDMSchedule(sigma_data=1.0).to_config())
    with pytest.raises(InputError, match=r"sigma_data 1, but the model was trained with 0\.5"):
        edm()


def test_a_learned_variance_is_read_by_ddpm_alone(runs: dict[str, Path]) -> None:
    pipe = loaded(runs["hybrid"])
    assert (pipe.unet.config.in_channels, pipe.unet.config.out_channels) == (1, 2)
    pipe.scheduler = make_scheduler("ddpm", pipe.scheduler.config)
    assert pipe.scheduler.config["variance_type"] == "learned_range" and len(pipe().images) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompt": "a seven"}, "hears no prompt, and prompt was given"),
        ({"negative_prompt": "a one"}, "hears no prompt, and negative_prompt was given"),
        ({"guidance_scale": 3.0}, "guidance_scale of 3 cannot steer it"),
    ],
)
def test_what_nothing_would_hear_is_refused(arguments: dict[str, Any], words: str, runs: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=words):
        loaded(runs["hybrid"])(**arguments)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sampler=heun", *OBJECTIVES["edm"][:2]], "'heun' cannot run a model of the edm kind"),
        (["schedule.rescale_betas_zero_snr=true"], "'epsilon' says nothing of the data"),
        (["objective={kind: vdm, gamma_min: 3, gamma_max: 1}", "schedule=null"], "gamma must grow"),
        (["objective={kind: simple, channel_weights: decoded}"], "there is no VAE whose decoder could say"),
    ],
)
def test_what_cannot_be_trained_is_said_before(overrides: list[str], words: str, scans: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        RECIPES["diffusion"](configure(scans, tmp_path, *overrides), torch.device("cpu"))
