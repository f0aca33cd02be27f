"""SIGTERM, SIGINT and SIGUSR1, in every moment of a run: a whole checkpoint, the promised exit code, no orphan."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest

from latentdiff.training.checkpoint import find_fault
from latentdiff.training.signals import SECOND_AFTER
from tests.training.child import children, ranks, reached, wait_for
from tests.training.conftest import debug_config

Start = Callable[..., BaseProcess]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    with children() as start:
        yield start


def checkpoints(output: Path) -> list[int]:
    """Steps of the checkpoints there, all of them whole."""
    folders = sorted((output / "checkpoints").glob("step-*"))
    assert not any(find_fault(folder) for folder in folders)
    return [int(folder.name[5:]) for folder in folders]


def weights(output: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((output / "checkpoints" / "step-00000006").glob("*.safetensors"))]


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE  # nobody may be there to collect an orphan
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("moment", "number", "code", "steps"),
    [
        ("start", signal.SIGTERM, 143, []),
        ("start", signal.SIGINT, 130, []),
        ("step", signal.SIGTERM, 143, [3]),  # the step that it came in is the third
        ("data", signal.SIGUSR1, 143, [3]),
        ("save", signal.SIGINT, 130, [3]),
        ("validation", signal.SIGTERM, 143, [3]),
    ],
)
def test_a_signal_ends_the_run_with_a_checkpoint(
    moment: str, number: signal.Signals, code: int, steps: list[int], start: Start, tones: Path, tmp_path: Path
) -> None:
    config = debug_config("vae", tones, tmp_path / "run", "train.validate_every=3", "train.keep_checkpoints=9")
    log = tmp_path / "log"
    # What may be given up at any point lasts long, and would fail the test if it were waited for.
    process = start(config, log, moment, 600.0 if moment in ("start", "validation") else 0.5)
    wait_for(reached(log).exists, moment, process)
    os.kill(process.pid, number)
    process.join(200)  # less than those moments last
    assert process.exitcode == code, log.read_text()
    assert checkpoints(tmp_path / "run") == steps
    assert f"latentdiff: stopped by {number.name}" in log.read_text() and "Traceback" not in log.read_text()
    assert not list((tmp_path / "run").rglob(".staging-*"))
    assert not (tmp_path / "run" / "vae").exists()


def test_a_stopped_run_goes_on_as_if_it_had_not_been(start: Start, tones: Path, tmp_path: Path) -> None:
    """Stopped in a validation, which the second run makes up for; the weights are those of an unbroken run."""
    # A child too: this process may compute with another number of threads, and so add in another order.
    whole = start(debug_config("vae", tones, tmp_path / "whole", "train.validate_every=3"), tmp_path / "unbroken")
    whole.join(200)
    config = debug_config("vae", tones, tmp_path / "run", "train.validate_every=3")
    process = start(config, tmp_path / "first", "validation", 600.0)
    wait_for(reached(tmp_path / "first").exists, "validation", process)
    os.kill(process.pid, signal.SIGTERM)
    process.join(200)
    assert process.exitcode == 143 and not (tmp_path / "run" / "validation" / "step-00000003").exists()
    process = start(config, tmp_path / "second")
    process.join(200)
    assert process.exitcode == 0, (tmp_path / "second").read_text()
    assert (tmp_path / "run" / "validation" / "step-00000003").exists()
    assert weights(tmp_path / "run") == weights(tmp_path / "whole") != []
    assert (tmp_path / "run" / "vae" / "config.json").is_file()


def test_a_second_signal_ends_it_now(start: Start, tones: Path, tmp_path: Path) -> None:
    config = debug_config("vae", tones, tmp_path / "run", "data.num_workers=2", "train.checkpoint_every=1")
    process = start(config, tmp_path / "log", "step", 600.0)
    wait_for(reached(tmp_path / "log").exists, "step", process)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) == 2
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGTERM)  # the launcher's copy of the first one: not a second request
    time.sleep(SECOND_AFTER)
    assert process.is_alive() and all(worker.is_running() for worker in family)
    os.kill(process.pid, signal.SIGTERM)
    process.join(200)
    assert process.exitcode == 143
    wait_for(lambda: not any(map(lives, family)), "end of the workers")
    assert checkpoints(tmp_path / "run") == [1, 2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_data_worker_outlives_its_run(number: signal.Signals, start: Start, tones: Path, tmp_path: Path) -> None:
    """A terminal, torchrun and Slurm send a signal to the whole group; workers must not die of it before the step."""
    config = debug_config("vae", tones, tmp_path / "run", "data.num_workers=2", "train.checkpoint_every=1")
    process = start(config, tmp_path / "log", "step", 0.5)
    wait_for(reached(tmp_path / "log").exists, "step", process)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) == 2
    if number == signal.SIGKILL:
        process.kill()
    else:
        os.killpg(process.pid, number)
    process.join(200)
    assert process.exitcode == {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}[number]
    wait_for(lambda: not any(map(lives, family)), "end of the workers")
    assert checkpoints(tmp_path / "run")[-1] == (2 if number == signal.SIGKILL else 3)


def test_a_signal_to_one_process_of_two_ends_both(start: Start, tones: Path, tmp_path: Path) -> None:
    config = debug_config("vae", tones, tmp_path / "run")
    logs = [tmp_path / f"log-{rank}" for rank in (0, 1)]
    pair = [start(config, log, "step", 0.5, environment) for log, environment in zip(logs, ranks(2), strict=True)]
    wait_for(lambda: all(reached(log).exists() for log in logs), "step", *pair)
    os.kill(pair[1].pid, signal.SIGTERM)
    for process in pair:
        process.join(200)
    assert [process.exitcode for process in pair] == [143, 143], [log.read_text() for log in logs]
    assert checkpoints(tmp_path / "run") == [3]
    assert (tmp_path / "run" / "checkpoints" / "step-00000003" / "random_states_1.pkl").exists()  # there were two


def test_handlers_are_put_back() -> None:
    from latentdiff.training.signals import STOP_SIGNALS, StopSignals

    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with StopSignals():
        assert [signal.getsignal(number) for number in STOP_SIGNALS] != before
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before
