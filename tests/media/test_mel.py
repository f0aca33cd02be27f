"""The mel front end: every preset against librosa, x and back, definitions and how they are refused."""

import json
from typing import Any

import librosa
import numpy as np
import pytest
import torch

from latentdiff.errors import InputError
from latentdiff.media.mel import PRESETS, LogMel, MelConfig, require_same_mel, resolve_mel

NAMES = sorted(PRESETS)


def chirp(rate: int, seconds: float = 0.7) -> np.ndarray:
    """A sweep up to the Nyquist frequency plus noise, with an offset, not at full level; (samples,)."""
    t = np.arange(round(seconds * rate)) / rate
    sweep = np.sin(2 * np.pi * (100 * t + 0.5 * (rate / 2 - 100) / seconds * t**2))
    noise = np.random.default_rng(0).standard_normal(t.size)
    return (0.2 * sweep + 0.02 * noise + 0.05).astype(np.float32)


def reference(wave: np.ndarray, c: MelConfig) -> np.ndarray:
    """Log-mel (T, F) by librosa alone, in float64."""
    pad = c.n_fft // 2 if c.padding == "center" else (c.n_fft - c.hop_length) // 2
    spectrum = librosa.stft(
        np.pad(wave.astype(np.float64), pad, mode="reflect"),
        n_fft=c.n_fft,
        hop_length=c.hop_length,
        win_length=c.win_length,
        window="hann",
        center=False,
    )
    filters = librosa.filters.mel(
        sr=c.sampling_rate,
        n_fft=c.n_fft,
        n_mels=c.n_mels,
        fmin=c.fmin,
        fmax=c.fmax,
        htk=False,
        norm="slaney",
        dtype=np.float64,
    )
    mel = np.maximum(filters @ np.abs(spectrum), c.clamp)
    return (np.log(mel) if c.log == "ln" else np.log10(mel)).T


def leveled(wave: np.ndarray, c: MelConfig) -> np.ndarray:
    """What each system does to a waveform before its mel."""
    wave = wave.astype(np.float64)
    if c.subtract_mean:
        wave = wave - wave.mean()
    if c.peak is not None:
        wave = wave / np.abs(wave).max() * c.peak
    return np.clip(wave, -1, 1)


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_equals_librosa(name: str) -> None:
    config = PRESETS[name]
    mel = LogMel(config)
    wave = chirp(config.sampling_rate)

    prepared = mel.prepare(torch.from_numpy(wave)[None])
    expected_wave = leveled(wave, config)
    assert np.abs(prepared[0].numpy() - expected_wave).max() < 1e-6

    made = mel(prepared)[0].numpy()
    expected = reference(expected_wave, config)
    assert made.shape == expected.shape == (config.frames(wave.size), config.n_mels)
    assert np.abs(made - expected).max() < 5e-4  # measured: 8e-5, float32 against float64
    assert np.abs(made - expected).mean() < 2e-5


