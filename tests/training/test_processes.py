"""Several real processes: they know each other, share the batch, end together, and leave nobody behind."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from latentdiff.training.checkpoint import find_fault
from tests.training.child import children, ranks, reached, wait_for
from tests.training.conftest import debug_config

ROOT = Path(__file__).parents[2]
TORCHRUN = ["torch.distributed.run", "--nproc_per_node", "2"]


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., BaseProcess]]:
    with children() as start:
        yield start


@pytest.mark.parametrize("stage", ["vae", "clap"])
def test_two_processes_train_one_model(
    stage: str, start: Callable[..., BaseProcess], tones: Path, tmp_path: Path
) -> None:
    config = debug_config(stage, tones, tmp_path / "run", "train.max_steps=3", "train.checkpoint_every=3",
                          "train.validate_every=3", "train.overfit_check_steps=2")  # fmt: skip
    logs = [tmp_path / f"log-{rank}" for rank in (0, 1)]
    pair = [start(config, log, environment=environment) for log, environment in zip(logs, ranks(2), strict=True)]
    for process in pair:
        process.join(200)
    assert [process.exitcode for process in pair] == [0, 0], [log.read_text()[-3000:] for log in logs]
    assert all(log.read_text().count("one-batch overfit check") == 1 for log in logs)
    manifest = json.loads((tmp_path / "run" / "checkpoints" / "step-00000003" / "manifest.json").read_text())
    states = {name for name in manifest["files"] if name.startswith("random_states_")}
    assert states == {"random_states_0.pkl", "random_states_1.pkl"}  # they knew each other: the world has two
    assert (tmp_path / "run" / stage / "config.json").is_file()


# ---------------------------------------------------------------- launchers and signals


@pytest.mark.parametrize(
    ("launcher", "number", "launcher_codes", "processes"),
    [
        (["latentdiff.cli", "train"], signal.SIGTERM, {143}, 1),
        (["accelerate.commands.launch", "--num_processes", "1", "train.py"], signal.SIGTERM, {-15}, 1),
        ([*TORCHRUN, "train.py"], signal.SIGTERM, {1}, 2),
        ([*TORCHRUN, "--signals-to-handle", "SIGTERM,SIGUSR1", "train.py"], signal.SIGUSR1, {1}, 2),
    ],
    ids=["latentdiff train", "accelerate launch", "torchrun", "torchrun under Slurm"],
)
def test_a_signal_to_the_launcher(
    launcher: list[str], number: signal.Signals, launcher_codes: set[int], processes: int, tones: Path, tmp_path: Path
) -> None:
    """`accelerate launch` dies and passes nothing on; still the training saves and ends."""
    config = debug_config("vae", tones, tmp_path / "run", "data.num_workers=1", "train.max_steps=100000",
                          "train.validate_every=100000", "train.checkpoint_every=2")  # fmt: skip
    given = tmp_path / "given.yaml"
    given.write_text(json.dumps(config.model_dump(mode="json")))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with (tmp_path / "log").open("w") as log:
        started = subprocess.Popen(
            [sys.executable, "-m", *launcher, str(given)], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
    checkpoints = tmp_path / "run" / "checkpoints"
    try:
        wait_for(lambda: started.poll() is not None or list(checkpoints.glob("step-*")), "checkpoint")
        assert started.poll() is None, (tmp_path / "log").read_text()[-3000:]
        family = psutil.Process(started.pid).children(recursive=True)
        started.send_signal(number)
        assert started.wait(200) in launcher_codes
        wait_for(lambda: not any(map(lives, family)), "end of the training")
    finally:
        for process in (psutil.Process(started.pid), *family) if started.poll() is None else family:
            if lives(process):
                process.kill()
    said = (tmp_path / "log").read_text()
    assert said.count("latentdiff: stopped by ") == processes, said[-3000:]
    folders = sorted(checkpoints.iterdir())
    assert folders and not any(find_fault(folder) for folder in folders)
    assert len(list(folders[-1].glob("random_states_*"))) == processes


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE  # nobody may be there to collect an orphan
    except psutil.NoSuchProcess:
        return False


# ---------------------------------------------------------------- other processes that fail


@pytest.mark.parametrize("fault", [signal.SIGSTOP, signal.SIGKILL], ids=["hangs", "is killed"])
def test_a_process_that_fails_ends_the_others_in_bounded_time(
    fault: signal.Signals, start: Callable[..., BaseProcess], tones: Path, tmp_path: Path
) -> None:
    config = debug_config("vae", tones, tmp_path / "run", "train.timeout=4", "train.checkpoint_every=1")
    logs = [tmp_path / f"log-{rank}" for rank in (0, 1)]
    pair = [start(config, log, "step", 1.0, environment) for log, environment in zip(logs, ranks(2), strict=True)]
    wait_for(lambda: all(reached(log).exists() for log in logs), "step", *pair)
    os.kill(pair[1].pid, fault)
    pair[0].join(200)
    said = logs[0].read_text()
    assert pair[0].exitcode == 1, said
    assert "latentdiff: another process of this run has ended, or did not answer within 4 s (train.timeout)" in said
    assert "Traceback" not in said
    assert not find_fault(tmp_path / "run" / "checkpoints" / "step-00000002")


# ---------------------------------------------------------------- more and fewer processes


def test_one_then_two_then_one_process_train_as_one_does(
    start: Callable[..., BaseProcess], tones: Path, tmp_path: Path
) -> None:
    """The same rows in each step, and the same weights up to the order of sums."""

    def config(output: Path, steps: int) -> object:
        return debug_config("vae", tones, output, "train.batch_size=2", "train.gradient_accumulation=2",
                            f"train.max_steps={steps}", "optimizer.schedule=constant")  # fmt: skip

    def finish(output: Path, steps: int, processes: int, name: str) -> Counter[tuple[int, int]]:
        logs = [tmp_path / f"{name}-{steps}-{rank}" for rank in range(processes)]
        given = ranks(processes) if processes > 1 else [{}]
        group = [start(config(output, steps), log, environment=e) for log, e in zip(logs, given, strict=True)]
        for process in group:
            process.join(200)
        assert [process.exitcode for process in group] == [0] * processes, [log.read_text() for log in logs]
        lines = [json.loads(line) for log in logs for line in log.with_suffix(".rows").read_text().splitlines()]
        assert {len(rows) for _, rows in lines} == {2} and len(lines) == 2 * len({step for step, _ in lines})
        if processes == 2:
            assert len(logs[1].with_suffix(".rows").read_text().splitlines()) == len(lines) // 2  # each took a half
        return Counter((step, row) for step, rows in lines for row in rows)

    alone = finish(tmp_path / "alone", 6, 1, "alone")
    rows = Counter[tuple[int, int]]()
    for steps, processes in ((2, 1), (4, 2), (6, 1)):
        rows += finish(tmp_path / "changing", steps, processes, "changing")
    assert rows == alone and {step for step, _ in rows} == set(range(6)) and rows.total() == 6 * 4
    for name in ("model.safetensors", "model_1.safetensors", "ema.safetensors"):
        before, one, other = (
            flat(tmp_path / run / "checkpoints" / f"step-{step:08d}" / name)
            for run, step in (("alone", 3), ("alone", 6), ("changing", 6))
        )
        # AdamW moves a weight whose gradient is near 0 a whole lr this way or that, so the few of these may differ.
        assert (one - other).norm() < 0.05 * (one - before).norm(), name


def flat(path: Path) -> torch.Tensor:
    return torch.cat([tensor.flatten() for _, tensor in sorted(load_file(path).items())])


def test_a_batch_that_two_processes_cannot_share_is_said(
    start: Callable[..., BaseProcess], tones: Path, tmp_path: Path
) -> None:
    config = debug_config("vae", tones, tmp_path / "run", "train.batch_size=3")
    logs = [tmp_path / f"log-{rank}" for rank in (0, 1)]
    pair = [start(config, log, environment=environment) for log, environment in zip(logs, ranks(2), strict=True)]
    for process in pair:
        process.join(200)
    saying = [log for log in logs if "which 2 processes cannot share equally" in log.read_text()]
    assert saying and all(pair[logs.index(log)].exitcode == 2 for log in saying)
    # The one that says it may be gone before the other has come so far; that one then says that.
    assert all(process.exitcode in (1, 2) for process in pair)
