"""Published folders give what diffusers' own pipelines give; where those do not run, what their code would."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AudioLDM2Pipeline, DiffusionPipeline, StableDiffusionPipeline
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer, GPT2LMHeadModel

from latentdiff import InputError, TextToAudioPipeline, TextToImagePipeline
from latentdiff.interop.folder import FAMILIES

Folder = Callable[[str], Path]
SECONDS = 0.032  # 128 frames of the tiny vocoder
LONG = "a violin, a dog, rain on a roof"
TOLERANCE = 1e-4


def ours(folder: Path) -> Any:
    kind = TextToImagePipeline if folder.name == "stable_diffusion" else TextToAudioPipeline
    pipe = kind.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def theirs(folder: Path) -> Any:
    """diffusers' own pipeline, helped past the one thing in it that does not run under these versions."""
    parts = {}
    if folder.name == "audioldm2-without-head":
        parts["language_model"] = GPT2LMHeadModel.from_pretrained(folder / "language_model")
    pipe = DiffusionPipeline.from_pretrained(folder, **parts)
    if folder.name == "musicldm":  # it expects the tensor that transformers 4 returned
        whole = pipe.text_encoder.get_text_features
        pipe.text_encoder.get_text_features = lambda *a, **k: whole(*a, **k).pooler_output
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def latents(pipe: Any, prompt: Any, **options: Any) -> Tensor:
    """z_0 of either pipeline; AudioLDM's own gives it to its callback only."""
    pictures = "Image" in type(pipe).__name__ or "StableDiffusion" in type(pipe).__name__
    options |= {"height": 32, "width": 48} if pictures else {"audio_length_in_s": SECONDS}
    if type(pipe).__name__ in ("AudioLDMPipeline", "MusicLDMPipeline"):
        seen: list[Tensor] = []
        pipe(prompt, callback=lambda step, t, z: seen.append(z), **options)
        return seen[-1]
    out = pipe(prompt, output_type="latent", **options)
    z: Tensor = out.images if pictures else out.audios
    return z


def difference(a: Tensor, b: Tensor) -> float:
    """Greatest difference relative to the greatest value."""
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("name", ["audioldm", "musicldm", "audioldm2", "audioldm2-without-head", "stable_diffusion"])
def test_latents_are_those_of_diffusers(published_folder: Folder, name: str) -> None:
    folder = published_folder(name)
    mine, reference = ours(folder), theirs(folder)
    plain, guided, negative = (1.0, None), (3.5, None), (3.5, "a rain")
    cases = [(2, plain), (2, guided), (2, negative)]
    if name not in ("musicldm", "audioldm2-without-head"):
        cases += [(10, guided), (10, negative), (50, negative)]
    for steps, (guidance, other) in cases:
        options = {"num_inference_steps": steps, "guidance_scale": guidance, "negative_prompt": other}
        wanted = latents(reference, "dog barking", generator=seed(1), **options)
        assert difference(latents(mine, "dog barking", generator=seed(1), **options), wanted) < TOLERANCE
    dog, rain = (latents(mine, text, generator=seed(1), num_inference_steps=2) for text in ("dog barking", "rain"))
    assert difference(rain, dog) > 100 * TOLERANCE  # the comparison could fail


@pytest.mark.parametrize("name", ["audioldm", "audioldm2"])
def test_waveforms_are_those_of_diffusers(published_folder: Folder, name: str) -> None:
    folder = published_folder(name)
    options = {"num_inference_steps": 3, "audio_length_in_s": SECONDS}
    mine = ours(folder)("dog", generator=seed(0), guidance_scale=2.0, **options)
    wanted = theirs(folder)("dog", generator=seed(0), guidance_scale=2.0, **options).audios
    assert mine.sampling_rate == 16000 and mine.audios.shape == wanted.shape == (1, 512)
    assert np.abs(wanted).max() > 0.01
    np.testing.assert_allclose(mine.audios, wanted, atol=1e-4 * np.abs(wanted).max())


def test_pictures_are_those_of_diffusers(published_folder: Folder) -> None:
    folder = published_folder("stable_diffusion")
    options = {"num_inference_steps": 2, "height": 32, "width": 48, "output_type": "np"}
    wanted = theirs(folder)("dog", generator=seed(0), **options).images
    made = ours(folder)("dog", generator=seed(0), **options).images
    assert np.abs(made - wanted).max() <= 0.51 / 255  # ours are 8-bit pixels
    assert wanted.std() > 0.01


@pytest.mark.parametrize("name", ["audioldm", "musicldm", "audioldm2", "stable_diffusion", "auffusion"])
def test_a_prompt_is_the_same_alone_and_in_a_mixed_batch(published_folder: Folder, name: str) -> None:
    pipe = ours(published_folder(name))
    options = {"num_inference_steps": 2, "guidance_scale": 3.0}
    for negative in (None, "hiss and noise, bad"):
        batch = latents(pipe, [LONG, "dog"], generator=[seed(0), seed(1)], negative_prompt=negative, **options)
        for row, prompt in enumerate([LONG, "dog"]):
            alone = latents(pipe, prompt, generator=[seed(row)], negative_prompt=negative, **options)
            assert difference(batch[row : row + 1], alone) < TOLERANCE


