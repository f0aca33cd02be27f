"""A judge's answers, their counting, and what the bundled model makes of "dog barking"."""

import numpy as np
import pytest
import torch

from latentdiff import TextToAudioPipeline, TextToImagePipeline
from latentdiff.evaluation.judging import (
    accuracy,
    load_bundled_judge,
    load_bundled_picture_judge,
    name_sounds,
    rank_names,
    top_accuracy,
)
from latentdiff.media.mel import PRESETS
from latentdiff.models.judge import AudioJudge


def test_accuracy_counts_equal_names() -> None:
    assert accuracy(["a", "b", "c", "a"], ["a", "b", "a", "b"]) == 0.5


def test_names_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    judge = AudioJudge([f"label {i}" for i in range(5)], 8, PRESETS["starter-16k-64"].to_dict()).eval()
    waves = np.random.default_rng(0).standard_normal((6, 16000)).astype(np.float32) * 0.1
    assert name_sounds(judge, waves, batch=2) == name_sounds(judge, waves, batch=6)


@pytest.fixture(scope="module")
def starter() -> TextToAudioPipeline:
    pipe = TextToAudioPipeline.from_pretrained("starter-audio")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_dog_barking_is_a_dog(starter: TextToAudioPipeline) -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in range(10)]
    waves = starter(["dog barking"] * 10, generator=generators).audios
    assert name_sounds(load_bundled_judge(), waves).count("dog") >= 9


def test_other_prompts_are_not_dogs(starter: TextToAudioPipeline) -> None:
    """The prompt steers: the same noise under other words is something else."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    waves = starter(["rain", "a piano", "a siren", "applause"], generator=generators).audios
    assert "dog" not in name_sounds(load_bundled_judge(), waves)


def test_ten_seconds_stay_what_they_are(starter: TextToAudioPipeline) -> None:
    out = starter("heavy rain", audio_length_in_s=10.0, generator=torch.Generator().manual_seed(0))
    thirds = np.split(out.audios[0][:159999], 3)
    assert all(np.abs(third).max() > 1e-3 for third in thirds)
    assert out.audios.shape == (1, 160000)


def test_top_accuracy_counts_the_first_names() -> None:
    ranked = [["a", "b", "c"], ["b", "a", "c"], ["c", "b", "a"]]
    assert [top_accuracy(ranked, ["a", "a", "a"], k) for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1])


def test_the_judge_sees_who_was_asked_for() -> None:
    """A role, a gender, and that a heart is nobody."""
    pipe = TextToImagePipeline.from_pretrained("starter-image")
    pipe.set_progress_bar_config(disable=True)
    prompts = ["woman firefighter"] * 4 + ["man police officer with light skin"] * 4 + ["red heart"] * 4
    generators = [torch.Generator().manual_seed(seed % 4) for seed in range(len(prompts))]
    pictures = np.stack([np.asarray(one) for one in pipe(prompts, generator=generators).images])
    ranked = rank_names(load_bundled_picture_judge(), torch.from_numpy(pictures).permute(0, 3, 1, 2))
    truth = ["firefighter"] * 4 + ["police officer"] * 4 + ["red heart"] * 4
    assert top_accuracy(ranked["base"], truth, 1) >= 0.75
    assert top_accuracy(ranked["gender"][:8], ["woman"] * 4 + ["man"] * 4, 1) >= 0.75
