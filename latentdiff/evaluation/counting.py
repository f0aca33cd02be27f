"""How many events a clip has: strikes, barks, notes."""

import librosa
import numpy as np
from librosa.onset import onset_strength

RATE = 16000
_HOP = 160
_LEAD = 1600
"""Silence before the clip, so that what sounds from its first sample on begins too."""


def count_events(wave: np.ndarray) -> int:
    """Beginnings of sounds in a waveform (S,) at 16 kHz: peaks of librosa's onset strength; 0 of silence.

    What it misses are mostly soft notes, and sounds that begin less than 0.2 s apart are one to it.
    """
    if not np.abs(wave).max() > 0:
        return 0
    # 10 ms frames of 40 bands, down to 60 dB below the loudest, which is where the noise of a generator lies.
    mel = librosa.feature.melspectrogram(
        y=np.pad(wave, (_LEAD, 0)), sr=RATE, n_fft=1024, hop_length=_HOP, n_mels=40, fmax=RATE / 2
    )
    level = librosa.power_to_db(mel, ref=np.max, top_db=60)
    strength = onset_strength(S=level, sr=RATE, hop_length=_HOP, lag=2, max_size=3)
    strength = np.pad(strength, (8, 0))
    if strength.max() <= 0:
        return 0
    peaks = librosa.util.peak_pick(
        strength / strength.max(), pre_max=20, post_max=20, pre_avg=60, post_avg=60, delta=0.1, wait=20
    )
    return len(peaks)