@pytest.mark.parametrize("name", ["audioldm", "musicldm", "audioldm2-without-head", "stable_diffusion", "auffusion"])
def test_saved_by_us_is_ours_and_its_parts_are_diffusers(published_folder: Folder, name: str, tmp_path: Path) -> None:
    pipe = ours(published_folder(name))
    pipe.save_pretrained(tmp_path / name)
    options = {"num_inference_steps": 2, "guidance_scale": 2.0}
    first = latents(pipe, "dog", generator=seed(3), **options)
    again = ours(tmp_path / name)
    assert torch.equal(latents(again, "dog", generator=seed(3), **options), first)
    if name == "audioldm2-without-head":
        parts = again.components
        theirs_of_ours = AudioLDM2Pipeline(
            text_encoder=parts["clap"], tokenizer=parts["clap_tokenizer"], text_encoder_2=parts["text_encoder"],
            tokenizer_2=parts["tokenizer"],
            **{key: parts[key] for key in (
                "vae", "unet", "scheduler", "vocoder", "projection_model", "language_model", "feature_extractor",
            )},
        )  # fmt: skip
        theirs_of_ours.set_progress_bar_config(disable=True)
        wanted = latents(theirs_of_ours, "dog", generator=seed(3), **options)
        assert difference(first, wanted) < TOLERANCE


def test_auffusion_is_what_its_code_computes(published_folder: Folder) -> None:
    """Tokens, zeros up to 77, linear layer, norm; no negative prompt is zeros (its pipeline's ``_encode_prompt``)."""
    folder = published_folder("auffusion")
    pipe = ours(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "text_encoder_0")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder_0")
    adapter = torch.load(folder / "condition_adapter_0" / "condition_adapter.pt", weights_only=True)

    def embedded(prompt: str) -> Tensor:
        with torch.no_grad():
            tokens = encoder(tokenizer(prompt, return_tensors="pt").input_ids).last_hidden_state
        tokens = F.pad(tokens, (0, 0, 0, 77 - tokens.shape[1]))
        linear = F.linear(tokens, adapter["proj.weight"], adapter["proj.bias"])
        return F.layer_norm(linear, (8,), adapter["norm.weight"], adapter["norm.bias"])

    reference = StableDiffusionPipeline(
        pipe.vae, None, None, pipe.unet, pipe.scheduler, None, None, requires_safety_checker=False
    )
    reference.set_progress_bar_config(disable=True)
    for negative in (None, "a rain"):
        made = latents(pipe, "dog", generator=seed(2), num_inference_steps=5, negative_prompt=negative)
        height, width = (2 * side for side in made.shape[2:])
        wanted = reference(
            prompt_embeds=embedded("dog"), height=height, width=width, num_inference_steps=5, guidance_scale=7.5,
            negative_prompt_embeds=torch.zeros(1, 77, 8) if negative is None else embedded(negative),
            generator=seed(2), output_type="latent",
        ).images  # fmt: skip
        assert difference(made, wanted) < TOLERANCE
    definition = pipe.mel.config
    assert definition.flip and definition.frequency_first and definition.channels == 3
    assert pipe("dog", num_inference_steps=2, audio_length_in_s=SECONDS).audios.shape == (1, 512)


@pytest.mark.parametrize(
    ("name", "steps", "guidance"),
    [("audioldm", 10, 2.5), ("musicldm", 200, 2.0), ("audioldm2", 200, 3.5), ("stable_diffusion", 50, 7.5)],
)
def test_defaults_are_those_of_diffusers(published_folder: Folder, name: str, steps: int, guidance: float) -> None:
    pipe = ours(published_folder(name))
    assert (pipe.config.default_steps, pipe.config.default_guidance) == (steps, guidance)
    if name != "stable_diffusion":  # 32 latents of 2 frames of 4 samples
        assert pipe.config.default_seconds == pytest.approx(32 * 2 * 4 / 16000)
    else:
        assert (pipe.config.default_height, pipe.config.default_width) == (64, 64)


def test_published_mels_belong_to_published_vocoders() -> None:
    from types import SimpleNamespace

    from latentdiff.interop.audioldm import AUDIOLDM
    from latentdiff.interop.load import _mel
    from latentdiff.media.mel import PRESETS

    small = SimpleNamespace(sampling_rate=16000, model_in_dim=64, upsample_rates=[5, 4, 2, 2, 2])
    large = SimpleNamespace(sampling_rate=48000, model_in_dim=256, upsample_rates=[6, 5, 4, 2, 2])
    assert _mel(AUDIOLDM, small) == PRESETS["audioldm-16k-64"]
    assert _mel(AUDIOLDM, large) == PRESETS["audioldm-48k-256"]


def test_other_medium_says_which_class(published_folder: Folder) -> None:
    with pytest.raises(InputError, match="TextToImagePipeline"):
        TextToAudioPipeline.from_pretrained(published_folder("stable_diffusion"))
    with pytest.raises(InputError, match="TextToAudioPipeline"):
        TextToImagePipeline.from_pretrained(published_folder("auffusion"))


def test_tables_name_classes_that_exist() -> None:
    import diffusers
    import transformers

    from latentdiff.models import prompts

    homes = (diffusers, transformers, prompts)
    for family in FAMILIES:
        for part in family.parts.values():
            assert part.kinds[0] == "Scheduler" or any(hasattr(home, part.kinds[0]) for home in homes), part
