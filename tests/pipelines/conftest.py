"""The tiny pipeline of sounds, loaded."""

from pathlib import Path

import pytest
import torch

from latentdiff import TextToAudioPipeline


@pytest.fixture
def pipe(tiny_pipeline: Path) -> TextToAudioPipeline:
    pipe = TextToAudioPipeline.from_pretrained(tiny_pipeline)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(*seeds: int) -> list[torch.Generator]:
    """A generator for each seed."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]
