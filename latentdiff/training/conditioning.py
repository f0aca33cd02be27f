"""How the diffusion stage comes by tau: the parts that make it of captions, and what the frozen ones said, cached."""

import contextlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AudioLDM2ProjectionModel
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from latentdiff.config import DiffusionRecipe, NewTextEncoder
from latentdiff.data.items import WaveItems
from latentdiff.data.latents import Prompts
from latentdiff.data.stored_rows import StoredRows
from latentdiff.errors import InputError
from latentdiff.models.clap import audio_features, embed_audio, load_clap
from latentdiff.models.prompts import ConditionAdapter, PromptEncoder, prompt_encoder
from latentdiff.models.text import NOTHING, Conditioning, load_text_encoder, new_t5, new_tokenizer
from latentdiff.training.caches import Caches


@dataclass(frozen=True)
class TauWidths:
    """What a U-Net must be able to read."""

    tokens: int | tuple[int, int] | None
    pooled: int | None
    pooled_apart: bool
    """The pooled part stands beside the time embedding and is not added to it."""


class Listener:
    """The components by which a pipeline hears prompts, in training: some learn, what the others say is cached.

    Args:
        parts: by their names in the pipeline; none for a model without prompts.
        pooled: the U-Net hears an embedding beside its time embedding.
        device: where they run.
    """

    def __init__(self, parts: dict[str, Any], pooled: bool, device: torch.device) -> None:
        self.parts, self.device = parts, device
        for part in self.networks.values():
            part.to(device)
        self.encoder: PromptEncoder | None = prompt_encoder(parts, pooled) if parts else None

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Those of the parts that have weights."""
        return {name: part for name, part in self.parts.items() if isinstance(part, nn.Module)}

    @torch.no_grad()
    def read(self, captions: list[str], known: Conditioning = NOTHING) -> Conditioning:
        """What the frozen parts say of captions, beside what is known."""
        return self.encoder.read(captions, known) if self.encoder is not None else NOTHING

    def tell(self, read: Conditioning, captions: list[str]) -> Conditioning:
        """tau, with gradients for the parts that learn."""
        return self.encoder.tell(read, captions) if self.encoder is not None else NOTHING

    def embed(self, captions: list[str]) -> dict[str, Any]:
        """What `read` says as rows for the cache: tokens (N, D) each, pooled embeddings (B, P)."""
        read, told = self.read(captions), dict[str, Any]()
        if read.tokens is not None:
            masks = read.mask if read.mask is not None else torch.ones(read.tokens.shape[:2])
            told["tokens"] = [row[: int(real.sum())] for row, real in zip(read.tokens, masks, strict=True)]
        if read.pooled is not None:
            told["pooled"] = read.pooled
        return told

    @torch.no_grad()
    def hear(self, waves: list[Any]) -> Tensor:
        """CLAP embeddings (B, P) of sounds."""
        return embed_audio(self.parts["clap"], audio_features(self.parts["feature_extractor"], waves))

    def prompts(self, config: DiffusionRecipe, rows: StoredRows, caches: Caches) -> Prompts:
        """What the frozen parts make of the captions, and CLAP of the sounds if it is asked for, from the cache."""
        sounds, features = None, self.parts.get("feature_extractor")
        if features is not None and config.clap_condition == "audio":
            sounds = WaveItems(rows, features.sampling_rate, features.nb_max_samples)
        sources: dict[str, Any] = {"text_encoder": config.text_encoder, "clap": config.clap}
        frozen = any(isinstance(source, str) for source in sources.values())
        if config.adapter is not None:  # it reads the real tokens only
            sources["adapter"] = None
        return caches.prompts(rows, sources, self.embed if frozen else None, sounds, self.hear)

    def told(self, batch: dict[str, Any], dropped: Tensor, empty: dict[str, Tensor]) -> Conditioning:
        """The cached embeddings of a batch, ``empty`` where the caption was dropped (B,)."""
        dropped = dropped.to(self.device)
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

    @property
    def widths(self) -> TauWidths:
        """Of tau, as the parts make it."""
        encoder, clap, model, adapter = (
            getattr(self.parts.get(name), "config", None)
            for name in ("text_encoder", "clap", "language_model", "adapter")
        )
        tokens = int(encoder.hidden_size) if encoder is not None else None
        if model is not None:
            assert tokens is not None
            return TauWidths((model.n_embd, tokens), None, pooled_apart=False)
        if adapter is not None:
            tokens = adapter.cross_attention_dim
        if clap is not None:
            return TauWidths(tokens, int(clap.projection_dim), pooled_apart=True)
        return TauWidths(tokens, tokens if getattr(self.encoder, "pooled", False) else None, pooled_apart=False)


def new_listener(config: DiffusionRecipe, captions: Iterable[str], device: torch.device) -> Listener:
    """What the configuration names: new parts that learn, and published ones that do not.

    Raises:
        InputError: if nothing would hear the prompt, or a part is of a wrong kind.
    """
    parts: dict[str, Any] = {}
    if isinstance(config.text_encoder, NewTextEncoder):
        parts["tokenizer"] = _own_tokenizer(config, captions, config.text_encoder.vocabulary)
        parts["text_encoder"] = new_t5(config.text_encoder, len(parts["tokenizer"]))
    elif config.text_encoder is not None:
        parts["text_encoder"], parts["tokenizer"] = load_text_encoder(config.text_encoder)
        parts["text_encoder"].eval().requires_grad_(False)
    if config.clap is not None:
        parts["clap"], parts["clap_tokenizer"], parts["feature_extractor"] = load_clap(config.clap)
        parts["clap"].eval().requires_grad_(False)
    if not parts and config.conditioning == "prompt":
        raise InputError(
            "text_encoder and clap are both null: the denoiser would not hear the prompt. Give one, or set "
            "conditioning: none."
        )
    if config.language_model is not None:
        model = GPT2LMHeadModel.from_pretrained(config.language_model, dtype=torch.float32)
        model.get_input_embeddings().requires_grad_(False)  # it is shown no words, and asked for none
        model.config.max_new_tokens = 8  # the continuation's length, which is where diffusers looks for it
        widths = parts["clap"].config.projection_dim, parts["text_encoder"].config.hidden_size, model.config.n_embd
        parts |= {"projection_model": AudioLDM2ProjectionModel(*widths), "language_model": model}
    if config.adapter is not None:
        parts["adapter"] = ConditionAdapter(parts["text_encoder"].config.hidden_size, config.adapter)
    listener = Listener(parts, config.pooled_tokens, device)
    if config.pooled_tokens and config.clap is None and listener.widths.pooled is None:
        raise InputError("pooled_tokens is true, and there are no tokens of a T5 to take the mean of; leave it out.")
    return listener


def _own_tokenizer(config: DiffusionRecipe, captions: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Learnt once a run: a resumed run must read its embeddings by the same ids."""
    folder: Path = config.output / "tokenizer"
    if not (folder / "tokenizer.json").is_file():
        staging = folder.with_name(f".tokenizer-{os.getpid()}")
        new_tokenizer(captions, vocabulary).save_pretrained(staging)
        with contextlib.suppress(OSError):  # another process of this run was first, with the same tokenizer
            os.replace(staging, folder)
        shutil.rmtree(staging, ignore_errors=True)
    return PreTrainedTokenizerFast.from_pretrained(folder)
