"""Somebody's own folder, speech by espeak-ng: all four stages through `accelerate launch`, then a sound."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file

from latentdiff.config import AnyRecipe
from tests.training.conftest import debug_config, train

ROOT = Path(__file__).parents[2]
WORDS = ("one two three", "good morning", "the rain has stopped", "latent diffusion")
VOICES = (("low", 20, 120), ("high", 80, 180))


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed (apt-get install espeak-ng)")
def test_own_recordings_become_a_generator(tmp_path: Path) -> None:
    speech = tmp_path / "speech"
    speech.mkdir()
    lines = ["file_name,caption"]
    for i, words in enumerate(WORDS * 2):
        name, pitch, speed = VOICES[i % 2]
        run("espeak-ng", "-p", pitch, "-s", speed + i, "-w", speech / f"{i}.wav", words, cwd=tmp_path)
        lines.append(f'{i}.wav,"a {name} voice says {words}"')
    (speech / "metadata.csv").write_text("\n".join(lines) + "\n")
    scan = run(sys.executable, "-m", "latentdiff.cli", "data", "scan", speech, cwd=tmp_path)
    assert "22050" in scan.stdout  # espeak-ng's rate; the recipes resample

    for stage in ("vae", "vocoder", "clap", "diffusion"):
        run(
            sys.executable, "-m", "accelerate.commands.launch", "--num_processes", 1, ROOT / "train.py",
            ROOT / "configs" / "debug" / f"audio_{stage}.yaml", f"data.path={speech}", "data.held_out=0.2",
            "train.batch_size=4", "train.max_steps=6", "train.overfit_check_steps=2", cwd=tmp_path,
        )  # fmt: skip
    pipeline = tmp_path / "runs" / "debug" / "diffusion" / "pipeline"
    assert json.loads((pipeline / "model_index.json").read_text())["_class_name"] == "TextToAudioPipeline"
    assert list((tmp_path / "runs" / "debug").glob("*/logs/*/events*"))  # TensorBoard by default

    run(
        sys.executable, "-m", "latentdiff.cli", "generate", "a low voice says good morning", "-m", pipeline,
        "-d", 1.5, "--seed", 3, "-o", tmp_path / "said.wav", cwd=tmp_path,
    )  # fmt: skip
    wave, rate = soundfile.read(tmp_path / "said.wav")
    assert (len(wave), rate) == (24000, 16000) and abs(wave).max() > 1e-3


def test_training_on_shards_is_training_on_the_folder(tones: Path, tmp_path: Path) -> None:
    """Stopped in the middle of an epoch, gone on with workers: bit for bit the run on the folder that never was."""
    for number in range(3):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as shard:
            for line in (tones / "metadata.jsonl").read_text().splitlines()[4 * number : 4 * number + 4]:
                record = json.loads(line)
                (tmp_path / "about.json").write_text(line)
                shard.add(tmp_path / "about.json", record["file_name"].replace(".wav", ".json"))
                shard.add(tones / record["file_name"], record["file_name"])

    def config(path: Path, output: str, steps: int, *overrides: str) -> AnyRecipe:
        return debug_config("vae", path, tmp_path / output, f"train.max_steps={steps}", "train.validate_every=100",
                            "train.checkpoint_every=1", "train.batch_size=3", *overrides)  # fmt: skip

    plain = train(config(tones, "plain", 4))
    shards = tmp_path / "{0..2}.tar"
    train(config(shards, "packed", 2))
    packed = train(config(shards, "packed", 4, "data.num_workers=2"))
    for name in ("model.safetensors", "model_1.safetensors", "ema.safetensors"):
        one, other = (load_file(run / "checkpoints" / "step-00000004" / name) for run in (plain, packed))
        assert all(torch.equal(one[key], other[key]) for key in one), name
