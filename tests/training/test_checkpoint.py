"""Checkpoints: whole or not there, newest whole one wins, foreign files are left alone, disks may fill up."""

import contextlib
import copy
import json
import logging
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch.optim.lr_scheduler import LambdaLR

from latentdiff import InputError
from latentdiff.training import checkpoint
from latentdiff.training.averages import Averages
from latentdiff.training.checkpoint import CheckpointError, Checkpoints, find_fault
from latentdiff.training.checkpoint_upgrades import FORMAT_VERSION


class Run:
    """A network with all that a checkpoint keeps, without a recipe around it."""

    def __init__(self, folder: Path, keep: int = 2, width: int = 3) -> None:
        torch.manual_seed(width)
        self.accelerator = Accelerator(cpu=True)
        model = torch.nn.Linear(width, 2)
        self.model, self.optimizer = self.accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.1))
        self.schedule = LambdaLR(self.optimizer.optimizer, lambda step: 0.9**step)
        self.averages = Averages(lambda: list(self.model.parameters()), 0.9)
        self.checkpoints = Checkpoints(self.accelerator, folder, keep, [self.schedule], self.averages)

    def train(self, steps: int = 1) -> "Run":
        for _ in range(steps):
            self.model(torch.ones(1, self.model.in_features)).square().sum().backward()
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
            self.averages.step()
        return self

    def state(self) -> list[object]:
        optimizer = self.optimizer.state_dict()
        tensors = [*self.model.state_dict().values(), *self.averages._ema.shadow_params]
        tensors += [value for state in optimizer["state"].values() for value in state.values()]
        plain = [optimizer["param_groups"], self.schedule.state_dict(), self.averages._ema.optimization_step]
        return [*(tensor.tolist() for tensor in tensors), *copy.deepcopy(plain)]


def saved(folder: Path, steps: int, keep: int = 9) -> Run:
    """A run with a checkpoint of each step."""
    run = Run(folder, keep)
    for step in range(1, steps + 1):
        run.train().checkpoints.save(step)
    return run


def test_all_of_it_comes_back(tmp_path: Path) -> None:
    run = saved(tmp_path, 2)
    fresh = Run(tmp_path)
    assert fresh.state() != run.state()
    assert fresh.checkpoints.load_newest() == 2
    assert fresh.state() == run.state()
    assert fresh.train(2).state() == run.train(2).state()


