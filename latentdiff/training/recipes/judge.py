"""Stage ``judge``: a classifier of real sounds by their ``sources``, which then listens to a generator."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from latentdiff.config import JudgeRecipe
from latentdiff.data.items import WaveItems, split_usable
from latentdiff.errors import InputError
from latentdiff.media.mel import resolve_mel
from latentdiff.models.judge import AudioJudge
from latentdiff.training.recipe import Losses, Recipe, Step


class JudgeTraining(Recipe[JudgeRecipe]):
    """Cross-entropy against the uniform distribution over a clip's sources, one or two."""

    def __init__(self, config: JudgeRecipe, device: torch.device) -> None:
        super().__init__(config, device)
        train, held_out = ([row for row in rows if row.labels] for rows in split_usable(config.data))
        if not train:
            raise InputError(f"{config.data.path}: no row of the metadata has 'sources', which a judge learns from.")
        mel = resolve_mel(config.mel)
        samples = int(config.data.seconds * mel.sampling_rate)
        self.waves = WaveItems(train, mel.sampling_rate, samples)
        self.held_out = WaveItems(held_out, mel.sampling_rate, samples)
        self.labels = sorted({label for row in [*train, *held_out] for label in row.labels})
        self.judge = AudioJudge(self.labels, config.width, mel.to_dict())
        self.networks: dict[str, nn.Module] = {"judge": self.judge}
        self.phases, self.averaged = {"judge": ("judge",)}, ("judge",)
        self.weights = {"cross_entropy": 1.0}

    @property
    def items(self) -> Dataset[dict[str, Any]]:
        return self.waves

    def targets(self, rows: list[int]) -> Tensor:
        """(B, labels): 1 / number of sources at each source."""
        target = torch.zeros(len(rows), len(self.labels))
        for line, row in enumerate(rows):
            labels = set(self.waves.rows[row].labels)
            for label in labels:
                target[line, self.labels.index(label)] = 1 / len(labels)
        return target.to(self.device)

    def losses(self, batch: dict[str, Any], step: Step) -> Iterator[tuple[str, Losses]]:
        wave = augment(batch["media"], step.generator)
        logits = self.networks["judge"](wave)
        loss = nn.functional.cross_entropy(logits, self.targets(batch["row"]), label_smoothing=0.02)
        yield "judge", {"cross_entropy": loss}

    def validate(self, folder: Path) -> dict[str, float]:
        rows = [row for row in self.held_out.rows if len(set(row.labels)) == 1]
        right, wrong = 0, []
        for start in range(0, len(rows), 32):
            part = rows[start : start + 32]
            wave = torch.stack([torch.from_numpy(self.held_out.crop(row)) for row in part]).to(self.device)
            for row, best in zip(part, self.networks["judge"](wave).argmax(1).tolist(), strict=True):
                right += self.labels[best] == row.labels[0]
                if self.labels[best] != row.labels[0]:
                    wrong.append(f"{row.labels[0]} heard as {self.labels[best]}: {row.path.name}")
        (folder / "wrong.txt").write_text("\n".join(sorted(wrong)) + "\n")
        return {"accuracy": right / max(1, len(rows)), "clips": float(len(rows))}

    def export(self, folder: Path) -> None:
        """``OUTPUT/judge``."""
        self.judge.save_pretrained(folder / "judge")


def augment(wave: Tensor, generator: torch.Generator) -> Tensor:
    """Gain of -12 to +6 dB, a shift in time by up to an eighth, and faint noise, for each waveform (B, S)."""
    count, samples = wave.shape
    decibels = torch.rand(count, 1, generator=generator) * 18 - 12
    shifts = torch.randint(-samples // 8, samples // 8, (count,), generator=generator).tolist()
    moved = torch.stack([row.roll(shift) for row, shift in zip(wave, shifts, strict=True)])
    noise = (
        torch.randn(wave.shape, generator=generator).to(wave)
        * 1e-3
        * torch.rand(count, 1, generator=generator).to(wave)
    )
    return (moved * 10 ** (decibels.to(wave) / 20) + noise).clamp(-1, 1)
