"""Stage ``diffusion``: the denoiser eps_theta(z_t, t, tau) on cached latents, with its text encoder if that is new."""

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import T5EncoderModel

from latentdiff.config import DiffusionRecipe, NewTextEncoder
from latentdiff.data.folder import read_folder
from latentdiff.data.items import WaveItems, split_rows
from latentdiff.data.latents import LatentItems, encode_rows
from latentdiff.diffusion.objectives import DenoisingObjective
from latentdiff.diffusion.samplers import make_scheduler
from latentdiff.errors import InputError
from latentdiff.media.mel import LogMel, MelConfig, require_same_mel, resolve_mel
from latentdiff.models.autoencoder import compression, decode, posterior
from latentdiff.models.clap import audio_features, embed_audio, embed_text, load_clap
from latentdiff.models.denoiser import new_denoiser
from latentdiff.models.loading import load_autoencoder, load_vocoder, weights_hash
from latentdiff.models.text import (
    Conditioning,
    encode_tokens,
    load_text_encoder,
    new_t5,
    new_tokenizer,
    tokenize,
)
from latentdiff.models.vocoder import imposed_iterations, vocoder_mel, voice
from latentdiff.pipelines.text_to_audio import TextToAudioPipeline
from latentdiff.training.previews import save_waves
from latentdiff.training.recipe import Losses, Recipe, Step

logger = logging.getLogger(__name__)


