"""The bundled models: their size, their parts in the plain libraries, and how they are made."""

from pathlib import Path

import diffusers
import pytest
import torch
from transformers import AutoTokenizer, SpeechT5HifiGan, T5EncoderModel

from latentdiff import TextToAudioPipeline, TextToImagePipeline
from latentdiff.names import bundled_folder
from latentdiff.starter.build import IMAGE_LIMIT_BYTES, LIMIT_BYTES, build


def test_build_halves_the_weights_and_use_stays_in_float32(tiny_pipeline: Path, tmp_path: Path) -> None:
    size = build(tiny_pipeline, tmp_path / "half", vocoder=None)
    full = sum(path.stat().st_size for path in tiny_pipeline.rglob("*.safetensors"))
    assert 0.4 < size / full < 0.75  # headers stay as long as they are, which counts in so small a model
    pipe = TextToAudioPipeline.from_pretrained(tmp_path / "half")
    pipe.set_progress_bar_config(disable=True)
    parts = (pipe.unet, pipe.vae, pipe.vocoder, pipe.text_encoder)
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.float32}
    original = TextToAudioPipeline.from_pretrained(tiny_pipeline)
    original.set_progress_bar_config(disable=True)
    first, second = (
        p("a dog", generator=torch.Generator().manual_seed(0), output_type="latent").audios for p in (original, pipe)
    )
    torch.testing.assert_close(first, second, atol=0.05, rtol=0.05)


def test_a_pipeline_of_pictures_is_built_too(tiny_image_pipeline: Path, tmp_path: Path) -> None:
    size = build(tiny_image_pipeline, tmp_path / "half", vocoder=None)
    assert 0.4 < size / sum(path.stat().st_size for path in tiny_image_pipeline.rglob("*.safetensors")) < 0.75
    pipe = TextToImagePipeline.from_pretrained(tmp_path / "half")
    assert {p.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder) for p in part.parameters()} == {torch.float32}


def test_starter_audio_fits_and_its_parts_load_alone() -> None:
    folder = bundled_folder("starter-audio")
    assert sum(path.stat().st_size for path in folder.rglob("*.safetensors")) <= LIMIT_BYTES
    assert diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet").config.in_channels == 8
    assert diffusers.DPMSolverMultistepScheduler.from_pretrained(folder, subfolder="scheduler")
    assert SpeechT5HifiGan.from_pretrained(folder, subfolder="vocoder").config.sampling_rate == 16000
    assert T5EncoderModel.from_pretrained(folder, subfolder="text_encoder").config.d_model > 0
    tokens = AutoTokenizer.from_pretrained(folder / "tokenizer")("Dog BARKING")
    assert tokens.input_ids == AutoTokenizer.from_pretrained(folder / "tokenizer")("dog barking").input_ids


def test_starter_image_fits_and_its_parts_load_alone() -> None:
    folder = bundled_folder("starter-image")
    assert sum(path.stat().st_size for path in folder.rglob("*.safetensors")) <= IMAGE_LIMIT_BYTES
    assert diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet").config.in_channels == 32
    assert diffusers.DPMSolverMultistepScheduler.from_pretrained(folder, subfolder="scheduler")
    assert T5EncoderModel.from_pretrained(folder, subfolder="text_encoder").config.d_model > 0
    assert AutoTokenizer.from_pretrained(folder / "tokenizer")("woman astronaut").input_ids


def test_all_that_is_bundled_fits() -> None:
    everything = bundled_folder("starter-image").parent
    assert sum(path.stat().st_size for path in everything.rglob("*.safetensors")) <= 36_000_000


def test_no_bundled_file_tells_where_it_was_made(tiny_pipeline: Path, tmp_path: Path) -> None:
    build(tiny_pipeline, tmp_path / "half", vocoder=None)
    for folder in (tmp_path / "half", bundled_folder("starter-audio").parent):
        for config in folder.rglob("*.json"):
            assert "_name_or_path" not in config.read_text(encoding="utf-8"), config


@pytest.mark.parametrize(
    ("model", "words"),
    [
        *(("starter-audio", words) for words in ("rendered with fluidsynth", "license: mit", "judge")),
        *(("starter-image", words) for words in ("open font license", "license: mit", "judge", "samples.png")),
    ],
)
def test_the_card_says_what_matters(model: str, words: str) -> None:
    card = (bundled_folder(model) / "README.md").read_text().lower()
    assert words in card and "accelerate launch" in card
    assert "@" not in card  # no placeholder left
