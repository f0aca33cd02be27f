"""Prompts of several sounds: how they are taken apart, what their sum is, and that a clip is made of its parts."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from latentdiff import InputError, TextToAudioPipeline
from latentdiff.cli import main
from latentdiff.data.soundbank.captions import captions
from latentdiff.data.soundbank.scenes import draw_scene
from latentdiff.media.audio import read_recipe
from latentdiff.media.mel import PRESETS, LogMel
from latentdiff.pipelines.composition import Part, mixed, parts_of, told
from tests.pipelines.conftest import seeded


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("dog barking", "dog barking"),
        ("Rain and thunder.", "Rain, with thunder"),
        ("a dog barks while rain is falling", "a dog barks, with rain is falling"),
        ("while rain falls, a dog barks", "rain falls, with a dog barks"),
        ("a flute together with a harp", "a flute, with a harp"),
        ("a piano with rain in the background", "a piano, with rain"),
        ("at the same time a dog barks and rain falls", "a dog barks, with rain falls"),
        ("first a dog barks, then a bell rings", "a dog barks, then a bell rings"),
        ("a bell followed by an explosion", "a bell, then an explosion"),
        ("a bell before an explosion", "a bell, then an explosion"),
        ("a bell after an explosion", "an explosion, then a bell"),
        ("after an explosion, a bell", "an explosion, then a bell"),
        ("rain, then thunder and wind", "rain, then thunder, with wind"),
        ("a dog, then a cat, and after that a bird", "a dog, then a cat, then a bird"),
        # One sound each, whatever words are in between.
        ("a trumpet with a mute", "a trumpet with a mute"),
        ("a low and slow tune on the cello", "a low and slow tune on the cello"),
        ("a dog barks loudly and quickly", "a dog barks loudly and quickly"),
        ("knocking again and again", "knocking again and again"),
        ("a bird sings now and then", "a bird sings now and then"),
        ("on the piano, three notes", "on the piano, three notes"),
        ("and", "and"),
    ],
)
def test_a_prompt_is_taken_apart_at_its_conjunctions(prompt: str, parts: str) -> None:
    assert told(parts_of(prompt)) == parts


def test_sounds_one_after_another_are_equally_long() -> None:
    ends = [share for part in parts_of("rain, then a dog, then a bell and wind") for share in (part.begin, part.end)]
    assert ends == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 1, 2 / 3, 1])
    for size in (3, 32, 79):  # rows meet without a gap
        rows = [part.rows(size) for part in parts_of("a dog, then a cat, then a bird")]
        assert [row.start for row in rows] == [0, *(row.stop for row in rows[:-1])] and rows[-1].stop == size


def test_the_corpus_wordings_of_two_sources_and_of_one() -> None:
    """None of one source is taken apart, and all held-out ones of two are, in the right order."""
    rng = np.random.default_rng(0)
    scenes = [draw_scene(rng, 4.0) for _ in range(600)]
    assert sum(len(scene.events) == 2 for scene in scenes) > 40
    for scene in scenes:
        for text in captions(scene, rng, 2, held_out=True):
            parts = parts_of(text)
            assert len(parts) == len(scene.events), text
            assert len(parts) == 1 or (parts[0].end < 1) == (scene.relation == "then"), text
        if len(scene.events) == 1:
            for text in captions(scene, rng, 2):
                assert parts_of(text) == (Part(text),)


def test_the_sum_of_two_mels_is_that_of_the_two_waves() -> None:
    """Within 1 dB where both sound: noises of their own, whose powers add up; and silence is the clamp."""
    config = PRESETS["starter-16k-64"]
    front_end = LogMel(config)
    noise = torch.randn(2, 16000 * 8, generator=torch.Generator().manual_seed(0)) * torch.tensor([[0.1], [0.08]])
    one, other = front_end(noise)
    both = front_end(noise.sum(0)[None])[0]
    added = mixed([(slice(0, len(one)), one), (slice(0, len(one)), other)], len(one), config)
    average = lambda log_mel: (2 * log_mel).exp().mean(0)  # noqa: E731 (power by band)
    assert (10 * (average(added) / average(both)).log10()).abs().max() < 1.0
    half = mixed([(slice(4, 8), one[4:8])], 12, config)
    torch.testing.assert_close(half[4:8], one[4:8])
    assert torch.equal(half[:4], torch.full_like(half[:4], math.log(config.clamp)))
    tens = mixed([(slice(0, 2), torch.zeros(2, 3)), (slice(0, 2), torch.zeros(2, 3))], 2, PRESETS["maa-16k-80"])
    torch.testing.assert_close(tens, torch.full((2, 3), math.log10(math.sqrt(2))))


def test_a_clip_is_made_of_its_parts(pipe: TextToAudioPipeline) -> None:
    """By hand: each part's latent from the prompt's own generator, one after the other."""
    heard: list[torch.Tensor] = []
    pipe.vocoder.register_forward_pre_hook(lambda _, arguments: heard.append(arguments[0].clone()))
    out = pipe("a dog, then rain", audio_length_in_s=1.024, generator=seeded(3), compose=True)
    assert out.audios.shape == (1, 16384) and told(out.parts[0]) == "a dog, then rain"
    generator = seeded(3) * 2  # the first part's noise, then the second's
    z = pipe(["a dog", "rain"], audio_length_in_s=0.512, generator=generator, output_type="latent").audios
    pipe.decode(z)
    wanted = torch.cat(list(heard[1]))[None].clamp(min=math.log(pipe.mel.config.clamp))
    torch.testing.assert_close(heard[0], wanted, atol=1e-3, rtol=1e-3)
    assert wanted.std() > 1  # neither is all silence


@pytest.mark.parametrize(
    ("louder_by", "left"), [(2.0, 2.0), (3.0, 3.0), (10.0, 3.0), (15.0, 3.0), (20.0, 8.0), (-10.0, -3.0)]
)
def test_the_louder_of_two_sounds_at_once_is_turned_down(louder_by: float, left: float) -> None:
    """To 3 dB above the other, by no more than 12 dB; the other stays as it is."""
    for preset in ("starter-16k-64", "auffusion-16k-256"):
        config = PRESETS[preset]
        decade = 1.0 if config.log == "log10" else math.log(10.0)
        one, other = torch.full((4, 8), -1.0 * decade), torch.full((4, 8), -1.0 * decade)
        one[:, 4:] = other[:, :4] = math.log(config.clamp) / math.log(10) * decade  # in bands of their own
        one += decade * louder_by / 20
        added = mixed([(slice(0, 4), one), (slice(0, 4), other)], 4, config)
        heard = 20 * (added / decade)
        assert float(heard[0, 0] - heard[0, -1]) == pytest.approx(left, abs=0.01)
        unchanged, now = (other[0, -1], added[0, -1]) if louder_by > 0 else (one[0, 0], added[0, 0])
        assert float(now) == pytest.approx(float(unchanged), abs=0.01)


def test_sounds_one_after_another_keep_their_levels() -> None:
    config = PRESETS["starter-16k-64"]
    loud, quiet = torch.full((2, 8), -1.0), torch.full((2, 8), -4.0)
    added = mixed([(slice(0, 2), loud), (slice(2, 4), quiet)], 4, config)
    torch.testing.assert_close(added, torch.cat([loud, quiet]))
    # Of three, only those at the same time.
    added = mixed([(slice(0, 2), loud), (slice(2, 4), loud), (slice(2, 4), quiet)], 4, config)
    torch.testing.assert_close(added[:2], loud)
    assert float(added[2, 0]) < -1.0


def test_a_composed_prompt_is_the_same_alone_and_beside_others(pipe: TextToAudioPipeline) -> None:
    long, short = "rain and a dog, then a bell", "a dog, then rain, then a bell"
    heard: list[torch.Tensor] = []
    pipe.vocoder.register_forward_pre_hook(lambda _, arguments: heard.append(arguments[0].clone()))
    call = {"audio_length_in_s": 1.0, "compose": True, "num_waveforms_per_prompt": 2}
    pipe([short, "rain", long], generator=seeded(0, 1, 2, 3, 4, 5), negative_prompt=["hiss", "", "noise"], **call)
    pipe(long, generator=seeded(4, 5), negative_prompt="noise", **call)
    torch.testing.assert_close(heard[0][4:], heard[1], atol=1e-3, rtol=1e-3)
    assert (heard[1][0] - heard[1][1]).abs().max() > 0.1


def test_a_prompt_of_one_sound_is_the_same_beside_a_composed_one(pipe: TextToAudioPipeline) -> None:
    """To the bit, as the batch is the same but for the other's latents."""
    heard: list[torch.Tensor] = []
    pipe.vocoder.register_forward_pre_hook(lambda _, arguments: heard.append(arguments[0].clone()))
    pipe(["rain", "a dog and a bell"], generator=seeded(0, 1), compose=True)
    pipe(["rain", "a dog", "a bell"], generator=seeded(0, 1, 2))
    assert torch.equal(heard[0][0], heard[1][0]) and heard[0][0].min() < math.log(pipe.mel.config.clamp)


