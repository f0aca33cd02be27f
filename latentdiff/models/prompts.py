"""Prompts -> tau behind one interface: T5, CLIP and CLAP, and the ways in which published systems join them.

Shapes: B prompts, N tokens, D width of a token.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import AudioLDM2ProjectionModel, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from transformers import (
    ClapModel,
    ClapTextModelWithProjection,
    CLIPTextModel,
    GPT2LMHeadModel,
    PreTrainedTokenizerBase,
    T5EncoderModel,
)

from latentdiff.models.clap import embed_text
from latentdiff.models.text import NOTHING, Conditioning, encode_tokens, lengthen, mean_of_tokens, tokenize


class PromptEncoder(ABC):
    """What turns prompts into tau: what frozen encoders say of them, which can be kept, and what is made of that."""

    def __call__(self, prompts: list[str], beside: list[str] | None = None) -> Conditioning:
        """tau of the prompts; each means the same alone and among longer ones.

        Args:
            prompts: the texts.
            beside: if these are negative prompts, the prompts that each of them stands beside.
        """
        return self.tell(self.read(prompts), prompts, beside)

    @abstractmethod
    def read(self, prompts: list[str], known: Conditioning = NOTHING) -> Conditioning:
        """Tokens with their mask, and pooled embeddings, of all encoders that do not learn; what is known stays."""

    def tell(self, read: Conditioning, prompts: list[str], beside: list[str] | None = None) -> Conditioning:
        """tau of what was read of the prompts. Every part that can learn is called here, and no other."""
        return read


@dataclass(frozen=True)
class T5Prompts(PromptEncoder):
    """A masked token sequence; with ``pooled`` also its mean, for the time embedding."""

    text_encoder: T5EncoderModel
    tokenizer: PreTrainedTokenizerBase
    pooled: bool = False

    def read(self, prompts: list[str], known: Conditioning = NOTHING) -> Conditioning:
        learns = any(parameter.requires_grad for parameter in self.text_encoder.parameters())
        return known if learns else _with_tokens(known, self.text_encoder, self.tokenizer, prompts)

    def tell(self, read: Conditioning, prompts: list[str], beside: list[str] | None = None) -> Conditioning:
        tau = _with_tokens(read, self.text_encoder, self.tokenizer, prompts)
        return mean_of_tokens(tau) if self.pooled else tau


@dataclass(frozen=True)
class CLIPPrompts(PromptEncoder):
    """Stable Diffusion's sequence: always of the tokenizer's full length, padding and all, and never masked."""

    text_encoder: CLIPTextModel
    tokenizer: PreTrainedTokenizerBase

    def read(self, prompts: list[str], known: Conditioning = NOTHING) -> Conditioning:
        if known.tokens is not None:
            return known
        length = self.tokenizer.model_max_length
        tokenize(self.tokenizer, prompts)  # says what is cut off
        batch = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).to(self.text_encoder.device)
        # A causal encoder needs no mask for the real tokens; some (SD 2) were trained with one all the same.
        mask = batch.attention_mask if getattr(self.text_encoder.config, "use_attention_mask", False) else None
        return replace(known, tokens=self.text_encoder(batch.input_ids, attention_mask=mask).last_hidden_state)

    def tell(self, read: Conditioning, prompts: list[str], beside: list[str] | None = None) -> Conditioning:
        return replace(read, mask=None)


class ConditionAdapter(ModelMixin, ConfigMixin):
    """Auffusion's linear layer and norm between a text encoder and the U-Net's cross-attention.

    Why an own class: no library has it, and its checkpoint is a pickle without a format.

    Args:
        condition_dim: width of the text encoder.
        cross_attention_dim: width of the U-Net's cross-attention.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(self, condition_dim: int = 768, cross_attention_dim: int = 768) -> None:
        super().__init__()
        self.proj = nn.Linear(condition_dim, cross_attention_dim)
        self.norm = nn.LayerNorm(cross_attention_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, condition_dim) -> (B, N, cross_attention_dim)."""
        adapted: Tensor = self.norm(self.proj(tokens))
        return adapted


@dataclass(frozen=True)
class AdaptedPrompts(PromptEncoder):
    """Auffusion's sequence: the real tokens, zeros up to ``length``, then the adapter; nothing is masked.

    The empty caption is zeros without the adapter, as its own pipeline has it where no negative prompt is given.
    """

    text_encoder: CLIPTextModel | T5EncoderModel
    tokenizer: PreTrainedTokenizerBase
    adapter: ConditionAdapter
    length: int = 77

    def read(self, prompts: list[str], known: Conditioning = NOTHING) -> Conditioning:
        return _with_tokens(known, self.text_encoder, self.tokenizer, prompts, self.length)

    def tell(self, read: Conditioning, prompts: list[str], beside: list[str] | None = None) -> Conditioning:
        assert read.tokens is not None and read.mask is not None
        tokens = self.adapter(lengthen(read.tokens * read.mask[..., None].to(read.tokens.dtype), self.length))
        said = torch.tensor([bool(prompt) for prompt in prompts], device=tokens.device)
        return Conditioning(torch.where(said[:, None, None], tokens, 0.0))


@dataclass(frozen=True)
class CLAPPrompts(PromptEncoder):
    """CLAP's unit-length embedding for FiLM (AudioLDM, MusicLDM), beside a token sequence if there is one."""

    clap: ClapModel | ClapTextModelWithProjection
    tokenizer: PreTrainedTokenizerBase
    sequence: PromptEncoder | None = None

    def read(self, prompts: list[str], known: Conditioning = NOTHING) -> Conditioning:
        read = self.sequence.read(prompts, known) if self.sequence is not None else known
        return _with_clap(read, self.clap, self.tokenizer, prompts)

    def tell(self, read: Conditioning, prompts: list[str], beside: list[str] | None = None) -> Conditioning:
        return self.sequence.tell(read, prompts, beside) if self.sequence is not None else read


