"""Stage ``diffusion``: the denoiser eps_theta(z_t, t, tau) on cached latents, with its text encoder if that is new."""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather
from diffusers import SchedulerMixin
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast, T5EncoderModel

from latentdiff.config import DiffusionRecipe, ImageData, NewTextEncoder
from latentdiff.data.balance import Repeated, balanced
from latentdiff.data.items import WaveItems
from latentdiff.data.latents import Prompts
from latentdiff.data.stored_rows import StoredRows
from latentdiff.diffusion.importance import ImportanceSampled
from latentdiff.diffusion.learned_schedule import LearnedSchedule
from latentdiff.diffusion.samplers import make_scheduler
from latentdiff.errors import InputError
from latentdiff.models.clap import audio_features, embed_audio, embed_text, load_clap
from latentdiff.models.denoiser import Denoiser, new_denoiser, predict
from latentdiff.models.text import (
    Conditioning,
    encode_tokens,
    load_text_encoder,
    mean_of_tokens,
    new_t5,
    new_tokenizer,
    tokenize,
)
from latentdiff.models.vocabulary import Vocabulary
from latentdiff.pipelines.base import LatentDiffusionPipeline
from latentdiff.pipelines.text_to_audio import TextToAudioPipeline
from latentdiff.pipelines.text_to_image import TextToImagePipeline
from latentdiff.training.caches import SPLITS, Caches
from latentdiff.training.first_stage import SoundStage, first_stage
from latentdiff.training.objective import learned_schedule_of, new_objective, process_of, with_drawn_times
from latentdiff.training.recipe import Losses, Recipe, Step


class ConditionedDenoiser(nn.Module):
    """Text encoder and U-Net in one forward pass, so that both can learn from the one loss.

    A noise schedule that learns from it too, and what importance sampling remembers, are parts of this, although the
    objective calls them: whatever distributes, averages and saves the network then does so with them.
    """

    def __init__(
        self,
        unet: Denoiser,
        text_encoder: T5EncoderModel | None,
        schedule: LearnedSchedule | None = None,
        times: ImportanceSampled | None = None,
    ) -> None:
        super().__init__()
        self.unet, self.text_encoder, self.schedule, self.times = unet, text_encoder, schedule, times

    def train(self, mode: bool = True) -> "ConditionedDenoiser":
        """A published text encoder stays as it is: no dropout in what does not learn."""
        super().train(mode)
        if self.text_encoder is not None and not any(p.requires_grad for p in self.text_encoder.parameters()):
            self.text_encoder.eval()
        return self

    def forward(
        self,
        z_t: Tensor,
        t: Tensor,
        ids: Tensor | None,
        mask: Tensor | None,
        pooled: Tensor | None,
        tokens: Tensor | None = None,
    ) -> Tensor:
        """The prediction (B, C, h, w), for token ids or encoded tokens (B, N, D), mask (B, N) and pooled (B, P)."""
        tau = Conditioning(pooled=pooled)
        if self.text_encoder is not None:
            assert mask is not None
            if tokens is None:
                assert ids is not None
                tau = encode_tokens(self.text_encoder, ids, mask)
            else:
                tau = Conditioning(tokens, mask)
            if pooled is not None:
                tau = Conditioning(tau.tokens, tau.mask, pooled)
            elif self.unet.config.class_embed_type:
                tau = mean_of_tokens(tau)
        return predict(self.unet, z_t, t, tau)


