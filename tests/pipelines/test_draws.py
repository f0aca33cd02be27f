"""Several draws of a prompt, of which the network keeps the one that fits."""

from pathlib import Path

import numpy as np
import pytest
import torch

from latentdiff import InputError, TextToAudioPipeline, TextToImagePipeline
from latentdiff.cli import main
from latentdiff.diffusion.samplers import make_scheduler
from latentdiff.diffusion.selection import prompt_gain
from latentdiff.media.audio import read_recipe
from latentdiff.models.denoiser import predict
from latentdiff.models.text import concatenate
from tests.pipelines.conftest import seeded

SHORT = {"audio_length_in_s": 1.0, "num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}


def gains(pipe: TextToAudioPipeline, prompts: list[str], z: torch.Tensor, negative: str = "") -> torch.Tensor:
    """Of each z_0 by its prompt, by hand."""
    tau = concatenate(pipe.encode_prompt([negative] * len(prompts), prompts), pipe.encode_prompt(prompts))
    with torch.no_grad():
        return prompt_gain(dict(pipe.scheduler.config), lambda z_t, t: predict(pipe.unet, z_t, t, tau), z)


@pytest.mark.parametrize("negative", ["", "hiss"])
def test_the_draw_that_gains_most_by_its_prompt_is_kept(pipe: TextToAudioPipeline, negative: str) -> None:
    """Of draws that one generator makes one after another."""
    generators, prompts = seeded(3, 4), ["dog", "rain and a long bell"]
    each = [pipe(prompts, generator=generators, negative_prompt=negative, **SHORT).audios for _ in range(4)]
    best = torch.stack([gains(pipe, prompts, z, negative) for z in each]).argmax(0)
    assert best.tolist() != [0, 0]  # or nothing would be shown
    kept = pipe(prompts, generator=seeded(3, 4), negative_prompt=negative, draws=4, **SHORT).audios
    for number, place in enumerate(best.tolist()):
        torch.testing.assert_close(kept[number], each[place][number], atol=1e-4, rtol=1e-4)


def test_a_prompt_is_the_same_alone_and_beside_others(pipe: TextToAudioPipeline) -> None:
    both = pipe(["dog", "rain"], generator=seeded(0, 1, 2, 3), num_waveforms_per_prompt=2, draws=3, **SHORT).audios
    alone = pipe("rain", generator=seeded(3), draws=3, **SHORT).audios
    torch.testing.assert_close(both[3:], alone, atol=1e-4, rtol=1e-4)
    assert (both[2] - both[3]).abs().max() > 0.1


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_one_generator_for_all_no_guidance_and_samplers_that_draw(pipe: TextToAudioPipeline, scale: float) -> None:
    pipe.scheduler = make_scheduler("ddpm", pipe.scheduler.config)
    for generator in (torch.Generator().manual_seed(0), seeded(0, 1)):
        call = SHORT | {"guidance_scale": scale, "draws": 2, "generator": generator}
        z = pipe(["dog", "rain"], **call).audios
        assert z.shape[0] == 2 and torch.isfinite(z).all()


def test_each_sound_of_a_composed_prompt_is_chosen(pipe: TextToAudioPipeline) -> None:
    heard: list[torch.Tensor] = []
    pipe.vocoder.register_forward_pre_hook(lambda _, arguments: heard.append(arguments[0].clone()))
    call = {key: value for key, value in SHORT.items() if key != "output_type"} | {"audio_length_in_s": 2.048}
    pipe("a dog, then rain", generator=seeded(3), compose=True, draws=3, **call)
    one = [pipe("a dog", generator=seeded(3), draws=3, **{**SHORT, "audio_length_in_s": 1.024}).audios]
    pipe.decode(one[0])
    half = heard[1].shape[1]
    floor = float(np.log(pipe.mel.config.clamp))
    torch.testing.assert_close(heard[0][:, :half], heard[1].clamp(min=floor), atol=1e-3, rtol=1e-3)


def test_half_precision_and_pictures(pipe: TextToAudioPipeline, tiny_image_pipeline: Path) -> None:
    assert np.isfinite(pipe.to(torch.bfloat16)("dog", generator=seeded(0), draws=2).audios).all()
    pictures = TextToImagePipeline.from_pretrained(tiny_image_pipeline)
    pictures.set_progress_bar_config(disable=True)
    z = pictures(["a", "b"], generator=seeded(0, 1), draws=3, output_type="latent").images
    assert z.shape[0] == 2 and torch.isfinite(z).all()


def test_a_models_own_number_is_the_default_and_is_told(
    pipe: TextToAudioPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = pipe("dog", generator=seeded(3), draws=4, **SHORT).audios
    assert torch.equal(
        pipe("dog", generator=seeded(3), draws=1, **SHORT).audios, pipe("dog", generator=seeded(3), **SHORT).audios
    )
    pipe.register_to_config(default_draws=4)
    pipe.save_pretrained(tmp_path / "model")
    again = TextToAudioPipeline.from_pretrained(tmp_path / "model")
    again.set_progress_bar_config(disable=True)
    assert torch.equal(again("dog", generator=seeded(3), **SHORT).audios, wanted)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    first = again("dog", generator=seeded(3), draws=1, **SHORT).audios
    assert torch.equal(again("dog", latents=noise, **SHORT).audios, first)  # given noise is one draw
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "dog", "--model", "model", "--seed", "3", "-o", "dog.wav"]) == 0
    assert read_recipe(tmp_path / "dog.wav")["draws"] == 4
    assert main(["generate", "dog", "--model", "model", "--seed", "3", "-o", "one.wav", "--draws", "1"]) == 0
    assert "draws" not in read_recipe(tmp_path / "one.wav")
    assert (tmp_path / "one.wav").read_bytes() != (tmp_path / "dog.wav").read_bytes()
    capsys.readouterr()
    assert main(["generate", "dog", "--draws", "65"]) == 2
    assert capsys.readouterr().err == "latentdiff: --draws is 65; it must be from 1 to 64.\n"


def test_what_cannot_be_chosen_is_refused(pipe: TextToAudioPipeline) -> None:
    with pytest.raises(InputError, match="0 draws cannot be made; give at least 1"):
        pipe("dog", draws=0)
    noise = torch.randn(1, 4, 8, 8)
    with pytest.raises(InputError, match="latents are one draw, and 2 draws"):
        pipe("dog", draws=2, latents=noise, audio_length_in_s=1.0)
    with pytest.raises(InputError, match="2 generators were given for 1"):
        pipe("dog", draws=2, generator=seeded(0, 1))
    pipe.keep_process(None)
    pipe._process = {**pipe._process, "timestep_scaling": 10.0}
    with pytest.raises(InputError, match="few-step student cannot tell"):
        pipe("dog", draws=2)
