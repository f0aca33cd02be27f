"""What a judge hears in waveforms and sees in pictures."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latentdiff.models.judge import AudioJudge, PictureJudge

_STARTER = Path(__file__).parents[1] / "starter"


@torch.no_grad()
def name_sounds(judge: AudioJudge, waves: np.ndarray | Tensor, batch: int = 32) -> list[str]:
    """The label that the judge gives each waveform (B, S) at its own rate, in [-1, 1]."""
    labels: list[str] = judge.config.labels
    logits = torch.cat([judge(part.to(judge.device)) for part in torch.as_tensor(waves).split(batch)])
    return [labels[best] for best in logits.argmax(1).tolist()]


@torch.no_grad()
def rank_names(judge: PictureJudge, pixels: Tensor, batch: int = 64) -> dict[str, list[list[str]]]:
    """For each attribute the names that the judge gives each picture (B, C, H, W), 0 to 255, the likeliest first."""
    parts = [judge(part.to(judge.device)) for part in pixels.split(batch)]
    ranked = {}
    for attribute, labels in judge.config.labels.items():
        order = torch.cat([part[attribute] for part in parts]).argsort(1, descending=True)
        ranked[attribute] = [[labels[i] for i in line] for line in order.tolist()]
    return ranked


def accuracy(heard: list[str], truth: list[str]) -> float:
    """Share of equal names."""
    return sum(a == b for a, b in zip(heard, truth, strict=True)) / len(truth)


def top_accuracy(ranked: list[list[str]], truth: list[str], k: int) -> float:
    """Share of media whose true name is among the first ``k``."""
    return sum(name in names[:k] for names, name in zip(ranked, truth, strict=True)) / len(truth)


def load_bundled_judge() -> AudioJudge:
    """The classifier of starter-audio's names, trained on real renders only; it shares nothing with the model."""
    return AudioJudge.from_pretrained(_STARTER / "judge", torch_dtype=torch.float32).eval()


def load_bundled_picture_judge() -> PictureJudge:
    """The classifier of the emoji's names and attributes, trained on the drawn ones only, never on generated ones."""
    return PictureJudge.from_pretrained(_STARTER / "image-judge", torch_dtype=torch.float32).eval()
