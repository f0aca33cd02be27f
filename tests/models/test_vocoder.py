"""The vocoder: output length, level at the start, refusals, normalisation, and what its folder carries."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import SpeechT5HifiGan

from latentdiff.config import GeneratorConfig
from latentdiff.errors import InputError
from latentdiff.media.mel import PRESETS, LogMel
from latentdiff.models.vocoder import (
    ShortHifiGan,
    imposed_iterations,
    new_vocoder,
    set_normalisation,
    vocoder_mel,
    voice,
)

MEL = PRESETS["starter-16k-64"]
SIZES: dict[str, Any] = {
    "upsample_rates": (8, 8, 4),
    "upsample_kernel_sizes": (16, 16, 8),
    "upsample_initial_channel": 16,
    "resblock_kernel_sizes": (3, 5),
    "resblock_dilation_sizes": ((1, 3), (1,)),
}
SMALL = GeneratorConfig(**SIZES)


def log_mels(frames: int = 20, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, frames, MEL.n_mels, generator=torch.Generator().manual_seed(0)) * 2 - 6


@pytest.mark.parametrize("frames", [1, 7, 32])
@pytest.mark.parametrize(
    ("mel", "rates", "kernels"),
    [
        ("starter-16k-64", (8, 8, 4), (16, 16, 8)),
        ("hifigan-22k-80", (8, 8, 2, 2), (16, 16, 4, 4)),
        ("maa-16k-80", (4, 4, 2, 2, 2, 2), (8, 8, 4, 4, 4, 4)),
    ],
)
@torch.no_grad()
def test_output_is_frames_times_hop(mel: str, rates: tuple[int, ...], kernels: tuple[int, ...], frames: int) -> None:
    sizes = GeneratorConfig(**SIZES | {"upsample_rates": rates, "upsample_kernel_sizes": kernels})
    sizes = sizes.model_copy(update={"upsample_initial_channel": 64})
    config = PRESETS[mel]
    vocoder = new_vocoder(sizes, config)
    log_mel = torch.zeros(2, frames, config.n_mels)
    assert vocoder(log_mel).shape == (2, frames * config.hop_length)
    assert vocoder(log_mel[0]).shape == (frames * config.hop_length,)


@torch.no_grad()
def test_the_third_version_adds_one_convolution_at_a_time() -> None:
    """A residual block of type 2 (Kong et al. 2020, appendix A.1): x + conv(lrelu(x)), for each dilation in turn."""
    vocoder = new_vocoder(SMALL.model_copy(update={"resblock": 2}), MEL)
    assert isinstance(vocoder, ShortHifiGan) and len(vocoder.resblocks) == 6
    block, wanted = vocoder.resblocks[2], torch.randn(1, 4, 30)  # of the second level: kernel 3, dilations 1 and 3
    made = block(wanted)
    for number, dilation in enumerate((1, 3)):
        weight, bias = block.convs[number].weight, block.convs[number].bias
        relu = torch.where(wanted > 0, wanted, 0.1 * wanted)
        wanted = wanted + torch.nn.functional.conv1d(relu, weight, bias, dilation=dilation, padding=dilation)
    torch.testing.assert_close(made, wanted)


@torch.no_grad()
def test_a_new_vocoder_is_heard() -> None:
    """HiFi-GAN's own initialisation gives 1e-6 here, and a thousand lost steps."""
    for seed in range(3):
        torch.manual_seed(seed)
        vocoder = new_vocoder(SMALL.model_copy(update={"upsample_initial_channel": 64}), MEL)
        set_normalisation(vocoder, log_mels())
        wave = vocoder(log_mels())
        assert 1e-3 < float(wave.std()) < 1.0
        assert float(wave.abs().max()) <= 1.0


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"upsample_rates": (8, 8, 2)}, ["upsample_rates", "128", "256"]),
        ({"upsample_kernel_sizes": (16, 16)}, ["upsample_rates", "3", "upsample_kernel_sizes", "2"]),
        (
            {"resblock_kernel_sizes": (3, 5, 7)},
            ["resblock_dilation_sizes", "2", "resblock_kernel_sizes", "3"],
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        new_vocoder(GeneratorConfig(**SIZES | sizes), MEL)
    for word in words:
        assert word in str(error.value)


@torch.no_grad()
def test_normalisation_is_by_band() -> None:
    torch.manual_seed(0)
    vocoder = new_vocoder(SMALL, MEL)
    log_mel = log_mels() * torch.linspace(0.1, 3, MEL.n_mels) + torch.linspace(-9, 0, MEL.n_mels)
    log_mel[:, :, 5] = -11.5  # a band without any sound
    set_normalisation(vocoder, log_mel)
    assert torch.allclose(vocoder.mean, log_mel.mean((0, 1)))
    assert torch.allclose(vocoder.scale[6:], log_mel.std((0, 1))[6:])
    assert float(vocoder.scale[5]) == pytest.approx(1e-3)
    first = vocoder(log_mel)
    vocoder.config.normalize_before = False
    assert torch.allclose(vocoder((log_mel - vocoder.mean) / vocoder.scale), first, atol=1e-6)


@torch.no_grad()
def test_mel_and_weights_survive_plain_transformers(tmp_path: Path) -> None:
    vocoder = new_vocoder(SMALL, MEL, mel_iterations=2)
    set_normalisation(vocoder, log_mels())
    vocoder.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    plain = SpeechT5HifiGan.from_pretrained(tmp_path)
    assert vocoder_mel(plain) == MEL
    assert imposed_iterations(plain) == 2
    assert plain.config.sampling_rate == MEL.sampling_rate
    assert torch.equal(plain.mean, vocoder.mean) and torch.equal(plain.scale, vocoder.scale)
    assert torch.equal(plain(log_mels()), vocoder(log_mels()))


def test_a_published_vocoder_carries_no_mel() -> None:
    vocoder = new_vocoder(SMALL, MEL)
    del vocoder.config.mel, vocoder.config.mel_iterations
    assert vocoder_mel(vocoder) is None
    assert imposed_iterations(vocoder) == 0


def test_voice_imposes_the_mel() -> None:
    """Even an untrained vocoder then has the level of the mel in every band, and it can still be trained."""
    torch.manual_seed(0)
    front_end = LogMel(MEL)
    vocoder = new_vocoder(SMALL, MEL)
    t = torch.arange(20 * 256) / 16000
    wave = 0.3 * torch.sin(2 * torch.pi * 500 * t) * torch.linspace(0, 1, len(t))
    log_mel = front_end(wave[None] + 0.01 * torch.randn(1, len(t)))
    set_normalisation(vocoder, log_mel)
    assert torch.equal(voice(vocoder, log_mel, front_end, 0), vocoder(log_mel))
    errors = []
    for iterations in (0, 1, 4):
        made = voice(vocoder, log_mel, front_end, iterations)
        assert made.shape == (1, 20 * 256)
        errors.append((front_end(made) - log_mel).abs().mean().item())
    assert errors[2] < errors[1] < 0.5 * errors[0]
    voice(vocoder, log_mel, front_end, 1).square().mean().backward()
    gradients = [p.grad for p in vocoder.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(g).all() for g in gradients)
