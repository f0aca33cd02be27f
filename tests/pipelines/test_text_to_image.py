"""The pipeline of pictures, on real but untrained components."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from transformers import AutoTokenizer, T5EncoderModel

from latentdiff import InputError, TextToAudioPipeline, TextToImagePipeline
from latentdiff.diffusion.samplers import SAMPLERS, make_scheduler
from latentdiff.models.loading import load_autoencoder
from latentdiff.pipelines.base import GenerationError, LatentDiffusionPipeline
from tests.pipelines.conftest import seeded

LONG = "a woman astronaut with medium-dark skin beside a dog, a volcano and an ear of corn"


@pytest.fixture
def pipe(tiny_image_pipeline: Path) -> TextToImagePipeline:
    pipe = TextToImagePipeline.from_pretrained(tiny_image_pipeline)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pixels(pipe: TextToImagePipeline, prompt: str | list[str], *seeds: int, **options: object) -> torch.Tensor:
    return pipe(prompt, generator=seeded(*seeds), output_type="pt", **options).images


def test_output_types_show_the_same_picture(pipe: TextToImagePipeline) -> None:
    (pil,) = pipe("dog", generator=seeded(0)).images
    assert isinstance(pil, Image.Image) and (pil.mode, pil.size) == ("RGB", (32, 32))
    array = pipe("dog", generator=seeded(0), output_type="np").images
    assert array.shape == (1, 32, 32, 3) and array.dtype == np.float32
    tensor = pixels(pipe, "dog", 0)
    assert tensor.shape == (1, 3, 32, 32) and tensor.min() >= 0 and tensor.max() <= 1
    assert np.array_equal((array[0] * 255).round(), np.asarray(pil))
    assert np.array_equal(tensor.permute(0, 2, 3, 1).numpy(), array)
    latent = pipe("dog", generator=seeded(0), output_type="latent").images
    assert latent.shape == (1, 4, 4, 4)
    (images,) = pipe("dog", generator=seeded(0), return_dict=False)
    assert images[0].tobytes() == pil.tobytes()


@pytest.mark.parametrize("size", [(32, 32), (8, 8), (40, 24), (8, 104), (72, 16)])
def test_any_size_that_the_compression_divides(pipe: TextToImagePipeline, size: tuple[int, int]) -> None:
    (picture,) = pipe("dog", height=size[0], width=size[1], generator=seeded(0)).images
    assert picture.size == size[::-1]


def test_a_prompt_is_the_same_alone_and_in_a_mixed_batch(pipe: TextToImagePipeline) -> None:
    alone = pixels(pipe, "dog", 5)
    batch = pixels(pipe, [LONG, "dog"], 4, 5)
    assert (batch[1:] - alone).abs().max() <= 1 / 255 + 1e-6  # one level, where a value lies between two
    assert (batch[:1] - alone).abs().max() > 0.1  # the comparison could fail
    several = pixels(pipe, ["dog", LONG], 4, 5, 6, 7, num_images_per_prompt=2)
    assert (several[1:2] - alone).abs().max() <= 1 / 255 + 1e-6


def test_saved_and_loaded_gives_the_same_bits(pipe: TextToImagePipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    again = TextToImagePipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(pixels(pipe, "dog", 0), pixels(again, "dog", 0))


def test_components_load_by_themselves(tiny_image_pipeline: Path) -> None:
    for subfolder, kind in (("unet", UNet2DConditionModel), ("text_encoder", T5EncoderModel)):
        assert kind.from_pretrained(tiny_image_pipeline, subfolder=subfolder)
    assert AutoTokenizer.from_pretrained(tiny_image_pipeline / "tokenizer")("A Dog").input_ids
    assert load_autoencoder(str(tiny_image_pipeline / "vae")).config.image["background"] == "white"


def test_without_a_vae_the_denoiser_works_on_pixels(pipe: TextToImagePipeline, tmp_path: Path) -> None:
    """Whatever the number of channels; saved and loaded too."""
    parts = {name: part for name, part in pipe.components.items() if name != "vae"}
    for channels, mode in ((3, "RGB"), (1, "L")):
        unet = UNet2DConditionModel.from_config({**pipe.unet.config, "in_channels": channels, "out_channels": channels})
        plain = TextToImagePipeline(
            **{**parts, "unet": unet}, vae=None, default_steps=2, default_height=8, default_width=8
        )
        plain.save_pretrained(tmp_path / mode)
        again = TextToImagePipeline.from_pretrained(tmp_path / mode)
        assert again.vae is None
        for one in (plain, again):
            one.set_progress_bar_config(disable=True)
        first, second = (one("dog", generator=seeded(0)).images[0] for one in (plain, again))
        assert (first.mode, first.size) == (mode, (8, 8)) and first.tobytes() == second.tobytes()
        assert again("dog", height=5, width=7).images[0].size == (7, 5)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_runs_by_assignment(pipe: TextToImagePipeline, sampler: str) -> None:
    pipe.scheduler = make_scheduler(sampler, pipe.scheduler.config)
    assert torch.isfinite(pixels(pipe, "dog", 0, num_inference_steps=4)).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "dog", "height": 36}, "a height of 36 pixels is not divisible by 8, .*; try 32"),
        ({"prompt": "dog", "width": 3}, "a width of 3 pixels is not divisible by 8, .*; try 8"),
        ({"prompt": "dog", "height": 0}, "a height of 0 pixels cannot be made"),
        ({"prompt": "dog", "width": 4096}, "at most 2048"),
        ({"prompt": "dog", "num_inference_steps": 0}, "0 steps"),
        ({"prompt": "dog", "num_images_per_prompt": 0}, "0 pictures a prompt"),
        ({"prompt": "dog", "output_type": "png"}, "choose pil, np, pt or latent"),
        ({"prompt": "dog", "generator": seeded(0, 1)}, "2 generators were given for 1 pictures"),
        ({"prompt": "dog", "negative_prompt": ["a", "b"]}, "2 negative prompts"),
        ({"prompt": "dog", "latents": torch.zeros(1, 4, 8, 8)}, "latents have the shape"),
    ],
)
def test_bad_arguments_are_one_sentence(pipe: TextToImagePipeline, arguments: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        pipe(**arguments)
    assert "\n" not in str(caught.value)


def test_what_is_not_finite_is_never_returned(pipe: TextToImagePipeline) -> None:
    with torch.no_grad():
        pipe.vae.synthesis.bias.fill_(float("nan"))
    with pytest.raises(GenerationError, match="not finite"):
        pipe("dog")


def test_a_vae_of_sounds_is_refused(pipe: TextToImagePipeline, tiny_pipeline: Path) -> None:
    parts = {**pipe.components, "vae": load_autoencoder(str(tiny_pipeline / "vae"))}
    with pytest.raises(InputError, match="one of sounds"):
        TextToImagePipeline(**parts)


def test_both_pipelines_are_one_but_for_the_medium() -> None:
    """Names as diffusers has them, and everything before the decoding in the shared base."""
    image = list(inspect.signature(TextToImagePipeline.__call__).parameters)
    audio = list(inspect.signature(TextToAudioPipeline.__call__).parameters)
    assert {"height", "width", "num_images_per_prompt", "output_type"} <= set(image)
    ranking = {"candidates", "ranker"}  # by CLAP, which hears sounds
    sounds = {"audio_length_in_s", "num_waveforms_per_prompt", "compose", *ranking}  # sounds can be added up
    own = {"height", "width", "num_images_per_prompt"}, sounds
    assert [name for name in image if name not in own[0]] == [name for name in audio if name not in own[1]]
    for shared in ("encode_prompt", "sample", "denoise", "draw_latents", "from_pretrained"):
        assert shared in vars(LatentDiffusionPipeline)
        assert shared not in vars(TextToImagePipeline) and shared not in vars(TextToAudioPipeline)