class ConditionedDenoiser(nn.Module):
    """Text encoder and U-Net in one forward pass, so that both can learn from the one loss."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: T5EncoderModel | None) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, z_t: Tensor, t: Tensor, ids: Tensor | None, mask: Tensor | None, pooled: Tensor | None) -> Tensor:
        """The prediction (B, C, h, w), for token ids and mask (B, N) and pooled embedding (B, P)."""
        tau = Conditioning(pooled=pooled)
        if self.text_encoder is not None:
            assert ids is not None and mask is not None
            tokens = encode_tokens(self.text_encoder, ids, mask)
            tau = Conditioning(tokens.tokens, tokens.mask, pooled)
        prediction: Tensor = self.unet(z_t, t, **tau.unet_arguments()).sample
        return prediction


class DiffusionTraining(Recipe[DiffusionRecipe]):
    """min E |eps_theta(z_t, t, tau) - eps|^2 (latent diffusion, equation 3), with caption dropout for guidance."""

    def __init__(self, config: DiffusionRecipe, device: torch.device) -> None:
        super().__init__(config, device)
        self.vae = load_autoencoder(config.vae).to(device).eval().requires_grad_(False)
        self.vocoder = load_vocoder(config.vocoder).to(device).eval().requires_grad_(False)
        self.mel = LogMel(self._common_mel()).to(device)
        rows, held_out = split_rows(read_folder(config.data.path, config.data.caption_key), config.data.held_out)
        self._require_captions(rows + held_out)
        self.scheduler = make_scheduler(config.sampler, config.schedule.model_dump())
        self.objective = DenoisingObjective(
            self.scheduler.alphas_cumprod, config.schedule.prediction_type, config.min_snr_gamma
        )
        self.latents, self.held_out = self._encode(rows), self._encode(held_out)
        self._load_conditioning([caption for row in rows for caption in row.captions])
        unet = new_denoiser(
            config.unet,
            latent_channels=self.latents.mean.shape[1],
            tokens_width=self.text_encoder.config.d_model if self.text_encoder is not None else None,
            pooled_width=self.clap.config.projection_dim if self.clap is not None else None,
        )
        self.networks = {"denoiser": ConditionedDenoiser(unet, self.text_encoder)}
        self.unet = unet
        self.phases, self.averaged = {"denoiser": ("denoiser",)}, ("denoiser",)
        self.weights = {"loss": 1.0}

    def _common_mel(self) -> MelConfig:
        definition = getattr(self.vae.config, "mel", None)
        if not definition:
            raise InputError(
                f"{self.config.vae} carries no mel definition in its config.json; train it with this package."
            )
        mel, other = resolve_mel(definition), vocoder_mel(self.vocoder)
        if other is not None:
            require_same_mel(mel, f"the VAE {self.config.vae}", other, f"the vocoder {self.config.vocoder}")
        return mel

    def _require_captions(self, rows: list[Any]) -> None:
        for row in rows:
            if not row.captions:
                raise InputError(f"{row.path} has no caption; the diffusion stage needs one for every file.")

    def _encode(self, rows: list[Any]) -> LatentItems:
        """Scaled latents of the rows: unit variance is what the noise schedule assumes."""
        rate, hop = self.mel.config.sampling_rate, self.mel.config.hop_length
        step = compression(self.vae)
        frames = int(self.config.data.seconds * rate) // hop // step * step
        waves = WaveItems(rows, rate, frames * hop)
        scale = self.vae.config.scaling_factor

        def encode(wave: Tensor) -> tuple[Tensor, Tensor]:
            x = self.mel.to_x(self.mel(self.mel.prepare(wave))[:, :frames])
            q = posterior(self.vae, x)
            return q.mean * scale, q.std * scale

        key = {"vae": weights_hash(self.config.vae), "mel": self.mel.config.to_dict()}
        return encode_rows(waves, encode, self.config.output / "latents", key, self.device)

    def _load_conditioning(self, captions: list[str]) -> None:
        """Text encoder (new and trained, or published and frozen) and CLAP (always frozen)."""
        source = self.config.text_encoder
        self.text_encoder, self.tokenizer, self.clap, self.clap_tokenizer, self.clap_features = (None,) * 5
        if isinstance(source, NewTextEncoder):
            self.tokenizer = new_tokenizer(captions, source.vocabulary)
            self.text_encoder = new_t5(source, len(self.tokenizer)).to(self.device)
        elif source is not None:
            self.text_encoder, self.tokenizer = load_text_encoder(source)
            self.text_encoder.to(self.device).requires_grad_(False)
        if self.config.clap is not None:
            self.clap, self.clap_tokenizer, self.clap_features = load_clap(self.config.clap)
            self.clap.to(self.device).eval().requires_grad_(False)
        if self.text_encoder is None and self.clap is None:
            raise InputError("text_encoder and clap are both null: the denoiser would not hear the prompt. Give one.")

    @property
    def items(self) -> Dataset[dict[str, Any]]:
        return self.latents

    def predict(self, z_t: Tensor, t: Tensor, captions: list[str], rows: list[int]) -> Tensor:
        """The network's prediction for z_t (B, C, h, w) at t (B,) under captions."""
        ids = mask = pooled = None
        if self.tokenizer is not None:
            ids, mask = (part.to(self.device) for part in tokenize(self.tokenizer, captions))
        if self.clap is not None:
            pooled = self._pooled(captions, rows)
        return self.networks["denoiser"](z_t, t, ids, mask, pooled)

    @torch.no_grad()
    def _pooled(self, captions: list[str], rows: list[int]) -> Tensor:
        """CLAP embedding (B, P): of the caption, or of the sound itself where that is asked for and not dropped."""
        assert self.clap is not None and self.clap_tokenizer is not None and self.clap_features is not None
        text = embed_text(self.clap, *tokenize(self.clap_tokenizer, captions))
        if self.config.clap_condition == "text":
            return text
        waves = WaveItems(self.latents.rows, self.clap_features.sampling_rate, self.clap_features.nb_max_samples)
        heard = embed_audio(self.clap, audio_features(self.clap_features, [waves.crop(waves.rows[r]) for r in rows]))
        kept = torch.tensor([bool(caption) for caption in captions], device=text.device)
        return torch.where(kept[:, None], heard, text)

    def losses(self, batch: dict[str, Any], step: Step) -> Iterator[tuple[str, Losses]]:
        generator, count = step.generator, len(batch["mean"])
        z_0 = batch["mean"] + batch["deviation"] * torch.randn(batch["mean"].shape, generator=generator).to(self.device)
        eps = torch.randn(z_0.shape, generator=generator).to(self.device)
        t = self.objective.draw_times(count, generator).to(self.device)
        dropped = torch.rand(count, generator=generator) < self.config.caption_dropout
        captions = ["" if drop else caption for drop, caption in zip(dropped, batch["caption"], strict=True)]
        error = self.objective.loss(lambda z_t, t: self.predict(z_t, t, captions, batch["row"]), z_0, t, eps)
        yield "denoiser", {"loss": error.mean()}

    def validate(self, folder: Path) -> dict[str, float]:
        """Held-out loss at fixed t and noise, with the right captions and with shuffled ones, and a few samples."""
        items, generator = self.held_out, torch.Generator().manual_seed(0)
        count = min(256, len(items))
        z_0 = items.mean[:count].to(self.device)
        eps = torch.randn(z_0.shape, generator=generator).to(self.device)
        t = self.objective.draw_times(count, generator).to(self.device)
        captions = [items.rows[int(row)].captions[0] for row in items.owner[:count]]
        figures = {}
        for name, prompts in (("loss", captions), ("loss_shuffled", captions[1:] + captions[:1])):
            total = 0.0
            for part in torch.arange(count).split(32):
                chosen = [prompts[i] for i in part.tolist()]
                denoise = partial(self.predict, captions=chosen, rows=items.owner[part].tolist())
                total += float(self.objective.loss(denoise, z_0[part], t[part], eps[part]).sum())
            figures[name] = total / count
        pipeline = self.pipeline()
        pipeline.set_progress_bar_config(disable=True)
        seeds = [torch.Generator().manual_seed(seed) for seed in range(len(captions[:4]))]
        seconds = self.config.data.seconds
        waves, rate = pipeline(captions[:4], seconds, generator=seeds, output_type="pt", return_dict=False)
        assert isinstance(waves, Tensor) and isinstance(rate, int)
        save_waves(folder, waves, rate, [f"{i}" for i in range(len(seeds))])
        (folder / "prompts.txt").write_text("\n".join(captions[:4]) + "\n")
        return figures

    def pipeline(self) -> TextToAudioPipeline:
        """What has been trained so far, as a user would use it."""
        return TextToAudioPipeline(
            vae=self.vae,
            unet=self.unet,
            scheduler=self.scheduler,
            vocoder=self.vocoder,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            clap=self.clap,
            clap_tokenizer=self.clap_tokenizer,
            default_steps=self.config.default_steps,
            default_guidance=self.config.default_guidance,
            default_seconds=self.config.data.seconds,
        )

    def export(self, folder: Path) -> None:
        """``OUTPUT/pipeline``."""
        self.pipeline().save_pretrained(folder / "pipeline")

    def check(self) -> list[str]:
        """Latent scale near one, and a VAE that reconstructs."""
        warnings = []
        deviation = float(self.latents.mean.std())
        if not 0.5 < deviation < 2.0:
            warnings.append(
                f"latents have a standard deviation of {deviation:.3g}, the noise schedule assumes 1: is the VAE's "
                f"scaling_factor {self.vae.config.scaling_factor:.4g} that of this data?"
            )
        if self.latents.mean.isnan().any():
            warnings.append("latents are not finite: the VAE is broken or does not fit the recordings.")
        with torch.no_grad():
            z = self.latents.mean[:16].to(self.device) / self.vae.config.scaling_factor
            log_mel = self.mel.from_x(decode(self.vae, z))
            wave = voice(self.vocoder, log_mel, self.mel, imposed_iterations(self.vocoder))
            heard = self.mel(wave)[:, : log_mel.shape[1]]
            error, spread = float((heard - log_mel).abs().mean()), float(log_mel.std())
        if error > spread:
            warnings.append(
                f"the vocoder's round trip is off by {error:.3g} on log-mels that spread by {spread:.3g}: it was "
                "trained on another mel, or hardly at all."
            )
        return warnings
