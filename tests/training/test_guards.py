"""What stops a run is one sentence that says where to look and what to set; silence stops nothing."""

import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from latentdiff.config import AnyRecipe, save_config
from latentdiff.errors import InputError
from latentdiff.training import launch
from latentdiff.training.batches import share_out
from latentdiff.training.guards import Finite, NonFiniteError, explain
from latentdiff.training.loop import LEAST_SCALE, Trainer, seeded_generator, weighted_sum
from latentdiff.training.recipe import Step
from latentdiff.training.recipes import RECIPES
from latentdiff.training.recipes.vae import VAETraining
from tests.training.child import children
from tests.training.conftest import debug_config, diffusion_parts


def launched(config: AnyRecipe, path: Path) -> int:
    """The exit code of training from the command line, in this process."""
    path.mkdir(exist_ok=True)
    save_config(config, path / "given.yaml")
    return launch.main([str(path / "given.yaml")])


def poison(monkeypatch: pytest.MonkeyPatch, act: Callable[..., Any]) -> None:
    """Let ``act(recipe, batch, step)`` do what the VAE's losses did."""
    monkeypatch.setattr(VAETraining, "losses", act)


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", ["loss", "gradient"])
def test_values_that_are_not_finite_are_named(value: float, place: str) -> None:
    finite = Finite(7)
    good, bad = torch.tensor(1.0), torch.tensor(value)
    finite.note("vae", good, {"kl": good}, [1, 2])
    finite.note("vae", bad if place == "loss" else good, {"kl": bad}, [3, 4])
    rows = r"\[3, 4\]" if place == "loss" else r"\[1, 2, 3, 4\]"  # the guilty ones, where they are known
    with pytest.raises(NonFiniteError, match=rf"step 7, phase vae, rows {rows}: .*kl .*optimizer\.lr"):
        finite.require("vae", bad if place == "gradient" else good)


def test_finite_values_pass_and_phases_are_apart() -> None:
    finite = Finite(7)
    finite.note("vae", torch.tensor(1.0), {}, [1])
    finite.note("discriminator", torch.tensor(float("nan")), {}, None)
    finite.require("vae", torch.tensor(3.0))


def test_a_run_that_is_not_finite_ends_with_1_and_keeps_the_last_checkpoint(
    tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = VAETraining.losses

    def wrong(recipe: Any, batch: Any, step: Step) -> Iterator[Any]:
        for phase, terms in right(recipe, batch, step):
            yield phase, {name: value / (0.0 if step.number == 4 else 1.0) for name, value in terms.items()}

    poison(monkeypatch, wrong)
    assert launched(debug_config("vae", tones, tmp_path / "run"), tmp_path) == 1
    said = capsys.readouterr().err
    assert re.search(r"latentdiff: step 4, phase discriminator, rows \[\d+, \d+, \d+, \d+\]: ", said)
    assert "Traceback" not in said
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000003"]


def test_fp16_that_never_gets_finite_stops_too(tones: Path, tmp_path: Path) -> None:
    """Its loss scaler skips such steps and halves the scale, for ever if nobody looks."""
    trainer = Trainer(debug_config("vae", tones, tmp_path), RECIPES["vae"])
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=LEAST_SCALE / 2)
    trainer.accelerator.scaler.scale(torch.ones(1))
    finite = Finite(0)
    finite.note("vae", torch.tensor(float("nan")), {}, [5])
    with pytest.raises(NonFiniteError, match=r"rows \[5\]"):
        trainer._move("vae", finite)


