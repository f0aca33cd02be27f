"""The pipeline, on real but untrained components; latents are compared, not the vocoder's faint output."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, SchedulerMixin, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import AutoTokenizer, SpeechT5HifiGan, T5EncoderModel

from latentdiff import InputError, TextToAudioPipeline
from latentdiff.diffusion.samplers import SAMPLERS, make_scheduler
from latentdiff.models.vocabulary import Vocabulary
from latentdiff.pipelines.base import GenerationError
from tests.pipelines.conftest import seeded

LONG = "a violin plays a slow tune high up while rain falls on a roof and a dog barks three times"


def latents(pipe: TextToAudioPipeline, prompt: str | list[str], *seeds: int, **options: object) -> torch.Tensor:
    return pipe(prompt, generator=seeded(*seeds), output_type="latent", **options).audios


def test_output_has_the_asked_length_and_its_rate(pipe: TextToAudioPipeline) -> None:
    for seconds in (0.01, 0.5, 1.3):
        out = pipe("dog", audio_length_in_s=seconds, generator=seeded(0))
        assert out.audios.shape == (1, round(seconds * 16000))
        assert out.audios.dtype == np.float32 and out.sampling_rate == 16000
    tensor, rate = pipe("dog", generator=seeded(0), output_type="pt", return_dict=False)
    assert isinstance(tensor, torch.Tensor) and rate == 16000


def test_a_prompt_is_the_same_alone_and_in_a_mixed_batch(pipe: TextToAudioPipeline) -> None:
    alone = latents(pipe, "dog", 5)
    batch = latents(pipe, [LONG, "dog"], 4, 5, negative_prompt="noise and hiss of a very bad recording")
    alone_negative = latents(pipe, "dog", 5, negative_prompt="noise and hiss of a very bad recording")
    torch.testing.assert_close(batch[1:], alone_negative, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(latents(pipe, [LONG, "dog"], 4, 5)[1:], alone, atol=1e-4, rtol=1e-4)
    assert (alone - alone_negative).abs().max() > 1e-3  # the comparison could fail


def test_several_waveforms_a_prompt_stand_one_after_the_other(pipe: TextToAudioPipeline) -> None:
    both = latents(pipe, ["dog", "rain"], 0, 1, 2, 3, num_waveforms_per_prompt=2)
    torch.testing.assert_close(both[2:3], latents(pipe, "rain", 2), atol=1e-4, rtol=1e-4)


def test_a_word_beyond_the_captions_is_read_as_one_of_them_and_said_once(
    pipe: TextToAudioPipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hound = latents(pipe, "a hound", 0)
    pipe.vocabulary = Vocabulary(frozenset({"a", "dog"}), {"hound": "dog"})
    assert torch.equal(latents(pipe, "a hound", 0), latents(pipe, "a dog", 0))
    assert not torch.equal(hound, latents(pipe, "a dog", 0))
    assert caplog.messages == [pipe.vocabulary.remark("a hound")]
    pipe.save_pretrained(tmp_path)
    assert TextToAudioPipeline.from_pretrained(tmp_path).vocabulary == pipe.vocabulary


def test_seed_and_prompt_matter(pipe: TextToAudioPipeline) -> None:
    first = latents(pipe, "dog", 0)
    assert torch.equal(first, latents(pipe, "dog", 0))
    assert (first - latents(pipe, "dog", 1)).abs().max() > 0.1
    assert (first - latents(pipe, "rain", 0)).abs().max() > 1e-3


def test_guidance_is_the_stated_combination(pipe: TextToAudioPipeline) -> None:
    """One DDIM step is linear in the prediction, so the guided result is the same mix of the unguided ones."""
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    options = {"num_inference_steps": 1, "audio_length_in_s": 1.0}
    conditional = latents(pipe, "dog", 0, guidance_scale=1.0, **options)
    negative = latents(pipe, "rain", 0, guidance_scale=1.0, **options)
    guided = latents(pipe, "dog", 0, guidance_scale=4.0, negative_prompt="rain", **options)
    torch.testing.assert_close(guided, negative + 4.0 * (conditional - negative), atol=1e-3, rtol=1e-3)


def test_guidance_keeps_to_its_interval(pipe: TextToAudioPipeline) -> None:
    """The network is run on both halves inside and on one outside, where a step is that of no guidance."""
    batches: list[int] = []
    pipe.unet.register_forward_pre_hook(lambda _, arguments: batches.append(len(arguments[0])))
    seen: dict[str, list[torch.Tensor]] = {"plain": [], "part": [], "whole": []}
    calls = {"plain": (1.0, None), "part": (4.0, (0.2, 0.8)), "whole": (4.0, None)}
    for name, (scale, interval) in calls.items():

        def watch(_: object, number: int, t: object, values: dict, name: str = name) -> dict:
            seen[name].append(values["latents"].clone())
            return values

        latents(
            pipe, "dog", 0, guidance_scale=scale, guidance_interval=interval, num_inference_steps=10,
            audio_length_in_s=1.0, callback_on_step_end=watch,
        )  # fmt: skip
    assert batches == [1] * 10 + [1, 1, 2, 2, 2, 2, 2, 2, 1, 1] + [2] * 10
    assert torch.equal(seen["part"][1], seen["plain"][1]) and not torch.equal(seen["part"][2], seen["plain"][2])
    everywhere = latents(
        pipe, "dog", 0, guidance_scale=4.0, guidance_interval=(0, 1), num_inference_steps=10, audio_length_in_s=1.0
    )
    assert torch.equal(everywhere, seen["whole"][-1])


def test_rescaled_guidance_is_the_default_where_a_model_says_so(pipe: TextToAudioPipeline, tmp_path: Path) -> None:
    options = {"guidance_scale": 4.0, "num_inference_steps": 4}
    plain = latents(pipe, "dog", 0, **options)
    rescaled = latents(pipe, "dog", 0, **options, guidance_rescale=0.7)
    assert rescaled.std() < plain.std()
    pipe.register_to_config(default_guidance_rescale=0.7)
    pipe.save_pretrained(tmp_path / "model")
    again = TextToAudioPipeline.from_pretrained(tmp_path / "model")
    again.set_progress_bar_config(disable=True)
    assert torch.equal(latents(again, "dog", 0, **options), rescaled)
    assert torch.equal(latents(again, "dog", 0, **options, guidance_rescale=0.0), plain)


def test_a_models_own_interval_is_the_default(pipe: TextToAudioPipeline, tmp_path: Path) -> None:
    wanted = latents(pipe, "dog", 0, guidance_scale=4.0, guidance_interval=(0.25, 0.5), num_inference_steps=4)
    pipe.register_to_config(default_guidance_interval=[0.25, 0.5])
    pipe.save_pretrained(tmp_path / "model")
    again = TextToAudioPipeline.from_pretrained(tmp_path / "model")
    again.set_progress_bar_config(disable=True)
    assert torch.equal(latents(again, "dog", 0, guidance_scale=4.0, num_inference_steps=4), wanted)


def test_given_latents_are_the_start(pipe: TextToAudioPipeline) -> None:
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    given = pipe("dog", latents=noise, output_type="latent", audio_length_in_s=1.0).audios
    assert torch.equal(given, latents(pipe, "dog", 3, audio_length_in_s=1.0))
    with pytest.raises(InputError, match="shape"):
        pipe("dog", latents=noise[:, :2], audio_length_in_s=1.0)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_runs_by_assignment(pipe: TextToAudioPipeline, sampler: str) -> None:
    pipe.scheduler = make_scheduler(sampler, pipe.scheduler.config)
    assert torch.isfinite(latents(pipe, "dog", 0, num_inference_steps=4)).all()


def test_saved_and_loaded_gives_the_same_bits(pipe: TextToAudioPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    again = TextToAudioPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    first = pipe("dog", generator=seeded(0)).audios
    assert np.array_equal(first, again("dog", generator=seeded(0)).audios)


def test_components_load_by_themselves_in_the_plain_libraries(tiny_pipeline: Path) -> None:
    for subfolder, kind in (
        ("unet", UNet2DConditionModel),
        ("vocoder", SpeechT5HifiGan),
        ("text_encoder", T5EncoderModel),
    ):
        model = kind.from_pretrained(tiny_pipeline, subfolder=subfolder)
        stored = load_file(next((tiny_pipeline / subfolder).glob("*.safetensors")))
        state = model.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in stored.items())
    index = json.loads((tiny_pipeline / "model_index.json").read_text())
    import diffusers

    scheduler = getattr(diffusers, index["scheduler"][1]).from_pretrained(tiny_pipeline, subfolder="scheduler")
    assert isinstance(scheduler, SchedulerMixin)
    assert AutoTokenizer.from_pretrained(tiny_pipeline / "tokenizer")("A Dog").input_ids
    assert index["vae"] == ["latentdiff.models.autoencoder", "PatchAutoencoder"]  # the one class that is ours


def test_callback_sees_each_step_and_can_stop(pipe: TextToAudioPipeline) -> None:
    seen: list[int] = []

    def stop_after_two(pipeline: TextToAudioPipeline, step: int, t: object, tensors: dict) -> dict:
        seen.append(step)
        pipeline._interrupt = step == 1
        return tensors

    pipe("dog", num_inference_steps=5, callback_on_step_end=stop_after_two)
    assert seen == [0, 1]
    assert torch.equal(latents(pipe, "dog", 0), latents(pipe, "dog", 0))  # and the next call is whole again


def test_bad_arguments_are_one_sentence(pipe: TextToAudioPipeline) -> None:
    for arguments, word in (
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": "dog", "audio_length_in_s": 0}, "duration"),
        ({"prompt": "dog", "audio_length_in_s": -1}, "duration"),
        ({"prompt": "dog", "audio_length_in_s": 36000}, "duration"),
        ({"prompt": "dog", "audio_length_in_s": float("nan")}, "duration"),
        ({"prompt": "dog", "num_inference_steps": 0}, "steps"),
        ({"prompt": "dog", "num_waveforms_per_prompt": 0}, "waveforms"),
        ({"prompt": "dog", "output_type": "mp3"}, "output_type"),
        ({"prompt": "dog", "guidance_interval": (0.5, 0.5)}, "guidance_interval"),
        ({"prompt": "dog", "guidance_interval": (-0.1, 2)}, "guidance_interval"),
        ({"prompt": "dog", "guidance_rescale": 1.5}, "guidance_rescale"),
        ({"prompt": ["dog", "rain"], "negative_prompt": ["a", "b", "c"]}, "negative"),
        ({"prompt": ["dog", "rain"], "generator": seeded(0)}, "generators"),
    ):
        with pytest.raises(InputError, match=word):
            pipe(**arguments)


@torch.no_grad()
def test_what_is_too_loud_is_turned_down_and_the_rest_left_alone() -> None:
    starter = TextToAudioPipeline.from_pretrained("starter-audio")
    quiet = starter.mel(0.1 * torch.randn(1, 16384, generator=torch.Generator().manual_seed(0)))[:, :64]
    loud = quiet + 4.0  # 35 dB up
    alone = starter._voice(quiet)
    assert alone.abs().max() < 0.99
    together = starter._voice(torch.cat([quiet, loud]))
    assert torch.allclose(together[:1], alone, atol=1e-4)
    assert together[1].abs().max() == 1.0
    lower = starter.mel(together[1:])[:, :64] - loud  # the same sound, all of it lower by as much
    assert lower.mean() < -1.0 and lower[:, 4:-4].std() < 0.2


def test_what_is_not_finite_is_never_returned(pipe: TextToAudioPipeline) -> None:
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(GenerationError, match="not finite"):
        pipe("dog")


def test_mismatched_vocoder_is_refused_with_both_mels(pipe: TextToAudioPipeline) -> None:
    other = SpeechT5HifiGan(pipe.vocoder.config)
    other.config.mel = {**pipe.vocoder.config.mel, "fmax": 7600.0}
    parts = {**pipe.components, "vocoder": other}
    with pytest.raises(InputError, match=r"fmax: 8000.0 / 7600.0(.|\n)*the VAE: \{(.|\n)*the vocoder: \{"):
        TextToAudioPipeline(**parts)


def test_folder_that_is_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="model_index.json"):
        TextToAudioPipeline.from_pretrained(tmp_path)