class DiffusionTraining(Recipe[DiffusionRecipe]):
    """min E |eps_theta(z_t, t, tau) - eps|^2 (latent diffusion, equation 3), or another objective of the same network.

    With caption dropout for guidance, or with no captions at all.
    """

    fills_caches = False
    """Whether it may encode into a folder that the configuration names."""

    def __init__(self, config: DiffusionRecipe, device: torch.device) -> None:
        super().__init__(config, device)
        self.first_stage = first_stage(config, device)
        self.prompted = config.conditioning == "prompt"
        caches = Caches(
            config.data,
            root=config.latents or config.output / "latents",
            captioned=self.prompted,
            make=self.fills_caches or config.latents is None,
        )
        rows = caches.rows()
        self.objective = new_objective(config)
        self.drawn = with_drawn_times(config, self.objective)
        self.scheduler()  # refuses a sampler that cannot run the objective's process
        latents, self.held_out = (
            self.first_stage.latents(split, part, caches) for split, part in zip(SPLITS, rows, strict=True)
        )
        self._load_conditioning(rows[0].all_captions())
        self.vocabulary = Vocabulary.of_captions(rows[0].all_captions()) if self.prompted else None
        self.latents = dataclasses.replace(latents, prompts=self._prompts(rows[0], caches))
        self.unet = new_denoiser(
            config.unet,
            latent_channels=self.latents.mean.shape[1],
            tokens_width=self.text_encoder.config.d_model if self.text_encoder is not None else None,
            pooled_width=self._pooled_width(),
            pooled_apart=self.clap is not None,
            output_channels=self.objective.output_channels,
        )
        if device.type == "cpu":  # the fused attention's backward pass is slow there: a step takes 0.25 s, not 0.32 s
            for module in self.unet.modules():
                if isinstance(module, Attention):
                    module.set_processor(AttnProcessor())
        times = self.drawn if isinstance(self.drawn, ImportanceSampled) else None
        whole = ConditionedDenoiser(self.unet, self.text_encoder, learned_schedule_of(self.objective), times)
        self.networks = {"denoiser": whole}
        self.phases, self.averaged = {"denoiser": ("denoiser",)}, ("denoiser",)
        self.weights = {"loss": 1.0}

    def _load_conditioning(self, captions: Iterable[str]) -> None:
        """Text encoder (new and trained, or published and frozen) and CLAP (always frozen)."""
        source = self.config.text_encoder
        self.text_encoder, self.tokenizer, self.clap, self.clap_tokenizer, self.clap_features = (None,) * 5
        if isinstance(source, NewTextEncoder):
            self.tokenizer = self._own_tokenizer(captions, source.vocabulary)
            self.text_encoder = new_t5(source, len(self.tokenizer)).to(self.device)
        elif source is not None:
            self.text_encoder, self.tokenizer = load_text_encoder(source)
            self.text_encoder.to(self.device).eval().requires_grad_(False)
        if self.config.clap is not None:
            self.clap, self.clap_tokenizer, self.clap_features = load_clap(self.config.clap)
            self.clap.to(self.device).eval().requires_grad_(False)
        if self.text_encoder is None and self.clap is None and self.prompted:
            raise InputError(
                "text_encoder and clap are both null: the denoiser would not hear the prompt. Give one, or set "
                "conditioning: none."
            )

    def _pooled_width(self) -> int | None:
        if self.clap is not None:
            return int(self.clap.config.projection_dim)
        if not self.config.pooled_tokens:
            return None
        if self.text_encoder is None:
            raise InputError("pooled_tokens is true, but text_encoder is null: there are no tokens.")
        return int(self.text_encoder.config.d_model)

    def _own_tokenizer(self, captions: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
        """Learnt once a run: a resumed run must read its embeddings by the same ids."""
        folder = self.config.output / "tokenizer"
        if not (folder / "tokenizer.json").is_file():
            staging = folder.with_name(f".tokenizer-{os.getpid()}")
            new_tokenizer(captions, vocabulary).save_pretrained(staging)
            with contextlib.suppress(OSError):  # another process of this run was first, with the same tokenizer
                os.replace(staging, folder)
            shutil.rmtree(staging, ignore_errors=True)
        return PreTrainedTokenizerFast.from_pretrained(folder)

    @property
    def items(self) -> Dataset[dict[str, Any]]:
        if self.config.balance is None:
            return self.latents
        owners = [self.latents.rows[int(row)] for row in self.latents.owner[:]]
        return Repeated(self.latents, balanced(owners, self.config.balance))

    def _prompts(self, rows: StoredRows, caches: Caches) -> Prompts:
        """What the frozen parts make of the captions, and CLAP of the sounds if it is asked for, from the cache."""
        frozen = isinstance(self.config.text_encoder, str) or self.clap is not None
        embed = self._embed if frozen else None
        sounds, features = None, self.clap_features
        if features is not None and self.config.clap_condition == "audio":
            sounds = WaveItems(rows, features.sampling_rate, features.nb_max_samples)
        sources = {"text_encoder": self.config.text_encoder, "clap": self.config.clap}
        return caches.prompts(rows, sources, embed, sounds, self._hear)

    @torch.no_grad()
    def _embed(self, captions: list[str]) -> dict[str, Any]:
        """Token sequences (N, D) by a frozen text encoder, pooled embeddings (B, P) by CLAP."""
        told: dict[str, Any] = {}
        if isinstance(self.config.text_encoder, str):
            assert self.text_encoder is not None
            tau = encode_tokens(self.text_encoder, *tokenize(self.tokenizer, captions))
            assert tau.tokens is not None and tau.mask is not None
            told["tokens"] = [row[: int(real.sum())] for row, real in zip(tau.tokens, tau.mask, strict=True)]
        if self.clap is not None:
            told["pooled"] = self._pooled(captions)
        return told

    @torch.no_grad()
    def _pooled(self, captions: list[str]) -> Tensor:
        """CLAP embeddings (B, P) of captions."""
        assert self.clap is not None and self.clap_tokenizer is not None
        return embed_text(self.clap, *tokenize(self.clap_tokenizer, captions))

    @torch.no_grad()
    def _hear(self, waves: list[Any]) -> Tensor:
        """CLAP embeddings (B, P) of sounds."""
        assert self.clap is not None and self.clap_features is not None
        return embed_audio(self.clap, audio_features(self.clap_features, waves))

    def predict(self, z_t: Tensor, t: Tensor, captions: list[str], told: Conditioning | None = None) -> Tensor:
        """The network's prediction for z_t (B, C, h, w) at t (B,) under captions; ``told`` is what is embedded."""
        told = told or Conditioning()
        ids, mask, pooled = None, told.mask, told.pooled
        if self.tokenizer is not None and told.tokens is None:
            ids, mask = (part.to(self.device) for part in tokenize(self.tokenizer, captions))
        if self.clap is not None and pooled is None:
            pooled = self._pooled(captions)
        return self.networks["denoiser"](z_t, t, ids, mask, pooled, told.tokens)

    def _told(self, batch: dict[str, Any], dropped: Tensor) -> Conditioning:
        """The cached embeddings of a batch, those of the empty caption where it was dropped (B,)."""
        empty, dropped = self.latents.prompts.empty(), dropped.to(self.device)
        tokens = mask = pooled = None
        if "tokens" in batch:
            silence = empty["tokens"].to(self.device)
            longest = max(batch["tokens"].shape[1], len(silence))
            tokens = nn.functional.pad(batch["tokens"], (0, 0, 0, longest - batch["tokens"].shape[1]))
            nothing = nn.functional.pad(silence, (0, 0, 0, longest - len(silence)))
            tokens = torch.where(dropped[:, None, None], nothing, tokens)
            length = batch["length"].masked_fill(dropped, len(silence))
            mask = (torch.arange(longest, device=self.device) < length[:, None]).long()
        if "pooled" in batch:
            pooled = torch.where(dropped[:, None], empty["pooled"].to(self.device), batch["pooled"])
        return Conditioning(tokens, mask, pooled)

    def losses(self, batch: dict[str, Any], step: Step) -> Iterator[tuple[str, Losses]]:
        generator, count = step.generator, len(batch["mean"])
        z_0 = batch["mean"] + batch["deviation"] * torch.randn(batch["mean"].shape, generator=generator).to(self.device)
        z_0 = self.first_stage.exact(z_0)
        eps = torch.randn(z_0.shape, generator=generator).to(self.device)
        t = self.drawn.draw_times(count, generator).to(self.device)
        dropped = torch.rand(count, generator=generator) < self.config.caption_dropout
        captions = ["" if drop else caption for drop, caption in zip(dropped, batch["caption"], strict=True)]
        denoise = partial(self.predict, captions=captions, told=self._told(batch, dropped))
        error = self.drawn.loss(denoise, z_0, t, eps)
        yield "denoiser", {"loss": error.mean()}
        if isinstance(self.drawn, ImportanceSampled):
            self.drawn.update(gather(t), gather(error.detach()))

    def validate(self, folder: Path) -> dict[str, float]:
        """Held-out loss at fixed t and noise, with the right captions and with shuffled ones, and a few samples.

        Whatever times training draws, these are the objective's own.
        """
        items, generator = self.held_out, torch.Generator().manual_seed(0)
        count = min(256, len(items))
        z_0 = self.first_stage.exact(items.mean[:count].to(self.device))
        eps = torch.randn(z_0.shape, generator=generator).to(self.device)
        t = self.objective.draw_times(count, generator).to(self.device)
        captions = [items.rows[int(row)].captions[0] for row in items.owner[:count]]
        figures, told = {}, {"loss": captions}
        if self.prompted:
            told["loss_shuffled"] = captions[1:] + captions[:1]
        for name, prompts in told.items():
            total = 0.0
            for part in torch.arange(count).split(32):
                denoise = partial(self.predict, captions=[prompts[i] for i in part.tolist()])
                total += float(self.objective.loss(denoise, z_0[part], t[part], eps[part]).sum())
            figures[name] = total / count
        self.first_stage.save_examples(folder, self.pipeline(), captions if self.prompted else None)
        return figures

    def scheduler(self) -> SchedulerMixin:
        """The sampler, on the process that is trained; a learned one as it is now."""
        return make_scheduler(self.config.sampler, process_of(self.config, self.objective))

    def pipeline(self) -> LatentDiffusionPipeline:
        """What has been trained so far, as a user would use it."""
        parts: dict[str, Any] = {
            "vae": self.first_stage.vae,
            "unet": self.unet,
            "scheduler": self.scheduler(),
            "text_encoder": self.text_encoder,
            "tokenizer": self.tokenizer,
            "default_steps": self.config.default_steps,
            "default_guidance": self.config.default_guidance,
        }
        if isinstance(self.config.data, ImageData):
            height, width = self.config.data.size
            pipeline: LatentDiffusionPipeline
            pipeline = TextToImagePipeline(**parts, default_height=height, default_width=width)
        else:
            assert isinstance(self.first_stage, SoundStage)
            pipeline = TextToAudioPipeline(
                **parts,
                vocoder=self.first_stage.vocoder,
                clap=self.clap,
                clap_tokenizer=self.clap_tokenizer,
                default_seconds=self.config.data.seconds,
            )
        pipeline.vocabulary = self.vocabulary
        return pipeline

    def export(self, folder: Path) -> None:
        """``OUTPUT/pipeline``."""
        self.pipeline().save_pretrained(folder / "pipeline")

    def check(self) -> list[str]:
        return self.first_stage.check(self.latents)
