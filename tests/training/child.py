"""Training in processes of their own, forked from one that has imported everything, so that each costs little.

Real processes with real signals; only the import of the libraries is shared. What a test wants to hit (a step, a
save, ...) is made long, and says so by a file.
"""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PATIENCE = 200.0


@contextmanager
def children(target: Callable[..., None] | None = None) -> Iterator[Callable[..., BaseProcess]]:
    """A function that starts `train`, or another, with its arguments in a new process; what still runs is killed."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["latentdiff.training.loop", "latentdiff.training.recipes", __name__])
    started = []

    def start(*arguments: Any, **options: Any) -> BaseProcess:
        process = context.Process(target=target or train, args=arguments, kwargs=options)
        process.start()
        started.append(process)
        return process

    try:
        yield start
    finally:
        for process in started:
            process.kill()
            process.join()


def command(arguments: list[str], log: Path, environment: dict[str, str]) -> None:
    """One verb of the command line as one process of a group, with its output in a file."""
    os.environ.update(environment)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import torch

    from latentdiff.cli import main

    torch.set_num_threads(1)
    sys.exit(main(arguments))


def train(
    config: Any, log: Path, moment: str = "", seconds: float = 0.0, environment: dict[str, str] | None = None
) -> None:
    """Train as the command line does, with the log in a file and one moment made longer.

    The rows of each micro-batch go into a file beside the log.
    """
    os.setsid()  # a process group of its own, as a launcher gives
    os.environ.update(environment or {})
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import torch

    from latentdiff.config import save_config
    from latentdiff.training import launch

    torch.set_num_threads(1)
    note_rows(log.with_suffix(".rows"))
    if moment:
        lengthen(moment, lambda: (reached(log).touch(), time.sleep(seconds)))
    given = log.with_suffix(".yaml")
    save_config(config, given)
    sys.exit(launch.main([str(given)]))


def note_rows(path: Path) -> None:
    """Write a line with the step and the rows of each micro-batch."""
    from latentdiff.training.recipes.vae import VAETraining

    losses = VAETraining.losses

    def noted(recipe: Any, batch: Any, step: Any) -> Any:
        with path.open("a") as file:
            file.write(json.dumps([step.number, batch["row"]]) + "\n")
        return losses(recipe, batch, step)

    VAETraining.losses = noted


def lengthen(moment: str, wait: Callable[[], object]) -> None:
    """Call ``wait`` in that moment of training."""
    from accelerate import Accelerator

    from latentdiff.training import loop
    from latentdiff.training.recipes import RECIPES

    if moment == "start":
        loop.Trainer._check_early = lambda trainer: wait()
    elif moment == "step":
        step = loop.Trainer._train_step

        def slow_step(trainer: Any, batches: Any) -> Any:
            if trainer.step == 2:
                wait()
            return step(trainer, batches)

        loop.Trainer._train_step = slow_step
    elif moment == "data":
        read = loop.micro_batches

        def slow_data(*arguments: Any) -> Iterator[Any]:
            for number, batch in enumerate(read(*arguments)):
                if number == 2:
                    wait()
                yield batch

        loop.micro_batches = slow_data
    elif moment == "validation":
        for recipe in RECIPES.values():
            recipe.validate = lambda recipe, folder: (wait(), {})[1]
    elif moment == "memory":  # there is room for two items, from some step on
        loop.Trainer._train_step = refusing(loop.Trainer._train_step)
    else:
        assert moment == "save"
        save = Accelerator.save_state
        Accelerator.save_state = lambda accelerator, folder: (save(accelerator, folder), wait())


def refusing(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step that runs out of memory in its last phase, when the ones before have moved already."""
    import torch

    from latentdiff.training.recipes.vae import VAETraining

    losses = VAETraining.losses

    def refused(recipe: Any, batch: Any, at: Any) -> Iterator[Any]:
        for phase, terms in losses(recipe, batch, at):
            if phase == "vae" and at.number >= 4 and len(batch["row"]) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            yield phase, terms

    VAETraining.losses = refused
    return step


def reached(log: Path) -> Path:
    """The file that says that the moment has come."""
    return log.with_suffix(".reached")


def wait_for(condition: Callable[[], object], what: str, *processes: BaseProcess) -> None:
    """Wait until it is true; fail if that takes too long or a process ends before."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"no {what} after {PATIENCE} s"
        assert all(process.is_alive() for process in processes), f"a process ended before: {what}"
        time.sleep(0.02)


def run_as_two(arguments: list[str], folder: Path) -> list[str]:
    """What each of two processes of a verb of the command line said; both must succeed."""
    logs = [folder / f"process-{rank}.log" for rank in (0, 1)]
    with children(command) as start:
        pair = [start(arguments, log, environment) for log, environment in zip(logs, ranks(2), strict=True)]
        for process in pair:
            process.join(PATIENCE)
        assert [process.exitcode for process in pair] == [0, 0], [log.read_text()[-3000:] for log in logs]
    return [log.read_text() for log in logs]


def launch(*arguments: str, options: tuple[str, ...] = ("--num_processes", "1"), cwd: Path) -> str:
    """What `accelerate launch OPTIONS train.py ARGUMENTS` says; it must succeed."""
    given = [sys.executable, "-m", "accelerate.commands.launch", *options, str(ROOT / "train.py"), *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        given, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def ranks(count: int) -> list[dict[str, str]]:
    """The environment of each process of a group, as torchrun sets it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
