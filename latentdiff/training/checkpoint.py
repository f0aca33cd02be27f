"""Checkpoints that no kill, full disk or power cut can spoil.

A checkpoint is written into a staging folder, flushed to the disk, described by a manifest (sizes and SHA-256,
written last) and put in place by one rename. Older ones go only after it has been read back whole.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError

from latentdiff.errors import InputError
from latentdiff.training.checkpoint_upgrades import FORMAT_VERSION, UPGRADES
from latentdiff.training.guards import TrainingError

logger = logging.getLogger(__name__)

_MANIFEST, _SCHEDULES = "manifest.json", "schedules.json"
_ASIDE = ".staging-"
"""Begins the names of what is being written or removed; never read, and cleared by the next save."""
_SPARE = 1.1


class CheckpointError(TrainingError):
    """A checkpoint could not be written; those before it are as they were."""


class Saved(Protocol):
    """What writes a file of its own into a checkpoint."""

    def save(self, folder: Path, write: bool) -> None: ...
    def load(self, folder: Path) -> None: ...


class Checkpoints:
    """The checkpoints of one run: ``step-NNNNNNNN`` folders.

    Each holds what `Accelerator.save_state` writes (networks as safetensors, optimisers, scaler, every process's
    random states), the averages if there are any, the learning-rate schedules, and the manifest.

    Args:
        accelerator: its prepared networks and optimisers are saved.
        folder: where they are; other files in it are left alone.
        keep: how many stay.
        schedules: learning-rate schedules, always in the same order.
        averages: the moving average.
    """

    def __init__(
        self, accelerator: Accelerator, folder: Path, keep: int, schedules: list[Any], averages: Saved | None = None
    ) -> None:
        self.accelerator, self.folder, self.keep = accelerator, folder, keep
        self.schedules, self.averages = schedules, averages

    def save(self, step: int) -> Path:
        """Write the checkpoint of a step, all processes together; then remove all but the newest ones.

        Raises:
            CheckpointError: no space, or the disk fails; what was there before still is.
        """
        target, staging = self.folder / f"step-{step:08d}", self.folder / f"{_ASIDE}{step:08d}"
        main = self.accelerator.is_main_process
        if main:
            with self._failures(step, staging):
                self._require_space()
                for stale in self.folder.glob(f"{_ASIDE}*"):
                    shutil.rmtree(stale)
                staging.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        with self._failures(step, staging):
            self.accelerator.save_state(str(staging))
            if self.averages:
                self.averages.save(staging, write=main)
        self.accelerator.wait_for_everyone()
        if main:
            with self._failures(step, staging):
                (staging / _SCHEDULES).write_text(json.dumps([schedule.state_dict() for schedule in self.schedules]))
                _publish(staging, target, step)
            self._prune(target)
        self.accelerator.wait_for_everyone()
        return target

    def any(self) -> bool:
        """Whether there is one, whole or not."""
        return bool(_steps(self.folder))

    def load_newest(self) -> int:
        """Load the newest checkpoint that is whole, the same in all processes.

        Returns:
            Its step, or 0 where there is none at all. Broken ones are named and passed over.

        Raises:
            InputError: none of those there can be used, one is of a newer version of this package, or it is of
                another model.
        """
        chosen = self._choose() if self.accelerator.is_main_process else None
        chosen = broadcast_object_list([chosen])[0]
        if isinstance(chosen, InputError):
            raise chosen
        if chosen is None:
            return 0
        manifest = json.loads((chosen / _MANIFEST).read_text())
        with self._upgraded(chosen, manifest["format_version"]) as current:
            try:
                self._load(current)
            except (RuntimeError, ValueError, OSError, KeyError) as error:
                lines = [line.strip() for line in str(error).splitlines()]
                raise InputError(
                    f"{chosen} does not fit what this configuration builds ({' '.join(lines[:2])}); train with the "
                    "configuration it was made with, or name another output."
                ) from error
        return int(manifest["step"])

    def _load(self, folder: Path) -> None:
        self.accelerator.load_state(str(folder))
        for schedule, state in zip(self.schedules, json.loads((folder / _SCHEDULES).read_text()), strict=True):
            schedule.load_state_dict(state)
        if self.averages:
            self.averages.load(folder)

    def _choose(self) -> Path | InputError | None:
        faults: list[str] = []
        for path in reversed(_steps(self.folder)):
            if (version := _version(path)) > FORMAT_VERSION:
                return InputError(
                    f"{path} has format version {version} and this latentdiff reads up to {FORMAT_VERSION}: update "
                    "latentdiff, or name another output."
                )
            fault = find_fault(path)
            if fault is None:
                for broken in faults:
                    logger.warning("checkpoint %s; going on from %s", broken, path.name)
                return path
            faults.append(f"{path} is passed over: {fault}")
        if faults:
            return InputError(f"no checkpoint can be used: {faults[0]}. To begin again, remove {self.folder}.")
        return None

    @contextlib.contextmanager
    def _upgraded(self, path: Path, version: int) -> Iterator[Path]:
        """The checkpoint in today's format; an older one stays as it is, a copy is changed and used."""
        if version == FORMAT_VERSION:
            yield path
            return
        copy = self.folder / f"{_ASIDE}upgrade"
        if self.accelerator.is_main_process:
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(path, copy)
            for older in range(version, FORMAT_VERSION):
                UPGRADES[older](copy)
        self.accelerator.wait_for_everyone()
        yield copy
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            shutil.rmtree(copy)

    @contextlib.contextmanager
    def _failures(self, step: int, staging: Path) -> Iterator[None]:
        """Errors of writing as one sentence, with nothing half-written left behind."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            # torch.save and safetensors have errors of their own for a full disk.
            shutil.rmtree(staging, ignore_errors=True)
            needed, free = self._bytes() / 1e6, _free(self.folder) / 1e6
            whole = [path.name for path in _steps(self.folder) if find_fault(path, contents=False) is None]
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written ({str(error).splitlines()[0]}): it takes about "
                f"{needed:.3g} MB, and {self.folder} has {free:.3g} MB free. "
                f"{f'{whole[-1]} is whole' if whole else 'There is none before it'}; "
                "make room there, and the same command goes on."
            ) from error

    def _require_space(self) -> None:
        if _free(self.folder) < self._bytes():
            raise OSError("not enough room on the disk")

    def _bytes(self) -> int:
        """About what a checkpoint takes on the disk."""
        if whole := [path for path in _steps(self.folder) if find_fault(path, contents=False) is None]:
            files = json.loads((whole[-1] / _MANIFEST).read_text())["files"]
            return int(_SPARE * sum(facts["bytes"] for facts in files.values()))
        # Each parameter in the networks, twice in AdamW's state, and once in the averages.
        networks = self.accelerator._models
        once = sum(p.numel() * p.element_size() for network in networks for p in network.parameters())
        return int(_SPARE * once * (4 if self.averages else 3))

    def _prune(self, newest: Path) -> None:
        older = [path for path in _steps(self.folder) if path < newest]
        whole = [path for path in older if find_fault(path, contents=False) is None]
        kept = whole[-(self.keep - 1) :] if self.keep > 1 else []
        for path in set(older) - set(kept):
            _discard(path)


def find_fault(checkpoint: Path, contents: bool = True) -> str | None:
    """Why a checkpoint cannot be used, or None; without ``contents`` only sizes are looked at."""
    try:
        files = json.loads((checkpoint / _MANIFEST).read_text())["files"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest cannot be read ({error})"
    for name, facts in files:
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != facts["bytes"]:
            return f"{name} has {path.stat().st_size} of {facts['bytes']} bytes"
    for name, facts in files if contents else ():
        if _sha256(checkpoint / name) != facts["sha256"]:
            return f"{name} has changed since it was written"
    return None


def _version(checkpoint: Path) -> int:
    """The format version, or 0 where the manifest cannot be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads((checkpoint / _MANIFEST).read_text())["format_version"])
    return 0


