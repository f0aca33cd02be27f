"""Checkpoints that a kill at any moment cannot spoil: staging folder, manifest last, one rename."""

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

from accelerate import Accelerator

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
_MANIFEST = "manifest.json"


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int, keep: int) -> Path:
    """Write ``folder/step-NNNNNNNN`` on all ranks together; then remove all but the newest ``keep``."""
    target = folder / f"step-{step:08d}"
    staging = folder / f".staging-{step:08d}"
    if accelerator.is_main_process:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(staging))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        files = {
            str(path.relative_to(staging)): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            for path in sorted(staging.rglob("*"))
            if path.is_file()
        }
        manifest = {"format_version": FORMAT_VERSION, "step": step, "files": files}
        _write_synced(staging / _MANIFEST, json.dumps(manifest, indent=1))
        shutil.rmtree(target, ignore_errors=True)
        os.replace(staging, target)
        _sync(folder)
        for old in _steps(folder)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()
    return target


def load_newest(accelerator: Accelerator, folder: Path) -> int:
    """Load the newest checkpoint that is whole.

    Returns:
        Its step, or 0 where there is none. Broken ones are named and passed over.
    """
    for path in reversed(_steps(folder)):
        if fault := find_fault(path):
            logger.warning("checkpoint %s is passed over: %s", path, fault)
            continue
        accelerator.load_state(str(path))
        return int(json.loads((path / _MANIFEST).read_text())["step"])
    return 0


def find_fault(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be used, or None."""
    try:
        manifest = json.loads((checkpoint / _MANIFEST).read_text())
    except (OSError, ValueError) as error:
        return f"its manifest cannot be read ({error})"
    if manifest.get("format_version") != FORMAT_VERSION:
        return f"its format version is {manifest.get('format_version')}, this package writes {FORMAT_VERSION}"
    for name, facts in manifest["files"].items():
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size != facts["bytes"]:
            return f"{name} is missing or cut short"
        if _sha256(path) != facts["sha256"]:
            return f"{name} has changed since it was written"
    return None


def _steps(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first; foreign files do not count."""
    return sorted(path for path in folder.glob("step-[0-9]*") if path.is_dir() and path.name[5:].isdigit())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_synced(path: Path, text: str) -> None:
    for written in path.parent.rglob("*"):
        if written.is_file():
            _sync(written)
    path.write_text(text)
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
