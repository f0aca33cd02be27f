"""Networks sharded over two real processes: the same training, and checkpoints that do not show it."""

import json
import re
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from latentdiff.config import AnyRecipe, save_config
from latentdiff.errors import InputError
from latentdiff.training.sharding import keep_from_libraries, requested_sharding
from tests.training.child import children, launch, ranks
from tests.training.conftest import debug_config, diffusion_parts

FILE = Path(__file__).parents[2] / "configs" / "accelerate" / "fsdp2.yaml"
WISH = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "false"}


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., BaseProcess]]:
    with children() as start:
        yield start


def fork(start: Callable[..., BaseProcess], config: AnyRecipe, logs: list[Path], given: list[dict[str, str]]) -> str:
    group = [start(config, log, environment=environment) for log, environment in zip(logs, given, strict=True)]
    for process in group:
        process.join(200)
    said = "".join(log.read_text() for log in logs)
    assert [process.exitcode for process in group] == [0] * len(group), said
    return said


def test_sharded_then_whole_then_sharded_trains_as_one_process_does(
    start: Callable[..., BaseProcess], stages: dict[str, Path], tones: Path, tmp_path: Path
) -> None:
    """Clipping, averages, resuming, validation and export too; steps 0 and 1 with ``accelerate launch``."""

    def config(output: str, steps: int) -> AnyRecipe:
        return debug_config("diffusion", tones, tmp_path / output, *diffusion_parts(stages), "train.batch_size=2",
                            "train.gradient_accumulation=2", f"train.max_steps={steps}", "train.max_grad_norm=0.1",
                            "optimizer.schedule=constant", f"train.overfit_check_steps={steps % 3}")  # fmt: skip

    fork(start, config("alone", 6), [tmp_path / "alone.log"], [{}])
    given = tmp_path / "given.yaml"
    save_config(config("changing", 2), given)
    options = ("--config_file", str(FILE), "--num_processes", "2", "--fsdp_min_num_params", "2000")
    said = launch(str(given), options=options, cwd=tmp_path)
    said += fork(start, config("changing", 4), [tmp_path / "whole.log"], [{}])
    pair = [{**environment, **WISH} for environment in ranks(2)]
    said += fork(start, config("changing", 6), [tmp_path / f"{rank}.log" for rank in (0, 1)], pair)

    shares = [tuple(map(int, found)) for found in re.findall(r"over 2 processes: (\d+) of (\d+) parameters", said)]
    assert len(shares) == 4 and len({total for _, total in shares}) == 1  # twice two processes
    assert sum(here for here, _ in shares) == 2 * shares[0][1] and max(here for here, _ in shares) < 0.6 * shares[0][1]
    assert said.count("one-batch overfit check, 2 steps") == 2
    folders = {(run, step): tmp_path / run / "checkpoints" / f"step-{step:08d}" for run, step in
               (("alone", 3), ("alone", 6), ("changing", 6))}  # fmt: skip
    assert "random_states_1.pkl" in json.loads((folders["changing", 6] / "manifest.json").read_text())["files"]
    for name in ("model.safetensors", "ema.safetensors"):
        before, one, other = (load_file(folder / name) for folder in folders.values())
        assert {key: value.shape for key, value in one.items()} == {key: value.shape for key, value in other.items()}
        # AdamW moves a weight whose gradient is near 0 a whole lr this way or that, so the few of these may differ.
        assert (flat(one) - flat(other)).norm() < 0.05 * (flat(one) - flat(before)).norm(), name
    one, other = (torch.load(folders[run, 6] / "optimizer.bin", weights_only=True) for run in ("alone", "changing"))
    for number, state in one["state"].items():
        assert {k: (v.shape, v.dtype) for k, v in state.items()} == {
            k: (v.shape, v.dtype) for k, v in other["state"][number].items()
        }
    exported = UNet2DConditionModel.from_pretrained(tmp_path / "changing" / "pipeline" / "unet").state_dict()
    average = flat(load_file(folders["changing", 6] / "ema.safetensors"))
    assert torch.isin(torch.cat([value.flatten() for value in exported.values()]), average).all()
    assert list((tmp_path / "changing" / "validation" / "step-00000006").iterdir())


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for _, tensor in sorted(tensors.items())])


@pytest.mark.parametrize(
    ("stage", "override", "environment", "said"),
    [
        ("clap", "seed=1", {}, "the clap stage"),
        ("vae", "train.mixed_precision=fp16", {}, "mixed_precision=fp16"),
        ("vae", "seed=1", {"FSDP_VERSION": "1"}, "fsdp_version: 1"),
        ("vae", "seed=1", {"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params"),
        ("diffusion", "objective.times=importance", {}, "objective.times=importance"),
        ("vae", "seed=1", {"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed .*fsdp2.yaml"),
    ],
)
def test_what_cannot_be_sharded_is_said_first(
    stage: str, override: str, environment: dict[str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**WISH, **environment, "FSDP_ASKED_FOR": ""}.items():
        monkeypatch.setenv(name, value)
    config = debug_config(stage, tmp_path, tmp_path / "run", override)
    with pytest.raises(InputError, match=said):
        keep_from_libraries()
        requested_sharding(config, torch.device("cpu"), 2)
