"""A small folder of captioned tones and configurations that train on it in a second or two."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from latentdiff.config import AnyRecipe, load_config

CONFIGS = Path(__file__).parents[2] / "configs" / "debug"
Train = Callable[..., Path]


@pytest.fixture(scope="session")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve clips of one second, low or high tones in noise, with captions and sources."""
    folder = tmp_path_factory.mktemp("tones")
    rng = np.random.default_rng(0)
    lines = []
    for i in range(12):
        name, pitch = ("low", 220) if i % 2 else ("high", 880)
        time = np.arange(16000) / 16000
        wave = 0.3 * np.sin(2 * np.pi * pitch * time) * np.exp(-3 * time) + 0.01 * rng.standard_normal(16000)
        soundfile.write(folder / f"{i:02d}.wav", wave.astype(np.float32), 16000)
        lines.append({"file_name": f"{i:02d}.wav", "text": [f"a {name} tone", f"tone, {name}"], "sources": [name]})
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    return folder


def debug_config(stage: str, data: Path, output: Path, *overrides: str) -> AnyRecipe:
    """A debug configuration on the tones, six steps long."""
    common = [f"data.path={data}", f"output={output}", "data.held_out=0.2", "train.batch_size=4", "train.max_steps=6",
              "train.validate_every=6", "train.checkpoint_every=3", "train.log_every=2", "train.trackers=[]",
              "train.overfit_check_steps=0"]  # fmt: skip
    if stage in ("vae", "clap", "diffusion", "consistency"):
        common.append("data.seconds=0.512")
    if stage in ("vae", "vocoder"):
        common.append("adversarial_start=2")
    return load_config(CONFIGS / f"audio_{stage}.yaml", [*common, *overrides])


def train(config: Any) -> Path:
    """Run it in this process; returns its output folder."""
    from latentdiff.training.loop import Trainer
    from latentdiff.training.recipes import RECIPES

    Trainer(config, RECIPES[config.stage]).run()
    return Path(config.output)


@pytest.fixture(scope="session")
def stages(tones: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All stages trained once, in order: name -> output folder."""
    root = tmp_path_factory.mktemp("runs")
    done = {}
    for stage in ("vae", "vocoder", "clap"):
        done[stage] = train(debug_config(stage, tones, root / stage))
    done["diffusion"] = train(debug_config("diffusion", tones, root / "diffusion", *diffusion_parts(done)))
    done["consistency"] = train(debug_config("consistency", tones, root / "consistency", teacher_part(done)))
    return done


def teacher_part(done: dict[str, Path]) -> str:
    """The override that points the consistency stage at its teacher."""
    return f"teacher={done['diffusion'] / 'pipeline'}"


def diffusion_parts(done: dict[str, Path]) -> list[str]:
    """Overrides that point the diffusion stage at the others' results."""
    return [f"{stage}={done[stage] / stage}" for stage in ("vae", "vocoder", "clap")]