@dataclass(frozen=True)
class AudioLDM2Prompts(PromptEncoder):
    """AudioLDM2's two sequences: T5's tokens, and those that GPT-2 continues CLAP and T5 with (Liu et al. 2023).

    The continuation is of hidden states, not of words: each step appends the last one. Positions are counted over
    real tokens only, so that padding moves nothing; diffusers counts the padding of a batch too. One padding is
    kept, because the published weights are used with it: a negative prompt is as long as the prompt it stands beside.
    """

    clap: ClapModel
    clap_tokenizer: PreTrainedTokenizerBase
    text_encoder: T5EncoderModel
    tokenizer: PreTrainedTokenizerBase
    projection_model: AudioLDM2ProjectionModel
    language_model: GPT2LMHeadModel

    def read(self, prompts: list[str], known: Conditioning = NOTHING) -> Conditioning:
        read = _with_tokens(known, self.text_encoder, self.tokenizer, prompts)
        return _with_clap(read, self.clap, self.clap_tokenizer, prompts)

    def tell(self, read: Conditioning, prompts: list[str], beside: list[str] | None = None) -> Conditioning:
        assert read.mask is not None and read.pooled is not None
        lengths = read.mask.sum(1)
        if beside is not None:
            lengths = torch.maximum(lengths, tokenize(self.tokenizer, beside)[1].sum(1).to(lengths.device))
        joined = self.projection_model(
            hidden_states=read.pooled[:, None],
            hidden_states_1=read.tokens,
            attention_mask=torch.ones_like(read.mask[:, :1]),
            attention_mask_1=read.mask,
        )
        tokens = self._continue(joined.hidden_states, joined.attention_mask, lengths)
        return Conditioning(tokens, None, None, read.tokens, read.mask)

    def _continue(self, sequence: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        """The next hidden states (B, 8, D) after [start, CLAP, end, start, T5 tokens, end], (B, 5 + N, D)."""
        place = torch.arange(sequence.shape[1], device=sequence.device).repeat(len(sequence), 1)
        place[:, -1] = 4 + lengths
        count = int(getattr(self.language_model.config, "max_new_tokens", None) or 8)
        for _ in range(count):
            states = self.language_model(
                inputs_embeds=sequence,
                attention_mask=mask,
                position_ids=place,
                output_hidden_states=True,
                use_cache=False,
                logits_to_keep=1,  # no words are wanted, and those of all places cost more than all else here
            ).hidden_states[-1]
            sequence = torch.cat([sequence, states[:, -1:]], dim=1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            place = torch.cat([place, place[:, -1:] + 1], dim=1)
        return sequence[:, -count:]


def _with_tokens(
    known: Conditioning, encoder: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[str], limit: int | None = None
) -> Conditioning:
    """The same with the tokens of the prompts, if they are not known; at most ``limit`` of each."""
    if known.tokens is not None:
        return known
    tau = encode_tokens(encoder, *(part[:, :limit] for part in tokenize(tokenizer, prompts)))
    return replace(known, tokens=tau.tokens, mask=tau.mask)


def _with_clap(known: Conditioning, clap: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> Conditioning:
    """The same with CLAP's embedding of the prompts, or with that of their sounds if it is known."""
    if known.pooled is not None:
        return known
    return replace(known, pooled=embed_text(clap, *tokenize(tokenizer, prompts)))


def prompt_encoder(parts: Mapping[str, Any], pooled: bool) -> PromptEncoder:
    """The one that a pipeline's components make up.

    Args:
        parts: components by their names in the pipeline.
        pooled: the U-Net wants an embedding beside its time embedding.
    """
    clap, encoder, tokenizer = parts.get("clap"), parts.get("text_encoder"), parts.get("tokenizer")
    if parts.get("language_model") is not None:
        names = ("clap", "clap_tokenizer", "text_encoder", "tokenizer", "projection_model", "language_model")
        return AudioLDM2Prompts(*(parts[name] for name in names))
    sequence: PromptEncoder | None = None
    if encoder is not None and parts.get("adapter") is not None:
        sequence = AdaptedPrompts(encoder, tokenizer, parts["adapter"])
    elif isinstance(encoder, CLIPTextModel):
        sequence = CLIPPrompts(encoder, tokenizer)
    elif encoder is not None:
        sequence = T5Prompts(encoder, tokenizer, pooled and clap is None)
    if clap is not None:
        return CLAPPrompts(clap, parts["clap_tokenizer"], sequence)
    assert sequence is not None
    return sequence