@pytest.mark.parametrize("stage", ["vae", "vocoder", "clap", "diffusion", "judge"])
def test_silence_has_finite_losses_and_gradients(
    stage: str, stages: dict[str, Path], tones: Path, tmp_path: Path
) -> None:
    """log(0), 0/0 and the slope of sqrt at 0: every phase's every term, and each network's gradient."""
    parts = diffusion_parts(stages) if stage == "diffusion" else []
    overrides = [*parts, *(["adversarial_start=0"] if stage in ("vae", "vocoder") else [])]
    trainer = Trainer(debug_config(stage, tones, tmp_path, *overrides), RECIPES[stage])
    batch = {
        name: torch.zeros_like(value) if isinstance(value, torch.Tensor) else value
        for name, value in next(trainer._batches()).items()
    }
    recipe, seen = trainer.recipe, set()
    for phase, terms in recipe.losses(batch, Step(0, seeded_generator(0, 0, 0))):
        assert all(value.isfinite() for value in terms.values()), terms
        weighted_sum(terms, recipe.weights).backward()
        for name in recipe.phases[phase]:
            gradients = [p.grad for p in recipe.networks[name].parameters() if p.grad is not None]
            assert gradients and all(gradient.isfinite().all() for gradient in gradients), name
        seen |= set(terms)
    assert seen >= set(recipe.weights)


# ---------------------------------------------------------------- memory, workers, disks


