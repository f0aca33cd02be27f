"""Example media of a validation: WAV files, spectrograms and pictures as PNGs."""

import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from latentdiff.media.audio import save_spectrogram, write_audio
from latentdiff.media.image import Sheet, to_pictures, write_png
from latentdiff.media.mel import MelConfig


def save_mel_pairs(folder: Path, real: Tensor, made: Tensor, mel: MelConfig, count: int) -> None:
    """A PNG of the first ``count`` log-mels (B, T, F), the real one above the made one."""
    count = min(count, len(real))
    figure = Figure(figsize=(4 * count, 5), layout="constrained")
    axes = np.atleast_2d(figure.subplots(2, count, sharex=True, sharey=True)).reshape(2, count)
    seconds = real.shape[1] * mel.hop_length / mel.sampling_rate
    for row, (name, batch) in enumerate((("real", real), ("made", made))):
        for column in range(count):
            picture = batch[column].float().cpu().numpy().T
            low, high = real[column].min().item(), real[column].max().item()
            axes[row, column].imshow(
                picture,
                origin="lower",
                aspect="auto",
                extent=(0, seconds, 0, mel.n_mels),
                vmin=low,
                vmax=high,
            )
            axes[row, column].set_title(name)
    axes[1, 0].set(xlabel="time, s", ylabel="mel band")
    figure.savefig(folder / "mels.png", dpi=80)


def save_waves(folder: Path, waves: Tensor, sampling_rate: int, names: list[str]) -> None:
    """``NAME.wav`` and ``NAME.png`` for each of the waveforms (B, S)."""
    for name, wave in zip(names, waves.float().cpu().numpy(), strict=True):
        write_audio(folder / f"{name}.wav", wave, sampling_rate, recipe=None, overwrite=True)
        save_spectrogram(folder / f"{name}.png", wave, sampling_rate)


def save_picture_pairs(folder: Path, real: Tensor, made: Tensor, count: int) -> None:
    """``pictures.png``: the first ``count`` of uint8 pictures (B, C, H, W), each with the made one at its right."""
    pairs = to_pictures(torch.stack([real[:count], made[:count]], dim=1).flatten(0, 1))
    sheet = Sheet(len(pairs), 2 * math.ceil(math.sqrt(len(pairs) / 2)), pairs[0].size)
    for picture in pairs:
        sheet.add(picture)
    write_png(folder / "pictures.png", sheet.picture, overwrite=True)
