"""Somebody's own folder, speech by espeak-ng: four stages, the first through `accelerate launch`, then a sound."""

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file

from latentdiff.cli import main
from latentdiff.config import AnyRecipe
from tests.training.child import launch
from tests.training.conftest import debug_config, train

ROOT = Path(__file__).parents[2]
WORDS = ("one two three", "good morning", "the rain has stopped", "latent diffusion")
VOICES = (("low", 20, 120), ("high", 80, 180))


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed (apt-get install espeak-ng)")
def test_own_recordings_become_a_generator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    speech = tmp_path / "speech"
    speech.mkdir()
    lines = ["file_name,caption"]
    for i, words in enumerate(WORDS * 2):
        name, pitch, speed = VOICES[i % 2]
        spoken = ["espeak-ng", "-p", str(pitch), "-s", str(speed + i), "-w", str(speech / f"{i}.wav"), words]
        subprocess.run(spoken, check=True)
        lines.append(f'{i}.wav,"a {name} voice says {words}"')
    (speech / "metadata.csv").write_text("\n".join(lines) + "\n")
    assert main(["data", "scan", str(speech)]) == 0
    assert "22050" in capsys.readouterr().out  # espeak-ng's rate; the recipes resample

    for stage in ("vae", "vocoder", "clap", "diffusion"):
        command = [
            str(ROOT / "configs" / "debug" / f"audio_{stage}.yaml"), f"data.path={speech}", "data.held_out=0.2",
            "train.batch_size=4", "train.max_steps=6", "train.overfit_check_steps=2",
        ]  # fmt: skip
        if stage == "vae":
            launch(*command, cwd=tmp_path)
        else:
            assert main(["train", *command]) == 0
    pipeline = tmp_path / "runs" / "debug" / "diffusion" / "pipeline"
    assert json.loads((pipeline / "model_index.json").read_text())["_class_name"] == "TextToAudioPipeline"
    assert list((tmp_path / "runs" / "debug").glob("*/logs/*/events*"))  # TensorBoard by default

    said = tmp_path / "said.wav"
    asked = ["generate", "a low voice says good morning", "-m", str(pipeline), "-d", "1.5", "--seed", "3"]
    assert main([*asked, "-o", str(said)]) == 0
    wave, rate = soundfile.read(said)
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
