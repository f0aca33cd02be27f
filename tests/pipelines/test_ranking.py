"""Candidates: the best by CLAP of each prompt's own is kept, whatever stands beside it; seeds and scores are told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentdiff import InputError, TextToAudioPipeline
from latentdiff.cli import main
from latentdiff.media.audio import read_audio, read_recipe
from latentdiff.pipelines.ranking import Ranker, best_of
from tests.interop.conftest import published_folder  # noqa: F401 (a fixture)

Folder = Callable[[str], Path]
OPTIONS: dict[str, Any] = {"num_inference_steps": 2, "audio_length_in_s": 0.03}


@pytest.fixture(scope="module")
def pipe(published_folder: Folder) -> TextToAudioPipeline:  # noqa: F811
    pipe = TextToAudioPipeline.from_pretrained(published_folder("musicldm"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeds(first: int, count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in range(first, first + count)]


def test_each_prompt_keeps_the_best_of_its_own(pipe: TextToAudioPipeline) -> None:
    """By hand: all that were made, each against its own prompt alone."""
    prompts, candidates = ["a dog, barking", "rain"], 3
    each = [prompt for prompt in prompts for _ in range(2 * candidates)]
    everything = pipe(each, generator=seeds(0, 12), **OPTIONS).audios
    ranker = Ranker(pipe.clap, pipe.clap_tokenizer, pipe.feature_extractor)  # type: ignore[arg-type]
    scores = np.concatenate([ranker(wave[None], 16000, [text]) for wave, text in zip(everything, each, strict=True)])
    assert np.ptp(scores) > 1e-4  # CLAP hears a difference
    out = pipe(prompts, num_waveforms_per_prompt=2, candidates=candidates, generator=seeds(0, 12), **OPTIONS)
    assert out.audios.shape[0] == 4 and out.sampling_rate == 16000
    for place, group in enumerate(scores.reshape(4, candidates)):
        assert out.scores[place] == pytest.approx(group.max(), abs=1e-5)
        assert scores[out.chosen[place]] == pytest.approx(group.max(), abs=1e-5)
        assert out.chosen[place] // candidates == place
        np.testing.assert_allclose(out.audios[place], everything[out.chosen[place]], atol=1e-5)


def test_best_is_within_each_group() -> None:
    """The best of all belongs to one prompt; ranking across prompts would give it to all."""
    assert best_of(np.array([0.9, 0.1, 0.2, 0.3, 0.0, 0.0]), 2).tolist() == [0, 3, 4]


def test_a_choice_does_not_depend_on_the_others(pipe: TextToAudioPipeline) -> None:
    both = pipe(["rain, a long text of other things", "a dog"], candidates=3, generator=seeds(0, 6), **OPTIONS)
    alone = pipe("a dog", candidates=3, generator=seeds(3, 3), **OPTIONS)
    assert alone.chosen[0] + 3 == both.chosen[1]
    assert alone.scores[0] == pytest.approx(both.scores[1], abs=1e-5)
    np.testing.assert_allclose(alone.audios[0], both.audios[1], atol=1e-4)


def test_what_cannot_be_ranked_is_refused(pipe: TextToAudioPipeline, tiny_pipeline: Path) -> None:
    with pytest.raises(InputError, match="0 candidates cannot be made"):
        pipe("a dog", candidates=0)
    with pytest.raises(InputError, match="latents were asked for"):
        pipe("a dog", candidates=2, output_type="latent")
    with pytest.raises(InputError, match="has no whole CLAP"):
        TextToAudioPipeline.from_pretrained(tiny_pipeline)("a dog", candidates=2)
    with pytest.raises(InputError, match="nowhere is no component folder"):
        Ranker.from_pretrained("nowhere")


def test_the_shell_keeps_the_seed_of_the_chosen(
    pipe: TextToAudioPipeline, published_folder: Folder, tiny_pipeline: Path, tmp_path: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model = str(published_folder("musicldm"))
    common = ["-m", model, "--steps", "2", "-d", "0.03", "--device", "cpu"]
    ranked = ["generate", "a dog", "rain", *common, "--seed", "5", "--candidates", "3", "-o", f"{tmp_path}/"]
    assert main(ranked) == 0
    recipe = read_recipe(tmp_path / "rain.wav")
    assert recipe and recipe["candidates"] == 3 and recipe["seed"] in (8, 9, 10) and -1 <= recipe["score"] <= 1
    assert f"seed {recipe['seed']}  score {recipe['score']}" in capsys.readouterr().out
    assert main(["generate", "rain", *common, "--seed", str(recipe["seed"]), "-o", f"{tmp_path}/again.wav"]) == 0
    waves = [read_audio(tmp_path / name)[0] for name in ("rain.wav", "again.wav")]
    np.testing.assert_allclose(*waves, atol=1e-3)
    assert main([*ranked, "--resume"]) == 0  # nothing is left to be made, and the kept seeds are those of this request
    for arguments, words in (
        (["-m", str(tiny_pipeline), "--candidates", "3"], "has none; name one by --ranker"),
        (["-m", "starter-image", "--candidates", "3"], "--candidates is not for pictures"),
        (["--candidates", "1"], "--candidates is 1; it must be from 2 to 64"),
        (["--ranker", "x"], "say by --candidates how many"),
        (["--lora", "x"], "--lora x is no folder with pytorch_lora_weights.safetensors"),
    ):
        assert main(["generate", "a dog", "-o", f"{tmp_path}/x.wav", *arguments]) == 2
        assert words in capsys.readouterr().err