@pytest.mark.parametrize("name", NAMES)
def test_silence_is_the_clamp(name: str) -> None:
    config = PRESETS[name]
    mel = LogMel(config)
    silence = torch.zeros(2, config.sampling_rate // 4)
    assert torch.equal(mel.prepare(silence), silence)
    floor = np.log(config.clamp) if config.log == "ln" else np.log10(config.clamp)
    assert torch.allclose(mel(silence), torch.tensor(floor, dtype=torch.float32), atol=1e-6)


def test_presets_are_the_published_ones() -> None:
    """sampling rate, n_fft, hop, window, bands, fmin, fmax, log, padding, peak (SYSTEMS of the sources)."""
    table = {
        "audioldm-16k-64": (16000, 1024, 160, 1024, 64, 0, 8000, "ln", "center", 0.5),
        "audioldm-48k-256": (48000, 2048, 480, 2048, 256, 20, 24000, "ln", "center", 0.5),
        "auffusion-16k-256": (16000, 2048, 160, 1024, 256, 0, 8000, "ln", "frame", 0.95),
        "maa-16k-80": (16000, 1024, 256, 1024, 80, 0, 8000, "log10", "frame", None),
        "hifigan-22k-80": (22050, 1024, 256, 1024, 80, 0, 8000, "ln", "frame", 0.95),
    }
    for name, row in table.items():
        c = PRESETS[name]
        assert row == (
            *(c.sampling_rate, c.n_fft, c.hop_length, c.win_length, c.n_mels, c.fmin, c.fmax),
            *(c.log, c.padding, c.peak),
        ), name
        assert c.clamp == 1e-5


def test_both_paddings_differ_by_half_a_hop() -> None:
    """The trap of AudioLDM: its trainer pads by frame, its inference by centre, on the same weights."""
    center = PRESETS["audioldm-16k-64"]
    frame = MelConfig.from_dict(center.to_dict() | {"padding": "frame"})
    wave = torch.from_numpy(chirp(16000))[None]
    half_hop = center.hop_length // 2
    a, b = LogMel(center)(wave), LogMel(frame)(wave)
    moved = LogMel(center)(torch.nn.functional.pad(wave, (0, half_hop))[:, half_hop:])
    inner = slice(10, 60)
    assert (moved[:, inner] - b[:, inner]).abs().max() < 2e-3
    assert (a[:, inner] - b[:, inner]).abs().max() > 0.1


def test_level_preparation() -> None:
    wave = torch.tensor([[0.1, 0.3, -0.1, 0.1], [3.0, -5.0, 0.5, 0.5]])
    natural = LogMel(PRESETS["starter-16k-64"]).prepare(wave)
    assert torch.equal(natural, wave.clamp(-1, 1))
    audioldm = LogMel(PRESETS["audioldm-16k-64"]).prepare(wave)
    assert torch.allclose(audioldm.mean(-1), torch.zeros(2), atol=1e-6)
    assert torch.allclose(audioldm.abs().amax(-1), torch.full((2,), 0.5))
    auffusion = LogMel(PRESETS["auffusion-16k-256"]).prepare(wave)
    assert torch.allclose(auffusion.abs().amax(-1), torch.full((2,), 0.95))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("samples", [1, 300, 433, 1000, 8000, 8001, 8159])
def test_frames_counts_what_comes_out(name: str, samples: int) -> None:
    config = PRESETS[name]
    wave = torch.full((1, samples), 0.1)
    assert LogMel(config)(wave).shape == (1, config.frames(samples), config.n_mels)
    if config.padding == "frame" and samples >= config.n_fft:
        assert config.frames(samples) == samples // config.hop_length


def test_frames_when_the_padding_is_odd() -> None:
    """44.1 kHz, a hop of 10 ms: n_fft - hop is odd, and so many hops still give as many frames."""
    config = MelConfig(sampling_rate=44100, n_fft=2048, hop_length=441, win_length=2048, n_mels=64, fmin=0, fmax=22050)
    assert config.frames(441 * 100) == 100
    assert LogMel(config)(torch.zeros(1, 441 * 100)).shape[1] == 100


@pytest.mark.parametrize("name", NAMES)
def test_x_and_back(name: str) -> None:
    config = PRESETS[name]
    mel = LogMel(config)
    log_mel = torch.randn(2, 24, config.n_mels) * 2 - 6
    x = mel.to_x(log_mel)
    size = (config.n_mels, 24) if config.frequency_first else (24, config.n_mels)
    assert x.shape == (2, config.channels, *size)
    assert (mel.from_x(x) - log_mel).abs().max() < 5e-6
    if (config.shift, config.scale, config.channels) == (0.0, 1.0, 1):
        assert torch.equal(mel.from_x(x), log_mel)


def test_auffusion_picture() -> None:
    """Its x: highest band first, time along the width, three equal channels, ln 1e-5..200 to -1..1."""
    mel = LogMel(PRESETS["auffusion-16k-256"])
    log_mel = torch.full((1, 10, 256), float(np.log(1e-5)))
    log_mel[0, 3, 255] = float(np.log(200.0))
    x = mel.to_x(log_mel)
    assert x.shape == (1, 3, 256, 10)
    assert torch.equal(x[:, 0], x[:, 1]) and torch.equal(x[:, 0], x[:, 2])
    assert abs(float(x[0, 0, 0, 3]) - 1.0) < 1e-6
    x = x.clone()
    x[0, :, 0, 3] = -1.0
    assert torch.allclose(x, torch.tensor(-1.0), atol=1e-6)


def test_x_of_a_waveform_has_a_gradient() -> None:
    mel = LogMel(PRESETS["starter-16k-64"])
    for wave in (torch.from_numpy(chirp(16000, 0.2))[None], torch.zeros(1, 4096)):
        wave.requires_grad_()
        mel.to_x(mel(mel.prepare(wave))).sum().backward()
        assert wave.grad is not None and torch.isfinite(wave.grad).all()


@pytest.mark.parametrize("name", NAMES)
def test_imposing_a_waveforms_own_mel_changes_nothing(name: str) -> None:
    config = PRESETS[name]
    mel = LogMel(config)
    samples = 40 * config.hop_length
    wave = torch.from_numpy(chirp(config.sampling_rate))[None, :samples]
    assert torch.equal(mel.impose(wave, mel(wave), 0), wave)
    made = mel.impose(wave, mel(wave), 2)
    assert made.shape == wave.shape
    assert (made - wave).abs().max() < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_imposing_a_mel_brings_noise_to_its_level(name: str) -> None:
    config = PRESETS[name]
    mel = LogMel(config)
    samples = 40 * config.hop_length
    target = mel(torch.from_numpy(chirp(config.sampling_rate))[None, :samples] * 0.3)
    noise = 0.05 * torch.randn(1, samples, generator=torch.Generator().manual_seed(0))
    errors = [(mel(mel.impose(noise, target, n)) - target).abs().mean().item() for n in (0, 1, 4)]
    assert errors[2] < errors[1] < errors[0]


def test_imposing_a_mel_does_not_fill_its_gaps() -> None:
    """Noise under the mel of short chords 40 dB above a hiss. Shares of the bands' ratios, the update of the
    Kullback-Leibler divergence, and frames that all count alike end at 0.095 too much and 0.193 off."""
    mel = LogMel(PRESETS["starter-16k-64"])
    draws = torch.randn(2, 60 * 256, generator=torch.Generator().manual_seed(0))
    target = mel((chord(60 * 256) * (torch.arange(60 * 256) % (15 * 256) < 5 * 256) + 1e-3 * draws[0])[None])
    error = (mel(mel.impose(0.05 * draws[1:], target, 8)) - target)[:, :60]
    assert error.mean() < 0.06
    assert error.abs().mean() < 0.14


def test_imposing_a_mel_that_no_waveform_has_is_loud_and_not_silent() -> None:
    mel = LogMel(PRESETS["starter-16k-64"])
    draws = torch.randn(2, 40 * 256, generator=torch.Generator().manual_seed(0))
    target = 50 * draws[0].reshape(1, 160, 64)[:, :40]  # exp(50) squared is beyond what a float holds
    made = mel.impose(0.05 * draws[1:], target, 8)
    assert torch.isfinite(made).all()
    assert made.std() > 1


def test_an_onset_is_not_heard_before_it_begins() -> None:
    """100 samples before it, frames that all count alike leave 10 dB less than in the chord itself."""
    mel, begin = LogMel(PRESETS["starter-16k-64"]), 20 * 256 + 100
    target = mel((chord(40 * 256) * (torch.arange(40 * 256) >= begin))[None])
    noise = 0.05 * torch.randn(1, 40 * 256, generator=torch.Generator().manual_seed(0))
    made = mel.impose(noise, target, 8)[0]
    before, after = made[begin - 200 : begin - 100], made[begin + 300 :]
    assert before.square().mean() < 1e-4 * after.square().mean()


def chord(samples: int) -> torch.Tensor:
    """Three tones at 16 kHz."""
    time = torch.arange(samples) / 16000
    return sum((0.1 * torch.sin(2 * torch.pi * pitch * time) for pitch in (300, 1200, 3500)), torch.zeros(()))


@pytest.mark.parametrize("name", NAMES)
def test_definition_survives_json(name: str) -> None:
    config = PRESETS[name]
    assert MelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


STARTER = PRESETS["starter-16k-64"].to_dict()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (STARTER | {"hop": 256}, ["hop", "hop_length"]),
        ({"sampling_rate": 16000}, ["incomplete", "n_fft"]),
        (STARTER | {"hop_length": 0}, ["hop_length", "0"]),
        (STARTER | {"n_mels": 64.5}, ["n_mels", "64.5"]),
        (STARTER | {"sampling_rate": "16k"}, ["sampling_rate", "16k"]),
        (STARTER | {"clamp": 0.0}, ["clamp"]),
        (STARTER | {"fmax": 9000.0}, ["fmax", "9000", "8000"]),
        (STARTER | {"win_length": 2048}, ["win_length", "2048", "1024"]),
        (STARTER | {"log": "db"}, ["db", "log10"]),
        (STARTER | {"padding": "same"}, ["same", "center"]),
        (STARTER | {"scale": 0.0}, ["scale"]),
    ],
)
def test_a_bad_definition_is_refused(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        MelConfig.from_dict(values)
    for word in words:
        assert word in str(error.value)


def test_a_mismatch_shows_both_definitions() -> None:
    first, second = PRESETS["audioldm-16k-64"], PRESETS["maa-16k-80"]
    require_same_mel(first, "the VAE", MelConfig.from_dict(first.to_dict()), "the vocoder")
    with pytest.raises(InputError) as error:
        require_same_mel(first, "the VAE", second, "the vocoder")
    message = str(error.value)
    assert f"the VAE: {first.to_dict()}" in message
    assert f"the vocoder: {second.to_dict()}" in message
    assert "hop_length: 160 / 256" in message
    assert "sampling_rate:" not in message.split("\n")[0]  # that one is equal


def test_resolve_mel() -> None:
    config = PRESETS["hifigan-22k-80"]
    assert resolve_mel("hifigan-22k-80") is config
    assert resolve_mel(config) is config
    assert resolve_mel(config.to_dict()) == config
    with pytest.raises(InputError, match="did you mean 'hifigan-22k-80'"):
        resolve_mel("hifigan-22-80")
    with pytest.raises(InputError, match="did you mean"):
        resolve_mel("")
