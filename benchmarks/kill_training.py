"""SIGKILL a debug training at random moments, saves included, and resume it each time.

    python benchmarks/kill_training.py --kills 100

Shows that the run ends, that no checkpoint is ever unusable, and that the last weights, optimisers and averages
are those of a run that was never killed, bit for bit. The VAE recipe is taken: two networks, two optimisers, an
average. Each attempt is a new process, forked from one that has only imported the libraries.
"""

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def make_tones(folder: Path) -> None:
    """Twelve captioned clips of half a second."""
    import numpy as np
    import soundfile

    folder.mkdir()
    time_axis = np.arange(8192) / 16000
    for i in range(12):
        wave = 0.3 * np.sin(2 * np.pi * 110 * (i + 1) * time_axis)
        soundfile.write(folder / f"{i:02d}.wav", wave, 16000)
        (folder / f"{i:02d}.txt").write_text(f"tone {i}\n")


def train(data: Path, output: Path, steps: int, log: Path) -> None:
    """One attempt: what `latentdiff train` does, with its messages in a file."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from latentdiff.training.launch import main

    sys.exit(main([
        str(ROOT / "configs/debug/audio_vae.yaml"), f"data.path={data}", f"output={output}", "data.seconds=0.256",
        "data.held_out=0.2", f"train.max_steps={steps}", "train.batch_size=2", "train.checkpoint_every=1",
        f"train.validate_every={steps}", "train.overfit_check_steps=0", "train.trackers=[]", "adversarial_start=2",
        "autoencoder.width=8",
    ]))  # fmt: skip


def newest(output: Path) -> int:
    """Step of the newest checkpoint, 0 without one."""
    steps = [int(path.name[5:]) for path in (output / "checkpoints").glob("step-*")]
    return max(steps, default=0)


def is_saving(output: Path) -> bool:
    """Whether a checkpoint is being written."""
    return any((output / "checkpoints").glob(".staging-[0-9]*"))


def wait_for_moment(process: BaseProcess, output: Path, chance: random.Random) -> None:
    """Until a random moment: in the start, in a step or in a save, up to two checkpoints on."""
    goal, kind = newest(output) + chance.randrange(3), chance.choice(["start", "step", "save", "save"])
    if kind == "start":
        end = time.monotonic() + chance.uniform(0.0, 2.0)
        while process.is_alive() and time.monotonic() < end and newest(output) < goal + 1:
            time.sleep(0.002)
        return
    while process.is_alive() and (newest(output) < goal or is_saving(output) != (kind == "save")):
        time.sleep(0.001)
    time.sleep(chance.uniform(0.0, 0.03))


def differences(one: Path, other: Path) -> Iterator[str]:
    """Names of the tensors in which two checkpoints differ."""
    import torch
    from safetensors.torch import load_file

    for path in sorted(one.iterdir()):
        if path.suffix == ".safetensors":
            tensors, others = load_file(path), load_file(other / path.name)
        elif path.suffix == ".bin":
            states = [torch.load(folder / path.name, weights_only=True)["state"] for folder in (one, other)]
            tensors, others = (
                {f"{number}.{key}": value for number, state in states[i].items() for key, value in state.items()}
                for i in (0, 1)
            )
        else:
            continue
        if tensors.keys() != others.keys():
            yield f"{path.name}: other names"
        yield from (f"{path.name}: {name}" for name in tensors if not torch.equal(tensors[name], others[name]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    sys.path.insert(0, str(ROOT))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["latentdiff.training.loop", "latentdiff.training.recipes"])
    from latentdiff.training.checkpoint import find_fault

    chance, steps, moments = random.Random(options.seed), 2 * options.kills + 4, Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_tones(work / "tones")

        def start(name: str) -> BaseProcess:
            process = context.Process(target=train, args=(work / "tones", work / name, steps, work / f"{name}.log"))
            process.start()
            return process

        whole = start("unbroken")
        whole.join()
        assert whole.exitcode == 0, (work / "unbroken.log").read_text()
        while True:
            process = start("killed")
            if moments.total() < options.kills:
                wait_for_moment(process, work / "killed", chance)
                process.kill()
            process.join()
            faults = [fault for path in (work / "killed").glob("checkpoints/step-*") if (fault := find_fault(path))]
            assert not faults, faults
            if process.exitcode == 0:
                break
            assert process.exitcode == -9, (work / "killed.log").read_text()[-3000:]
            moments["in a save" if is_saving(work / "killed") else "elsewhere"] += 1
        last = f"checkpoints/step-{steps:08d}"
        different = list(differences(work / "unbroken" / last, work / "killed" / last))
        different += differences(work / "unbroken/vae", work / "killed/vae")
        print(f"{moments.total()} kills, {moments['in a save']} of them in a save, over {steps} steps")
        print("every checkpoint was whole after each of them")
        print(f"the last weights differ: {different}" if different else "the last weights are those of an unbroken run")
        return int(bool(different) or moments.total() < options.kills)


if __name__ == "__main__":
    sys.exit(main())