def _publish(staging: Path, target: Path, step: int) -> None:
    """Flush, describe, rename, and read back."""
    files = {str(path.relative_to(staging)): path for path in sorted(staging.rglob("*")) if path.is_file()}
    for path in files.values():
        _flush(path)
    described = {name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for name, path in files.items()}
    manifest = {"format_version": FORMAT_VERSION, "step": step, "files": described}
    (staging / _MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in (staging / _MANIFEST, *(p for p in staging.rglob("*") if p.is_dir()), staging):
        _flush(path)
    if target.exists():  # one that was found broken: the whole one of its step takes its place
        _discard(target)
    os.replace(staging, target)
    _flush(target.parent)
    for path in target.rglob("*"):
        _forget(path)
    if fault := find_fault(target):
        _discard(target)
        raise OSError(f"it was not read back as it was written: {fault}")


def _discard(path: Path) -> None:
    """Remove a checkpoint: out of sight by one rename first, so that none is ever seen in parts."""
    aside = path.with_name(f"{_ASIDE}discarded-{path.name}")
    os.replace(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def _steps(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first; foreign files do not count."""
    return sorted(path for path in folder.glob("step-[0-9]*") if path.is_dir() and path.name[5:].isdigit())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _free(folder: Path) -> int:
    """Bytes free where the folder is or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _flush(path: Path) -> None:
    """From the system's memory to the disk; of a folder, its list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _forget(path: Path) -> None:
    """Drop a file from the system's memory, so that reading it asks the disk."""
    if path.is_file() and hasattr(os, "posix_fadvise"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
