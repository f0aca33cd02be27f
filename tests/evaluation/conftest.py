"""Real and made media that the tests of whole evaluations share."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from latentdiff.config import CLAPTower

RATE = 16000


def write_sounds(folder: Path, count: int, seed: int, named: str = "clip", rate: int = RATE) -> Path:
    """Tones of random pitch in noise, half a second each, with captions and sources."""
    folder.mkdir(parents=True)
    rng, lines = np.random.default_rng(seed), []
    for i in range(count):
        name = ("piano", "flute")[i % 2]
        pitch, time = rng.uniform(200, 2000), np.arange(rate // 2) / rate
        wave = 0.3 * np.sin(2 * np.pi * pitch * time) + 0.02 * rng.standard_normal(len(time))
        soundfile.write(folder / f"{named}-{i}.wav", wave, rate)
        lines.append(json.dumps({"file_name": f"{named}-{i}.wav", "text": [f"a {name}", name], "sources": [name]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sounds(tmp_path_factory.mktemp("real") / "sounds", 20, 0)


@pytest.fixture(scope="session")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small render of the sound bank."""
    if not shutil.which("fluidsynth"):
        pytest.skip("fluidsynth is not installed")
    from latentdiff.data.soundbank.render import render_soundbank

    folder = tmp_path_factory.mktemp("bank") / "bank"
    render_soundbank(folder, 24, 1.024, 3, workers=1)
    return folder


@pytest.fixture(scope="session")
def tiny_clap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLAP as our recipe exports it, very small and untrained."""
    import torch

    from latentdiff.models.clap import new_clap

    torch.manual_seed(0)
    tower = CLAPTower(text_width=32, text_layers=1, audio_width=8, audio_depths=(1, 1, 1, 1), projection=16)
    parts = new_clap(tower, ["a piano", "a flute", "rain on a roof"])
    folder = tmp_path_factory.mktemp("clap") / "clap"
    for part in parts:
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def hearer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audio classifier of transformers, very small and untrained."""
    import torch
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    torch.manual_seed(0)
    names = {0: "piano", 1: "flute", 2: "rain"}
    config = ASTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_length=64,
        num_mel_bins=32, id2label=names, label2id={name: i for i, name in names.items()},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("hearer") / "ast"
    ASTForAudioClassification(config).save_pretrained(folder)
    ASTFeatureExtractor(max_length=64, num_mel_bins=32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def looker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture classifier of transformers, very small and untrained."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32,
        patch_size=8, id2label={0: "dog", 1: "cat", 2: "tree"}, label2id={"dog": 0, "cat": 1, "tree": 2},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("looker") / "vit"
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def evaluated(bank: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """The command line of an evaluation of starter-audio but for its output, and what it wrote."""
    from latentdiff.cli import main

    command = ["evaluate", "starter-audio", "--data", str(bank), "--count", "6", "-d", "1.024", "--steps", "4"]
    command += ["--bootstrap", "20", "--show", "3", "--seed", "7"]
    output = tmp_path_factory.mktemp("evaluated") / "first"
    assert main([*command, "-o", str(output)]) == 0
    return command, output
