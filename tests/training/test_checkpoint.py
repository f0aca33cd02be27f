"""Checkpoints: whole or not there, newest whole one wins, foreign files are left alone."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from latentdiff.training.checkpoint import find_fault, load_newest, save_checkpoint


@pytest.fixture
def prepared() -> tuple[Accelerator, torch.nn.Module]:
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(torch.nn.Linear(3, 2))
    return accelerator, model


def fill(model: torch.nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


def test_newest_comes_back(prepared: tuple, tmp_path: Path) -> None:
    accelerator, model = prepared
    for step in (1, 2):
        fill(model, float(step))
        save_checkpoint(accelerator, tmp_path, step, keep=2)
    fill(model, 9.0)
    assert load_newest(accelerator, tmp_path) == 2
    assert model.weight.eq(2.0).all()


def test_nothing_there_is_step_zero(prepared: tuple, tmp_path: Path) -> None:
    assert load_newest(prepared[0], tmp_path / "none") == 0


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "no manifest", "empty manifest", "version"])
def test_a_broken_newest_falls_back_to_the_one_before(prepared: tuple, tmp_path: Path, damage: str) -> None:
    accelerator, model = prepared
    for step in (1, 2):
        fill(model, float(step))
        save_checkpoint(accelerator, tmp_path, step, keep=2)
    newest = tmp_path / "step-00000002"
    weights, manifest = newest / "model.safetensors", newest / "manifest.json"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-4])
    elif damage == "changed":
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    elif damage == "missing":
        weights.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "empty manifest":
        manifest.write_text("")
    else:
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format_version": 99}))
    assert find_fault(newest)
    assert load_newest(accelerator, tmp_path) == 1
    assert model.weight.eq(1.0).all()


def test_retention_keeps_foreign_files_and_staging_is_never_read(prepared: tuple, tmp_path: Path) -> None:
    accelerator, model = prepared
    (tmp_path / ".DS_Store").write_text("x")
    (tmp_path / "step-notes.txt").write_text("mine")
    (tmp_path / ".staging-00000099").mkdir()
    for step in (1, 2, 3):
        fill(model, float(step))
        save_checkpoint(accelerator, tmp_path, step, keep=2)
    assert sorted(p.name for p in tmp_path.glob("step-0*")) == ["step-00000002", "step-00000003"]
    assert (tmp_path / ".DS_Store").exists() and (tmp_path / "step-notes.txt").exists()
    assert load_newest(accelerator, tmp_path) == 3


def test_a_failed_write_leaves_the_old_one(prepared: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator, model = prepared
    fill(model, 1.0)
    save_checkpoint(accelerator, tmp_path, 1, keep=1)
    monkeypatch.setattr(accelerator, "save_state", lambda folder: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(accelerator, tmp_path, 2, keep=1)
    assert load_newest(accelerator, tmp_path) == 1
