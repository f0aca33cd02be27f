"""Events that are counted: on waveforms where the number is known."""

import numpy as np
import pytest

from latentdiff.evaluation.counting import RATE, count_events


def strikes(times: list[float], seed: int = 0) -> np.ndarray:
    """Decaying bursts of noise over a noise floor 70 dB below."""
    rng, wave = np.random.default_rng(seed), np.zeros(4 * RATE)
    decay = np.exp(-np.arange(RATE // 2) / (0.05 * RATE))
    for time in times:
        start = int(time * RATE)
        part = wave[start : start + len(decay)]
        part += rng.standard_normal(len(part)) * decay[: len(part)]
    return (0.2 * wave + 3e-5 * rng.standard_normal(len(wave))).astype(np.float32)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("gap", [0.3, 0.6])
@pytest.mark.parametrize("first", [0.0, 0.35])
def test_strikes_are_counted(count: int, gap: float, first: float) -> None:
    assert count_events(strikes([first + i * gap for i in range(count)])) == count


def test_loudness_is_no_matter() -> None:
    wave = strikes([0.2, 1.0, 1.7])
    assert count_events(wave * 0.003) == count_events(wave * 5) == 3


def test_silence_has_no_events() -> None:
    assert count_events(np.zeros(RATE, dtype=np.float32)) == 0
