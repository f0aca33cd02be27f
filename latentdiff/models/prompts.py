"""Prompts -> tau behind one interface: T5, CLIP and CLAP, and the ways in which published systems join them.

Shapes: B prompts, N tokens, D width of a token.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
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
from latentdiff.models.text import Conditioning, encode_tokens, lengthen, mean_of_tokens, tokenize


class PromptEncoder(ABC):
    """What turns prompts into tau."""

    @abstractmethod
    def __call__(self, prompts: list[str], beside: list[str] | None = None) -> Conditioning:
        """tau of the prompts; each means the same alone and among longer ones.

        Args:
            prompts: the texts.
            beside: if these are negative prompts, the prompts that each of them stands beside.
        """


@dataclass(frozen=True)
class T5Prompts(PromptEncoder):
    """A masked token sequence; with ``pooled`` also its mean, for the time embedding."""

    text_encoder: T5EncoderModel
    tokenizer: PreTrainedTokenizerBase
    pooled: bool = False

    def __call__(self, prompts: list[str], beside: list[str] | None = None) -> Conditioning:
        tau = encode_tokens(self.text_encoder, *tokenize(self.tokenizer, prompts))
        return mean_of_tokens(tau) if self.pooled else tau


@dataclass(frozen=True)
class CLIPPrompts(PromptEncoder):
    """Stable Diffusion's sequence: always of the tokenizer's full length, padding and all, and never masked."""

    text_encoder: CLIPTextModel
    tokenizer: PreTrainedTokenizerBase

    def __call__(self, prompts: list[str], beside: list[str] | None = None) -> Conditioning:
        length = self.tokenizer.model_max_length
        tokenize(self.tokenizer, prompts)  # says what is cut off
        batch = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).to(self.text_encoder.device)
        # A causal encoder needs no mask for the real tokens; some (SD 2) were trained with one all the same.
        mask = batch.attention_mask if getattr(self.text_encoder.config, "use_attention_mask", False) else None
        return Conditioning(self.text_encoder(batch.input_ids, attention_mask=mask).last_hidden_state)


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

    def __call__(self, prompts: list[str], beside: list[str] | None = None) -> Conditioning:
        ids, mask = (part[:, : self.length] for part in tokenize(self.tokenizer, prompts))
        tau = encode_tokens(self.text_encoder, ids, mask)
        assert tau.tokens is not None and tau.mask is not None
        tokens = self.adapter(lengthen(tau.tokens * tau.mask[..., None].to(tau.tokens.dtype), self.length))
        said = torch.tensor([bool(prompt) for prompt in prompts], device=tokens.device)
        return Conditioning(torch.where(said[:, None, None], tokens, 0.0))


@dataclass(frozen=True)
class CLAPPrompts(PromptEncoder):
    """CLAP's unit-length embedding for FiLM (AudioLDM, MusicLDM), beside a token sequence if there is one."""

    clap: ClapModel | ClapTextModelWithProjection
    tokenizer: PreTrainedTokenizerBase
    sequence: PromptEncoder | None = None

    def __call__(self, prompts: list[str], beside: list[str] | None = None) -> Conditioning:
        tau = self.sequence(prompts, beside) if self.sequence is not None else Conditioning()
        return Conditioning(tau.tokens, tau.mask, embed_text(self.clap, *tokenize(self.tokenizer, prompts)))


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

    def __call__(self, prompts: list[str], beside: list[str] | None = None) -> Conditioning:
        ids, mask = tokenize(self.tokenizer, prompts)
        lengths = mask.sum(1)
        if beside is not None:
            lengths = torch.maximum(lengths, tokenize(self.tokenizer, beside)[1].sum(1))
        tau = encode_tokens(self.text_encoder, ids, mask)
        assert tau.mask is not None
        clap = embed_text(self.clap, *tokenize(self.clap_tokenizer, prompts))
        joined = self.projection_model(
            hidden_states=clap[:, None],
            hidden_states_1=tau.tokens,
            attention_mask=torch.ones_like(tau.mask[:, :1]),
            attention_mask_1=tau.mask,
        )
        tokens = self._continue(joined.hidden_states, joined.attention_mask, lengths.to(clap.device))
        return Conditioning(tokens, None, None, tau.tokens, tau.mask)

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
