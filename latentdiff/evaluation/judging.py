"""What a judge hears in waveforms."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latentdiff.models.judge import AudioJudge


@torch.no_grad()
def name_sounds(judge: AudioJudge, waves: np.ndarray | Tensor, batch: int = 32) -> list[str]:
    """The label that the judge gives each waveform (B, S) at its own rate, in [-1, 1]."""
    labels: list[str] = judge.config.labels
    logits = torch.cat([judge(part.to(judge.device)) for part in torch.as_tensor(waves).split(batch)])
    return [labels[best] for best in logits.argmax(1).tolist()]


def accuracy(heard: list[str], truth: list[str]) -> float:
    """Share of equal names."""
    return sum(a == b for a, b in zip(heard, truth, strict=True)) / len(truth)


def load_bundled_judge() -> AudioJudge:
    """The classifier of starter-audio's names, trained on real renders only; it shares nothing with the model."""
    folder = Path(__file__).parents[1] / "starter" / "judge"
    return AudioJudge.from_pretrained(folder, torch_dtype=torch.float32).eval()
