"""Stage ``vocoder``: HiFi-GAN (Kong et al. 2020) from log-mels to waveforms."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import SpeechT5HifiGan

from latentdiff.config import VocoderRecipe
from latentdiff.data.folder import Row
from latentdiff.data.items import WaveItems, split_usable
from latentdiff.errors import InputError
from latentdiff.media.mel import LogMel, require_same_mel, resolve_mel
from latentdiff.media.spectral import multi_resolution_stft
from latentdiff.models.autoencoder import decode, posterior
from latentdiff.models.discriminators import (
    WaveDiscriminator,
    feature_matching_loss,
    frozen,
    lsgan_discriminator_loss,
    lsgan_generator_loss,
)
from latentdiff.models.loading import load_autoencoder, load_vocoder
from latentdiff.models.vocoder import imposed_iterations, new_vocoder, set_normalisation, voice
from latentdiff.training.modality import mel_of
from latentdiff.training.previews import save_waves
from latentdiff.training.recipe import Losses, Recipe, Step


class VocoderTraining(Recipe[VocoderRecipe]):
    """L_G = L_adv + lambda_fm L_fm + lambda_mel L_mel (HiFi-GAN, equation 8), after a purely spectral start."""

    def __init__(self, config: VocoderRecipe, device: torch.device) -> None:
        super().__init__(config, device)
        if bool(config.mel_iterations) != bool(config.training_mel_iterations):
            raise InputError(
                "mel_iterations and training_mel_iterations go together: a vocoder that never had its mel imposed in "
                "training is louder or softer with it, and the reverse. Set both, or neither."
            )
        self.mel_config = resolve_mel(config.mel)
        self.mel = LogMel(self.mel_config).to(device)
        rows, held_out = split_usable(config.data)
        rate, hop = self.mel_config.sampling_rate, self.mel_config.hop_length
        self.waves = WaveItems(rows, rate, int(config.data.seconds * rate) // hop * hop)
        self.held_out = WaveItems(held_out, rate, int(4 * rate) // hop * hop)
        self.vocoder = self._finished(config.init) if config.init else self._new(rows)
        self.vae = load_autoencoder(config.vae).to(device).eval() if config.vae else None
        if self.vae is not None:
            require_same_mel(resolve_mel(self.vae.config.mel), "the VAE", self.mel_config, "the vocoder's mel")
        self.networks = {"vocoder": self.vocoder}
        self.phases, self.averaged = {"vocoder": ("vocoder",)}, ("vocoder",)
        self.weights = {name: w for name, w in config.weights.model_dump().items() if w}
        if config.weights.adversarial:
            self.networks["discriminator"] = WaveDiscriminator(config.discriminator_width)
            self.phases = {"discriminator": ("discriminator",), **self.phases}
            self.weights["discriminator"] = 1.0

    def _new(self, rows: Sequence[Row]) -> SpeechT5HifiGan:
        assert self.config.generator is not None  # the configuration was checked
        vocoder = new_vocoder(self.config.generator, self.mel_config, self.config.mel_iterations)
        whole = [torch.from_numpy(self.held_out.crop(row)) for row in rows[:: max(1, len(rows) // 128)]]
        set_normalisation(vocoder, self.log_mel(torch.stack(whole).to(self.device)).cpu())
        return vocoder

    def _finished(self, init: str) -> SpeechT5HifiGan:
        """The vocoder to go on from.

        Raises:
            InputError: if it is of another mel, or its output was another one in training.
        """
        vocoder = load_vocoder(init)
        require_same_mel(mel_of(vocoder, init), f"the vocoder {init}", self.mel_config, "the configuration")
        before, now = imposed_iterations(vocoder), self.config.mel_iterations
        if bool(before) != bool(now):
            raise InputError(
                f"mel_iterations is {now}, and {init} was trained with {before}: a vocoder that the mel is imposed on "
                f"makes no level of its own, and one without makes all of it. "
                f"{f'Set it, to {before} for instance' if before else 'Leave it out'}."
            )
        vocoder.config.mel_iterations = now
        return vocoder

    @property
    def items(self) -> Dataset[dict[str, Any]]:
        return self.waves

    def log_mel(self, wave: Tensor) -> Tensor:
        """Log-mel (B, T, F) of a waveform (B, S), one frame a hop."""
        return self.mel(wave)[:, : wave.shape[1] // self.mel_config.hop_length]

    @torch.no_grad()
    def condition(self, log_mel: Tensor) -> Tensor:
        """What the vocoder is shown: real log-mels, half of them through the VAE if there is one."""
        if self.vae is None:
            return log_mel
        half = len(log_mel) // 2
        x = self.mel.to_x(log_mel[:half])
        smooth = self.mel.from_x(decode(self.vae, posterior(self.vae, x).mode()))
        return torch.cat([smooth, log_mel[half:]])

    def voice(self, log_mel: Tensor, mel_iterations: int) -> Tensor:
        """Waveform (B, S) of a log-mel (B, T, F)."""
        return voice(self.networks["vocoder"], log_mel, self.mel, mel_iterations)

    def losses(self, batch: dict[str, Any], step: Step) -> Iterator[tuple[str, Losses]]:
        wave = self.mel.prepare(batch["media"])
        log_mel = self.log_mel(wave)
        made = self.voice(self.condition(log_mel), self.config.training_mel_iterations)
        terms = {"mel": (self.log_mel(made) - log_mel).abs().mean()}
        if "stft" in self.weights:
            terms["stft"] = multi_resolution_stft(made, wave).mean()
        if "adversarial" in self.weights and step.number >= self.config.adversarial_start:
            judge = self.networks["discriminator"]
            yield (
                "discriminator",
                {"discriminator": lsgan_discriminator_loss(judge(wave), judge(made.detach()))},
            )
            with frozen(judge):
                real, verdict = judge(wave), judge(made)
            terms["feature_matching"] = feature_matching_loss(real, verdict)
            terms["adversarial"] = lsgan_generator_loss(verdict)
        yield "vocoder", terms

    def validate(self, folder: Path) -> dict[str, float]:
        rows = self.held_out.rows[:32]
        wave = self.mel.prepare(torch.stack([torch.from_numpy(self.held_out.crop(r)) for r in rows]).to(self.device))
        log_mel = self.log_mel(wave)
        made = self.voice(log_mel, self.config.mel_iterations)
        rate = self.mel_config.sampling_rate
        save_waves(folder, wave[:4], rate, [f"{i}-real" for i in range(len(wave[:4]))])
        save_waves(folder, made[:4], rate, [f"{i}-made" for i in range(len(made[:4]))])
        return {
            "mel": float((self.log_mel(made) - log_mel).abs().mean()),
            "stft": float(multi_resolution_stft(made, wave).mean()),
        }

    def export(self, folder: Path) -> None:
        """``OUTPUT/vocoder``."""
        self.vocoder.save_pretrained(folder / "vocoder")