def test_parts_are_added_in_half_precision_too(pipe: TextToAudioPipeline) -> None:
    wave = pipe.to(torch.bfloat16)("rain, then a dog", generator=seeded(0), compose=True).audios
    assert wave.dtype == np.float32 and np.isfinite(wave).all()


def test_a_models_default_and_what_a_latent_cannot_be(pipe: TextToAudioPipeline, tmp_path: Path) -> None:
    whole = pipe("rain and a dog", generator=seeded(0))
    assert whole.parts is None
    pipe.register_to_config(default_compose=True)
    pipe.save_pretrained(tmp_path)
    again = TextToAudioPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert len(again("rain and a dog", generator=seeded(0)).parts[0]) == 2
    assert np.array_equal(again("rain and a dog", generator=seeded(0), compose=False).audios, whole.audios)
    assert again("rain", generator=seeded(0)).parts is None
    assert again("rain and a dog", generator=seeded(0), output_type="latent").audios.shape[0] == 1
    for arguments, words in (
        ({"prompt": "rain and a dog", "output_type": "latent", "compose": True}, "latent for each"),
        ({"prompt": "rain, then a dog", "audio_length_in_s": 0.01}, "too short"),
        ({"prompt": ["rain and a dog", "rain"], "generator": seeded(0)}, "1 generators were given for 2"),
        ({"prompt": ["rain and a dog", "rain"], "negative_prompt": ["a", "b", "c"]}, "negative"),
    ):
        with pytest.raises(InputError, match=words):
            again(**arguments)


def test_the_command_says_what_a_clip_is_made_of(
    pipe: TextToAudioPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe.register_to_config(default_compose=True)
    pipe.save_pretrained(tmp_path / "model")
    command = ["generate", "a dog, then rain", "rain", "--model", str(tmp_path / "model"), "-o", f"{tmp_path}/out/"]
    assert main([*command, "--duration", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "made of a dog, then rain" in lines[0] and "made of" not in lines[1]
    recipes = [read_recipe(Path(line.split("  ")[0])) for line in lines[:2]]
    assert [recipe.get("made of") for recipe in recipes] == ["a dog, then rain", None]
