"""A run that was stopped and started again ends with the tensors of one that was not, bit for bit."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from latentdiff.config import AnyRecipe
from latentdiff.training.recipes import RECIPES
from tests.training.conftest import debug_config, diffusion_parts, teacher_part, train

STAGES = ("vae", "vocoder", "clap", "diffusion", "consistency", "judge")
STEPS, EPOCH = 4, 2
STOPS = {"in the middle of an epoch": 1, "at the end of an epoch": 2, "after an epoch": 3}


@pytest.fixture(scope="module", autouse=True)
def only_training(stages: dict[str, Path]) -> Iterator[None]:
    """What is written for people costs more than these few steps, and is looked at elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        for recipe in RECIPES.values():
            patch.setattr(recipe, "validate", lambda recipe, folder: {})
            patch.setattr(recipe, "export", lambda recipe, folder: None)
        yield


def config_of(stage: str, tones: Path, output: Path, parts: list[str], *overrides: str) -> AnyRecipe:
    """Ten items, five a step, so that an epoch is two steps; both optimisers of a GAN move from the first on."""
    return debug_config(
        stage, tones, output, *parts, "train.batch_size=5", f"train.max_steps={STEPS}", "train.checkpoint_every=1",
        "train.keep_checkpoints=9", "optimizer.warmup_steps=3", "train.ema_decay=0.9", *overrides,
        *(["adversarial_start=0"] if stage in ("vae", "vocoder") else []),
    )  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(
    only_training: None, stages: dict[str, Path], tones: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Each stage trained without a stop, with a checkpoint of every step."""
    root = tmp_path_factory.mktemp("unbroken")
    return {stage: train(config_of(stage, tones, root / stage, parts_of(stage, stages))) for stage in STAGES}


def parts_of(stage: str, stages: dict[str, Path]) -> list[str]:
    if stage == "consistency":
        return [teacher_part(stages)]
    return diffusion_parts(stages) if stage == "diffusion" else []


def tensors(value: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested states, by their place."""
    if isinstance(value, dict | list | tuple):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for place, part in parts for key, leaf in tensors(part, f"{name}/{place}").items()}
    return {name: value}


def contents(checkpoint: Path) -> dict[str, Any]:
    """All that a checkpoint holds, by file and place."""
    found: dict[str, Any] = {}
    for path in sorted(checkpoint.iterdir()):
        if path.suffix == ".safetensors":
            found |= tensors(load_file(path), path.name)
        elif path.suffix == ".bin":
            found |= tensors(torch.load(path, weights_only=True), path.name)
        elif path.name == "schedules.json":
            found |= tensors(json.loads(path.read_text()), path.name)
    return found


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        same = torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        assert same, name


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("stage", STAGES)
def test_resumed_equals_unbroken(
    stage: str, stop: str, workers: int, unbroken: dict[str, Path], stages: dict[str, Path], tones: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(unbroken[stage], run, ignore=shutil.ignore_patterns("validation", "vae", "vocoder", "pipeline"))
    for step in range(STOPS[stop] + 1, STEPS + 1):
        shutil.rmtree(run / "checkpoints" / f"step-{step:08d}")
    train(config_of(stage, tones, run, parts_of(stage, stages), f"data.num_workers={workers}"))
    last = f"checkpoints/step-{STEPS:08d}"
    assert_same(contents(run / last), contents(unbroken[stage] / last))


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_compared_is_all_there_and_moves(stage: str, unbroken: dict[str, Path]) -> None:
    """Guards the test above: networks (two of a GAN or a student and its target), optimisers, averages and schedules,
    none of which stands still."""
    first, last = (contents(unbroken[stage] / "checkpoints" / f"step-{step:08d}") for step in (STEPS - 1, STEPS))
    files = {name.partition("/")[0] for name in last}
    second = {"model_1.safetensors"} if stage in ("vae", "vocoder", "consistency") else set()
    second |= {"optimizer_1.bin"} if stage in ("vae", "vocoder") else set()
    assert files == {"model.safetensors", "optimizer.bin", "ema.safetensors", "schedules.json"} | second
    for file in files:
        parts = [name for name in last if name.startswith(file)]
        assert any(not torch.equal(torch.as_tensor(first[name]), torch.as_tensor(last[name])) for name in parts
                   if isinstance(last[name], torch.Tensor | float | int)), file  # fmt: skip


def test_there_are_two_steps_an_epoch(tones: Path, tmp_path: Path) -> None:
    config = config_of("vae", tones, tmp_path, [])
    assert len(RECIPES["vae"](config, torch.device("cpu")).items) == EPOCH * config.train.batch_size
