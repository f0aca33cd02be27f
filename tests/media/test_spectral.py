"""The multi-resolution STFT distance: its zero, its growth, its definition, and silence."""

import numpy as np
import pytest
import torch

from latentdiff.media.spectral import RESOLUTIONS, multi_resolution_stft


def tone(batch: int = 2, samples: int = 6000) -> torch.Tensor:
    t = torch.arange(samples) / 16000
    pitches = torch.linspace(300, 900, batch)[:, None]
    noise = torch.randn(batch, samples, generator=torch.Generator().manual_seed(0))
    return 0.3 * torch.sin(2 * torch.pi * pitches * t) + 0.01 * noise


def reference(first: np.ndarray, second: np.ndarray) -> float:
    """Yamamoto et al. 2020, equations 6 to 9, frame by frame with numpy in float64."""
    total = 0.0
    for n_fft, hop, size in RESOLUTIONS:
        window = np.zeros(n_fft)
        left = (n_fft - size) // 2
        window[left : left + size] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
        magnitudes = []
        for wave in (first, second):
            padded = np.pad(wave.astype(np.float64), n_fft // 2, mode="reflect")
            frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop]
            magnitudes.append(np.sqrt(np.abs(np.fft.rfft(frames * window, axis=1)) ** 2 + 1e-6))
        a, b = magnitudes
        total += np.linalg.norm(b - a) / max(np.linalg.norm(b), 1.0) + np.abs(np.log(a) - np.log(b)).mean()
    return total / len(RESOLUTIONS)


def test_zero_on_equal_waveforms() -> None:
    wave = tone()
    assert torch.equal(multi_resolution_stft(wave, wave.clone()), torch.zeros(2))


def test_grows_with_noise() -> None:
    wave = tone()
    noise = torch.randn(wave.shape, generator=torch.Generator().manual_seed(1))
    distances = [multi_resolution_stft(wave + level * noise, wave) for level in (0.003, 0.01, 0.03, 0.1)]
    for nearer, farther in zip(distances, distances[1:], strict=False):
        assert (farther > nearer).all()


@pytest.mark.parametrize("second_level", [1.0, 1e-4, 0.0])
def test_equals_the_numpy_reference(second_level: float) -> None:
    """Also where the true waveform is so quiet that the floor of its norm acts."""
    first = tone()
    second = second_level * tone().flip(-1)
    made = multi_resolution_stft(first, second)
    expected = [reference(a, b) for a, b in zip(first.numpy(), second.numpy(), strict=True)]
    assert np.allclose(made.numpy(), expected, rtol=1e-4)


def test_each_waveform_has_its_own_value() -> None:
    first, second = tone(3), tone(3).roll(100, -1)
    together = multi_resolution_stft(first, second)
    alone = torch.cat([multi_resolution_stft(first[i : i + 1], second[i : i + 1]) for i in range(3)])
    assert together.shape == (3,)
    assert torch.allclose(together, alone, rtol=1e-5)


@pytest.mark.parametrize("silent", ["first", "second", "both"])
def test_silence_gives_finite_values_and_gradients(silent: str) -> None:
    first = torch.zeros(2, 6000) if silent in ("first", "both") else tone()
    second = torch.zeros(2, 6000) if silent in ("second", "both") else tone()
    first.requires_grad_()
    second.requires_grad_()
    value = multi_resolution_stft(first, second)
    assert torch.isfinite(value).all()
    if silent == "both":
        assert torch.equal(value, torch.zeros(2))
    value.sum().backward()
    assert first.grad is not None and torch.isfinite(first.grad).all()
    assert second.grad is not None and torch.isfinite(second.grad).all()
