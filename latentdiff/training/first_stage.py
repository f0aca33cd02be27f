"""The finished autoencoder and vocoder that the diffusion stage stands on: media -> scaled latent, and checks."""

from pathlib import Path

import torch
from torch import Tensor

from latentdiff.data.folder import Row
from latentdiff.data.items import WaveItems
from latentdiff.data.latents import LatentItems, encode_rows
from latentdiff.errors import InputError
from latentdiff.media.mel import LogMel, MelConfig, require_same_mel, resolve_mel
from latentdiff.models.autoencoder import compression, decode, posterior
from latentdiff.models.loading import load_autoencoder, load_vocoder, weights_hash
from latentdiff.models.vocoder import imposed_iterations, vocoder_mel, voice


class FirstStage:
    """A frozen VAE and vocoder of one mel.

    Args:
        vae: folder or hub id.
        vocoder: folder or hub id.
        seconds: length of a training window; rounded down to whole latents.
        device: where they run.

    Raises:
        InputError: if a component is missing or the two mels differ.
    """

    def __init__(self, vae: str, vocoder: str, seconds: float, device: torch.device) -> None:
        self.vae_source, self.vocoder_source, self.device = vae, vocoder, device
        self.vae = load_autoencoder(vae).to(device).eval().requires_grad_(False)
        self.vocoder = load_vocoder(vocoder).to(device).eval().requires_grad_(False)
        self.mel = LogMel(self._common_mel()).to(device)
        factor, hop = compression(self.vae), self.mel.config.hop_length
        self.frames = int(seconds * self.mel.config.sampling_rate) // hop // factor * factor
        if self.frames == 0:
            raise InputError(f"data.seconds is {seconds}, less than one latent of the VAE {vae}; make it longer.")

    def _common_mel(self) -> MelConfig:
        definition = getattr(self.vae.config, "mel", None)
        if not definition:
            raise InputError(f"{self.vae_source} has no mel definition in its config.json; train it with this package.")
        mel, other = resolve_mel(definition), vocoder_mel(self.vocoder)
        if other is not None:
            require_same_mel(mel, f"the VAE {self.vae_source}", other, f"the vocoder {self.vocoder_source}")
        return mel

    def latents(self, rows: list[Row], cache: Path) -> LatentItems:
        """Scaled latents of the rows' windows: unit variance is what the noise schedule assumes."""
        key = {"vae": weights_hash(self.vae_source), "mel": self.mel.config.to_dict()}
        return encode_rows(self.windows(rows), self._encode, cache, key, self.device)

    def windows(self, rows: list[Row]) -> WaveItems:
        """The rows as waveforms of a window's length."""
        return WaveItems(rows, self.mel.config.sampling_rate, self.frames * self.mel.config.hop_length)

    def _encode(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        q = posterior(self.vae, self.mel.to_x(self.log_mel(wave)))
        scale = self.vae.config.scaling_factor
        return q.mean * scale, q.std * scale

    def log_mel(self, wave: Tensor) -> Tensor:
        """Log-mel (B, frames, F) of windows (B, S)."""
        return self.mel(self.mel.prepare(wave))[:, : self.frames]

    @torch.no_grad()
    def check(self, latents: LatentItems) -> list[str]:
        """What looks wrong about latent scale, reconstruction and the vocoder's round trip, on 16 windows."""
        warnings = []
        deviation = float(latents.mean.std())
        if not 0.5 < deviation < 2.0:  # NaN too
            warnings.append(
                f"latents have a standard deviation of {deviation:.3g}, the noise schedule assumes 1: is the VAE's "
                f"scaling_factor {self.vae.config.scaling_factor:.4g} that of this data?"
            )
        waves = self.windows(latents.rows[:16])
        real = self.log_mel(torch.stack([torch.from_numpy(waves.crop(row)) for row in waves.rows]).to(self.device))
        spread = float(real.std())
        smooth = self.mel.from_x(decode(self.vae, posterior(self.vae, self.mel.to_x(real)).mode()))
        lost = float((smooth - real).abs().mean())
        if not lost < 0.5 * spread:
            warnings.append(
                f"the VAE loses {lost:.3g} of log-mels that spread by {spread:.3g}: train it longer or on these."
            )
        heard = self.mel(voice(self.vocoder, real, self.mel, imposed_iterations(self.vocoder)))[:, : self.frames]
        error = float((heard - real).abs().mean())
        if not error < spread:
            warnings.append(
                f"the vocoder's round trip is off by {error:.3g} on log-mels that spread by {spread:.3g}: it was "
                "trained on another mel, or hardly at all."
            )
        return warnings
