"""What a judge of sounds is shown: sounds joined with others, and what is then true of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from latentdiff.config import load_config
from latentdiff.errors import InputError
from latentdiff.training.recipe import Step
from latentdiff.training.recipes import RECIPES
from latentdiff.training.recipes.judge import joined_waves

CONFIG = Path(__file__).parents[2] / "configs" / "debug" / "audio_judge.yaml"


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_nothing_is_joined_where_nothing_is_asked_for() -> None:
    waves = torch.randn(8, 1000, generator=drawn()) * 0.1
    joined, partners = joined_waves(waves, 0.0, drawn())
    assert torch.equal(joined, waves) and partners == list(range(8))


def test_half_are_added_and_half_follow_one_another() -> None:
    waves = torch.randn(400, 1001, generator=drawn()) * torch.rand(400, 1, generator=drawn(1))
    joined, partners = joined_waves(waves, 0.6, drawn(2))
    assert joined.shape == waves.shape
    kinds = {"alone": 0, "in turn": 0, "added": 0}
    for i, partner in enumerate(partners):
        wave, other, made = waves[i], waves[partner], joined[i]
        if partner == i:
            assert torch.equal(made, wave)
            kinds["alone"] += 1
            continue
        assert partner == (i + 1) % 400
        if torch.equal(made[:500], wave[:500]):
            assert torch.equal(made[500:], other[:501])
            kinds["in turn"] += 1
            continue
        assert made.abs().max() == pytest.approx(float(wave.abs().max()), rel=1e-5)
        # Least squares gives back how much of each is in it: both wholly, and no more than 6 dB apart.
        parts = torch.stack([wave, other], dim=1).double()
        shares = torch.linalg.lstsq(parts, made[:, None].double()).solution[:, 0]
        assert (parts @ shares - made).abs().max() < 1e-5
        levels = shares * parts.square().mean(0).sqrt()
        assert abs(20 * float(torch.log10(levels[1] / levels[0]))) < 6.01
        kinds["added"] += 1
    assert kinds["alone"] == pytest.approx(160, abs=30)
    assert kinds["in turn"] == pytest.approx(120, abs=30) and kinds["added"] == pytest.approx(120, abs=30)


def test_both_names_are_true_of_what_is_joined(tmp_path: Path) -> None:
    names = ("bell", "dog", "rain")
    lines = []
    for i in range(12):
        soundfile.write(tmp_path / f"{i}.wav", np.sin(np.arange(33000) * 0.02 * (i + 1)) * 0.3, 16000)
        lines.append({"file_name": f"{i}.wav", "text": names[i % 3], "sources": [names[i % 3]]})
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = load_config(CONFIG, [f"data.path={tmp_path}", f"output={tmp_path / 'run'}", "joined=1.0"])
    recipe = RECIPES["judge"](config, torch.device("cpu"))
    rows = list(range(6))
    batch = {"media": recipe.media.stack([recipe.media.rows[row] for row in rows]), "row": rows}
    seen: list[torch.Tensor] = []
    told = recipe._target
    recipe._target = lambda attribute, held: seen.append(told(attribute, held)) or seen[-1]
    list(recipe.losses(batch, Step(0, drawn())))
    labels = [recipe.media.rows[row].labels[0] for row in rows]
    for line, (own, other) in enumerate(zip(labels, labels[1:] + labels[:1], strict=True)):
        expected = {own: 0.5, other: 0.5} if own != other else {own: 1.0}
        assert {recipe.labels["sources"][i]: float(v) for i, v in enumerate(seen[0][line]) if v} == expected


def test_pictures_are_not_joined(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="joined is a key for sounds"):
        load_config(CONFIG.parents[1] / "image" / "judge.yaml", [f"output={tmp_path}", "joined=0.5"])
