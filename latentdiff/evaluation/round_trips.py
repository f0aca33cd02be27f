"""What a pipeline's own autoencoder and vocoder leave of real media."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from latentdiff.evaluation.bootstrap import Bootstrap
from latentdiff.evaluation.evidence import Figures, NotComputableError
from latentdiff.evaluation.sets import MediaSet
from latentdiff.media.image import from_x, to_x
from latentdiff.media.mel import LogMel
from latentdiff.media.spectral import multi_resolution_stft
from latentdiff.models.autoencoder import compression, posterior

ROUND_TRIPS = 100
"""Media that are taken through, at most; each costs a decoder and a vocoder."""


def wave_distances(made: Tensor, real: Tensor, mel: LogMel) -> dict[str, Tensor]:
    """Log-mel L1 and multi-resolution STFT distance of waveforms (B, S), (B,) each."""
    frames = [mel(mel.prepare(wave)) for wave in (made, real)]
    return {"log-mel L1": (frames[0] - frames[1]).abs().mean((1, 2)), "STFT": multi_resolution_stft(made, real)}


@torch.no_grad()
def round_trip(pipe: Any, media: MediaSet, bootstrap: Bootstrap) -> Figures:
    """Real media through encoder, decoder and vocoder: log-mel L1 and STFT distance, or PSNR of pictures in dB.

    Args:
        pipe: one of our pipelines.
        media: real ones.
        bootstrap: of the intervals.

    Raises:
        NotComputableError: for a model on pixels, or media shorter than one latent.
    """
    if pipe.vae is None:
        raise NotComputableError("the model has no autoencoder")
    measure = _wave_trip if hasattr(pipe, "vocoder") else _picture_trip
    rate = pipe.mel.config.sampling_rate if media.kind == "audio" else None
    count, found = min(ROUND_TRIPS, len(media)), dict[str, list[float]]()
    for one in tqdm(media.read(range(count), rate), "round trips", count, disable=None):
        for name, value in measure(pipe, torch.tensor(one, device=pipe.device)).items():
            found.setdefault(name, []).append(float(value))
    return {name: bootstrap.mean(np.array(values)) for name, values in found.items()}


def _wave_trip(pipe: Any, wave: Tensor) -> dict[str, Tensor]:
    mel = pipe.mel.to(wave.device)
    hop, factor = mel.config.hop_length, compression(pipe.vae)
    frames = len(wave) // hop // factor * factor
    if not frames:
        raise NotComputableError(f"a sound of {len(wave)} samples is shorter than one latent")
    real = mel.prepare(wave[None, : frames * hop])
    x = mel.to_x(mel(real)[:, :frames]).to(pipe.vae.dtype)
    made = pipe.decode(posterior(pipe.vae, x).mode() * pipe.vae.config.scaling_factor)
    return wave_distances(made.float()[:, : real.shape[1]], real[:, : made.shape[1]], mel)


def _picture_trip(pipe: Any, pixels: Tensor) -> dict[str, Tensor]:
    real = pixels.permute(2, 0, 1)[None]
    factor = compression(pipe.vae)
    if any(side % factor for side in real.shape[2:]):
        raise NotComputableError(f"the compression of {factor} does not divide {list(real.shape[2:])} pixels")
    made = pipe.decode(posterior(pipe.vae, to_x(real).to(pipe.vae.dtype)).mode() * pipe.vae.config.scaling_factor)
    error = (from_x(made).float() - real.float()).square().mean()
    return {"PSNR": 10 * torch.log10(255.0**2 / error.clamp(min=1e-3))}