def test_the_loss_scale_comes_back(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    run.accelerator.scaler.scale(torch.ones(1))  # it is made when it is first used
    run.accelerator.scaler.update(256.0)
    run.train().checkpoints.save(1)
    fresh = Run(tmp_path)
    fresh.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    assert fresh.checkpoints.load_newest() == 1
    assert fresh.accelerator.scaler.get_scale() == 256.0


def test_weights_are_safetensors_and_nothing_is_an_unchecked_pickle(tmp_path: Path) -> None:
    """accelerate reads its own .bin and .pkl with ``weights_only``, but custom objects without."""
    saved(tmp_path, 1)
    names = {path.name for path in (tmp_path / "step-00000001").iterdir()}
    assert names == {
        "model.safetensors", "ema.safetensors", "optimizer.bin", "random_states_0.pkl", "schedules.json",
        "manifest.json",
    }  # fmt: skip
    assert load_file(tmp_path / "step-00000001" / "ema.safetensors")["0"].shape == (2, 3)


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("name", ["optimizer.bin", "random_states_0.pkl"])
def test_a_pickle_with_code_in_it_is_not_run(name: str, tmp_path: Path) -> None:
    """Somebody else's checkpoint, with a manifest that fits it."""
    saved(tmp_path / "run", 1)
    folder, sentinel = tmp_path / "run" / "step-00000001", tmp_path / "sentinel"
    torch.save({"state": Payload(f"touch {sentinel}"), "step": 1}, folder / name)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": (folder / name).stat().st_size, "sha256": checkpoint._sha256(folder / name)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert find_fault(folder) is None
    with contextlib.suppress(Exception):
        Run(tmp_path / "run").checkpoints.load_newest()
    assert not sentinel.exists()
    pickle.loads(pickle.dumps(Payload(f"touch {sentinel}")))
    assert sentinel.exists()  # it would have done so


def test_nothing_there_is_step_zero(tmp_path: Path) -> None:
    assert Run(tmp_path / "none").checkpoints.load_newest() == 0


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda f: os.truncate(f / "model.safetensors", 50), r"model.safetensors has 50 of \d+ bytes"),
    "empty": (lambda f: os.truncate(f / "optimizer.bin", 0), r"optimizer.bin has 0 of \d+ bytes"),
    "flipped bit": (lambda f: flip(f / "ema.safetensors"), "ema.safetensors has changed"),
    "missing": (lambda f: (f / "schedules.json").unlink(), "schedules.json is missing"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "manifest cannot be read"),
    "empty manifest": (lambda f: (f / "manifest.json").write_text(""), "manifest cannot be read"),
    "other manifest": (lambda f: (f / "manifest.json").write_text("[1]"), "manifest cannot be read"),
    "empty folder": (lambda f: [path.unlink() for path in f.iterdir()], "manifest cannot be read"),
}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_broken_newest_falls_back_to_the_one_before(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path, 2)
    once = saved(tmp_path / "other", 1)
    harm, words = DAMAGE[damage]
    harm(tmp_path / "step-00000002")
    fresh = Run(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert fresh.checkpoints.load_newest() == 1
    (said,) = caplog.messages
    assert re.search(f"step-00000002 is passed over: .*{words}.*going on from step-00000001", said)
    assert fresh.state() == once.state()
    fresh.train().checkpoints.save(2)  # the whole one takes the broken one's place
    assert find_fault(tmp_path / "step-00000002") is None


def test_if_all_are_broken_the_run_does_not_begin_again_by_itself(tmp_path: Path) -> None:
    saved(tmp_path, 2)
    for folder in tmp_path.iterdir():
        flip(folder / "model.safetensors")
    with pytest.raises(InputError, match=r"no checkpoint can be used: .*step-00000002.*model.safetensors has changed"):
        Run(tmp_path).checkpoints.load_newest()


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, 2)
    path = tmp_path / "step-00000002" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": FORMAT_VERSION + 1}))
    fresh = Run(tmp_path)
    before = fresh.state()
    with pytest.raises(InputError, match=rf"step-00000002 has format version {FORMAT_VERSION + 1}.*update latentdiff"):
        fresh.checkpoints.load_newest()
    assert fresh.state() == before


def test_format_1_is_upgraded_and_left_as_it_was(tmp_path: Path) -> None:
    """Written here as version 1 did: accelerate's custom objects, the average last."""
    run = Run(tmp_path).train(3)
    run.accelerator.register_for_checkpointing(run.schedule, run.averages._ema)
    folder = tmp_path / "step-00000003"
    run.accelerator.save_state(str(folder))
    files = {path.name: {"bytes": path.stat().st_size, "sha256": checkpoint._sha256(path)} for path in folder.iterdir()}
    assert "custom_checkpoint_1.pkl" in files
    (folder / "manifest.json").write_text(json.dumps({"format_version": 1, "step": 3, "files": files}))
    fresh = Run(tmp_path)
    assert fresh.checkpoints.load_newest() == 3
    assert fresh.state() == run.state()
    assert find_fault(folder) is None and [path.name for path in tmp_path.iterdir()] == [folder.name]
    fresh.train().checkpoints.save(4)
    assert Run(tmp_path).checkpoints.load_newest() == 4


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    with pytest.raises(InputError, match=r"step-00000001 does not fit .*size mismatch for weight"):
        Run(tmp_path, width=4).checkpoints.load_newest()