def test_out_of_memory_says_what_to_set(
    tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real one: the allocator of the CPU refuses a petabyte."""
    poison(monkeypatch, lambda recipe, batch, step: torch.empty(10**15))
    assert launched(debug_config("vae", tones, tmp_path / "run"), tmp_path) == 1
    said = capsys.readouterr().err.splitlines()[-1]  # when one item at a time was too much too
    for words in ("can't allocate memory", "train.mixed_precision=bf16", "data.seconds", "autoencoder"):
        assert words in said


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ..."),
        RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"),
        MemoryError(),
    ],
)
def test_every_kind_of_out_of_memory_is_known(error: Exception, tones: Path, tmp_path: Path) -> None:
    config = debug_config("vae", tones, tmp_path, "train.batch_size=1", "train.mixed_precision=bf16")
    said = explain(error, config)
    assert said and said.startswith("out of memory (") and "batch_size" not in said
    for words in ("data.seconds", "a smaller network", "train.ema_decay=0"):
        assert words in said


@pytest.mark.parametrize("stage", ["vae", "vocoder", "clap", "diffusion", "judge"])
def test_the_settings_proposed_exist(stage: str, tones: Path, tmp_path: Path) -> None:
    config = debug_config(stage, tones, tmp_path)
    said = explain(MemoryError(), config) or ""
    assert said.count(";") == 2 or config.train.batch_size == 1
    for key in re.findall(r"(?:train|data|unet|generator|model)\.\w+|autoencoder|width", said):
        section: Any = config
        for part in key.split("."):
            section = getattr(section, part)


def test_a_step_that_does_not_fit_is_shared_out_smaller(tones: Path, tmp_path: Path) -> None:
    """In a process of its own, in the middle of a step of which one phase had moved its network already.

    It goes on from the checkpoint before, with the same items a step: as a run does that was stopped there and told.
    """

    def config(name: str, *overrides: str) -> AnyRecipe:
        return debug_config("vae", tones, tmp_path / name, "optimizer.schedule=constant", *overrides)

    with children() as start:
        tight = start(config("tight"), tmp_path / "tight.log", "memory")
        told = start(config("told", "train.max_steps=3", "train.validate_every=100"), tmp_path / "told.log")
        told.join(200)
        halves = ("train.batch_size=2", "train.gradient_accumulation=2")
        told = start(config("told", *halves), tmp_path / "told.log")
        for process in (tight, told):
            process.join(200)
    said = (tmp_path / "tight.log").read_text()
    assert tight.exitcode == told.exitcode == 0, said
    assert "out of memory with train.batch_size=4 (CUDA out of memory." in said
    assert "going on with train.batch_size=2 and train.gradient_accumulation=2" in said
    lines = [json.loads(line) for line in (tmp_path / "tight.rows").read_text().splitlines()]
    assert [(step, len(rows)) for step, rows in lines] == [(s, 4) for s in range(5)] + [
        (s, 2) for s in (3, 4, 5) for _ in range(2)
    ]
    assert sorted(lines[3][1]) == sorted(lines[5][1] + lines[6][1])  # step 3 once more: the same items
    last = "checkpoints/step-00000006"
    for name in ("model.safetensors", "model_1.safetensors", "ema.safetensors"):
        one, other = (load_file(tmp_path / run / last / name) for run in ("tight", "told"))
        assert all(torch.equal(one[key], other[key]) for key in one), name


def test_half_the_micro_batch_is_the_same_global_batch(tones: Path, tmp_path: Path) -> None:
    """What the message proposes."""
    config = debug_config("vae", tones, tmp_path, "train.batch_size=8", "train.gradient_accumulation=3")
    said = explain(MemoryError(), config) or ""
    sizes = [int(size) for size in re.findall(r"train\.\w+=(\d+)", said)]
    assert sizes == [4, 6] and sizes[0] * sizes[1] == 8 * 3


def test_a_defect_keeps_its_traceback(tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, lambda recipe, batch, step: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        launched(debug_config("vae", tones, tmp_path / "run"), tmp_path)


class Items(torch.utils.data.Dataset[dict[str, Any]]):
    """Items that do something to the worker that reads them."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self.act = act

    def __len__(self) -> int:
        return 10

    def __getitem__(self, draw: Any) -> dict[str, Any]:
        self.act()
        return {}


@pytest.mark.parametrize(
    ("act", "code", "words"),
    [
        (lambda: os._exit(9), 1, r"a data worker ended: .*data\.num_workers=0"),
        (lambda: os.kill(os.getpid(), 9), 1, r"a data worker ended: .*data\.num_workers=0"),
        (lambda: read_broken(), 2, r"^latentdiff: .*broken\.wav.*$"),
        (lambda: time.sleep(60), 1, r"no data for 2 s \(train\.timeout\)"),
    ],
    ids=["exits", "is killed", "finds a broken file", "hangs"],
)
def test_a_worker_that_fails_is_one_sentence(
    act: Callable[[], Any], code: int, words: str, tones: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(VAETraining, "items", Items(act))
    overrides = ["data.num_workers=1", "train.timeout=2"]
    assert launched(debug_config("vae", tones, tmp_path / "run", *overrides), tmp_path) == code
    said = capsys.readouterr().err
    assert re.search(words, said.splitlines()[-1]) and "Traceback" not in said


def read_broken() -> None:
    raise InputError("data/broken.wav: cut short: 3 of 5 s. Remove it.")


def test_only_one_run_at_a_time_writes_into_a_folder(
    tones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lock is a process's, so the other one is another process: a forked child holds it here."""
    output = tmp_path / "run"
    output.mkdir()
    ready, held = os.pipe()
    child = os.fork()
    if child == 0:
        file = (output / ".lock").open("w")
        fcntl.lockf(file, fcntl.LOCK_EX)
        os.write(held, b"x")
        time.sleep(60)
        os._exit(0)
    os.read(ready, 1)
    try:
        assert launched(debug_config("vae", tones, output), tmp_path) == 2
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert "another process is writing into" in capsys.readouterr().err
    assert launched(debug_config("vae", tones, output, "train.max_steps=1"), tmp_path) == 0  # its end set it free


# ---------------------------------------------------------------- sharing out a batch


@pytest.mark.parametrize(
    ("batch", "accumulation", "processes", "micro", "shares"),
    [
        (8, 1, 1, 8, 1),
        (8, 1, 2, 4, 1),
        (8, 4, 2, 8, 2),  # as on one process: the same micro-batches, each in one of two places
        (8, 4, 4, 8, 1),
        (8, 4, 8, 4, 1),
        (8, 3, 2, 6, 2),
        (7, 2, 2, 7, 1),
    ],
)
def test_any_number_of_processes_shares_the_same_batch(
    batch: int, accumulation: int, processes: int, micro: int, shares: int, tones: Path, tmp_path: Path
) -> None:
    overrides = [f"train.batch_size={batch}", f"train.gradient_accumulation={accumulation}"]
    train = debug_config("vae", tones, tmp_path, *overrides).train
    assert share_out(train, processes) == (micro, shares)
    assert micro * shares * processes == batch * accumulation and micro <= batch


def test_a_batch_that_cannot_be_shared_is_refused(tones: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is 4, which 3 processes cannot share equally; take a multiple of 3"):
        share_out(debug_config("vae", tones, tmp_path).train, 3)