def test_retention_keeps_foreign_files_and_what_was_left_half_written_goes(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").write_text("x")
    (tmp_path / "step-notes.txt").write_text("mine")
    (tmp_path / "step-3-copy").mkdir()
    (tmp_path / ".staging-00000099").mkdir()
    run = saved(tmp_path, 3, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".DS_Store", "step-00000002", "step-00000003", "step-3-copy", "step-notes.txt",
    ]  # fmt: skip
    os.truncate(tmp_path / "step-00000003" / "optimizer.bin", 3)
    run.train().checkpoints.save(4)  # a broken one does not count among those that are kept
    assert sorted(path.name for path in tmp_path.glob("step-0*")) == ["step-00000002", "step-00000004"]
    assert Run(tmp_path).checkpoints.load_newest() == 4


# ---------------------------------------------------------------- interrupted


class Killed(BaseException):
    """Nothing catches it, so the disk is as a SIGKILL would leave it."""


OPERATIONS = (
    (os, "fsync"), (os, "replace"), (os, "unlink"), (os, "rmdir"), (os, "mkdir"), (Path, "write_text"),
    (torch, "save"), (checkpoint, "_sha256"),
)  # fmt: skip


def allow(count: int, patch: pytest.MonkeyPatch) -> None:
    """Let that many operations on the disk happen; the next one kills."""
    left = iter(range(count))

    def counted(act: Callable[..., object]) -> Callable[..., object]:
        def counting(*arguments: object, **options: object) -> object:
            if next(left, None) is None:
                raise Killed
            return act(*arguments, **options)

        return counting

    for owner, name in OPERATIONS:
        patch.setattr(owner, name, counted(getattr(owner, name)))


def test_a_kill_at_any_operation_leaves_a_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The save of step 3 is cut off before its n-th operation on the disk, for every n; then it is done again."""
    run = saved(tmp_path / "before", 2, keep=1)
    after_2, after_3 = run.state(), run.train().state()
    loaded = []
    while 4 not in loaded:
        folder = run.checkpoints.folder = tmp_path / str(len(loaded))
        shutil.copytree(tmp_path / "before", folder)
        with monkeypatch.context() as patch:
            allow(len(loaded), patch)
            try:
                run.checkpoints.save(3)
            except Killed:
                finished = False
            else:
                finished = True
        fresh = Run(folder, keep=1)
        step = fresh.checkpoints.load_newest()
        assert fresh.state() == {2: after_2, 3: after_3}[step]
        if step == 2:
            fresh.train()
        fresh.checkpoints.save(3)
        assert [path.name for path in folder.iterdir()] == ["step-00000003"]
        assert Run(folder).checkpoints.load_newest() == 3
        loaded.append(4 if finished else step)
    assert loaded == sorted(loaded) and loaded.count(2) > 10 and loaded.count(3) > 5


def test_what_is_not_read_back_as_written_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = saved(tmp_path, 1)
    replace = os.replace

    def failing_disk(source: Path, target: Path) -> None:
        replace(source, target)
        if target.name == "step-00000002":
            flip(target / "model.safetensors")

    monkeypatch.setattr(os, "replace", failing_disk)
    run.checkpoints.keep = 1
    with pytest.raises(CheckpointError, match=r"not read back.*model.safetensors has changed.*step-00000001 is whole"):
        run.train().checkpoints.save(2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


# ---------------------------------------------------------------- full disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a file system; the limit on file sizes is tried in any case")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_noticed_before_anything_is_written(small_disk: Path) -> None:
    run = saved(small_disk, 1)
    free = shutil.disk_usage(small_disk).free
    (small_disk / "others").write_bytes(b"x" * (free - 8192))
    with pytest.raises(
        CheckpointError, match=r"step 2 could not be written \(not enough room.*takes about 0.0\d+ MB, and"
    ):
        run.train().checkpoints.save(2)
    (small_disk / "others").unlink()
    assert Run(small_disk).checkpoints.load_newest() == 1
    run.checkpoints.save(2)
    assert Run(small_disk).checkpoints.load_newest() == 2


def test_a_disk_that_fills_up_in_the_middle_leaves_the_last_one(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else takes the room after it was found free: at each of several fill levels."""
    run = saved(small_disk, 1)
    monkeypatch.setattr(Checkpoints, "_require_space", lambda checkpoints: None)
    free = shutil.disk_usage(small_disk).free
    for left in (0, 4096, 8192, 12288, 16384):
        (small_disk / "others").write_bytes(b"x" * (free - left))
        with pytest.raises(CheckpointError, match=f"the checkpoint of step 2.*{small_disk}.*step-00000001 is whole"):
            run.checkpoints.save(2)
        assert not list(small_disk.glob(".staging-*"))
        assert Run(small_disk).checkpoints.load_newest() == 1
        (small_disk / "others").unlink()


def test_a_file_that_may_not_grow_is_a_failed_write_too(tmp_path: Path) -> None:
    """RLIMIT_FSIZE: torch.save and safetensors have errors of their own for it, and leave different rests."""
    run = saved(tmp_path, 1)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for size in (0, 100, 300, 1000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
            with pytest.raises(
                CheckpointError, match=r"step 2 could not be written \(.+\).*MB.*step-00000001 is whole"
            ):
                run.checkpoints.save(2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    run.checkpoints.save(2)
    assert Run(tmp_path).checkpoints.load_newest() == 2
