"""Prompts -> tau: T5 token sequences (cross-attention) and CLAP embeddings (FiLM), or both.

Shapes: B batch, N tokens, D width of the T5 encoder, P width of the CLAP projection.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    CLIPTextModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from latentdiff.config import NewTextEncoder
from latentdiff.errors import InputError

logger = logging.getLogger(__name__)

MAX_TOKENS = 64
"""Longest prompt of a text encoder trained here, in tokens."""
ENCODERS: dict[str, Any] = {"t5": T5EncoderModel, "clip": CLIPTextModel, "clip_text_model": CLIPTextModel}
"""By the ``model_type`` of their ``config.json``; CLIP's whole model has its text half in it."""


@dataclass(frozen=True)
class Conditioning:
    """tau: what the denoiser is told. At least one of the two parts is there."""

    tokens: Tensor | None = None
    """(B, N, D), read by cross-attention."""
    mask: Tensor | None = None
    """(B, N), 1 where a token is real."""
    pooled: Tensor | None = None
    """(B, P), joined to the time embedding (FiLM, as AudioLDM has it): of CLAP, or the mean of the tokens."""
    tokens_1: Tensor | None = None
    """(B, M, E), the second sequence of a U-Net with two cross-attention streams (AudioLDM2)."""
    mask_1: Tensor | None = None
    """(B, M)."""
    guidance: Tensor | None = None
    """(B, W), the guidance scale as a few-step student hears it, also joined to the time embedding."""

    def unet_arguments(self) -> dict[str, Any]:
        """The keyword arguments under which diffusers' U-Nets know these."""
        arguments: dict[str, Any] = {
            "encoder_hidden_states": self.tokens,
            "encoder_attention_mask": self.mask,
            "class_labels": self.pooled,
        }
        if self.guidance is not None:
            arguments["timestep_cond"] = self.guidance
        if self.tokens_1 is not None:
            arguments |= {"encoder_hidden_states_1": self.tokens_1, "encoder_attention_mask_1": self.mask_1}
        return arguments

    def repeat(self, times: int) -> "Conditioning":
        """Each row ``times`` times in a row: (B, ...) -> (B * times, ...)."""
        return self._each(lambda part: part.repeat_interleave(times, dim=0))

    def rows(self, index: slice) -> "Conditioning":
        """Some rows of the batch."""
        return self._each(lambda part: part[index])

    def to(self, dtype: torch.dtype) -> "Conditioning":
        """What is embedded in another precision; masks stay as they are."""
        return self._each(lambda part: part.to(dtype) if part.is_floating_point() else part)

    def _each(self, change: Any) -> "Conditioning":
        parts = (self.tokens, self.mask, self.pooled, self.tokens_1, self.mask_1, self.guidance)
        return Conditioning(*(None if part is None else change(part) for part in parts))


NOTHING = Conditioning()


def new_tokenizer(captions: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A lower-casing byte-pair tokenizer (Sennrich et al. 2016) with T5's special tokens, learnt from captions.

    T5's own unigram model is learnt from strings that several words share: of some hundred words of captions "three" is
    spelled then, letter by letter. Pairs are joined by how often they are met, so that frequent words are one piece;
    every letter of the alphabet is one too, so that no English word is unknown.
    Marks that part or end sentences are not read: "three times, a dog barks" means what it does without the comma, and
    a small encoder that meets commas in few captions takes them for what those captions are about.
    """
    tokenizer = Tokenizer(BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[\s.,:;!?]+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "</s>", "<unk>"],
        min_frequency=2,
        initial_alphabet=list("▁abcdefghijklmnopqrstuvwxyz0123456789-'"),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=MAX_TOKENS,
        padding_side="right",
    )


def new_t5(config: NewTextEncoder, vocabulary: int) -> T5EncoderModel:
    """A T5 encoder (pre-norm, relative positions, GELU)."""
    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=config.width,
            d_kv=config.head_width or config.width // config.heads,
            d_ff=config.inner_width or 2 * config.width,
            num_layers=config.layers,
            num_heads=config.heads,
            feed_forward_proj="gated-gelu" if config.gated else "gelu",
            dropout_rate=0.0,
            relative_attention_max_distance=MAX_TOKENS,
        )
    )


def load_text_encoder(source: str) -> tuple[T5EncoderModel | CLIPTextModel, PreTrainedTokenizerBase]:
    """A published T5 (flan-t5 for example), one of ours, or the text half of a CLIP, by folder or hub id.

    Raises:
        InputError: if it is of another kind.
    """
    kind = AutoConfig.from_pretrained(source).model_type
    if kind not in ENCODERS:
        raise InputError(f"{source} holds a model of the type {kind}; a text encoder is one of {', '.join(ENCODERS)}.")
    return ENCODERS[kind].from_pretrained(source, dtype=torch.float32), AutoTokenizer.from_pretrained(source)


def tokenize(tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Token ids (B, N) and mask (B, N), padded to the longest prompt; says what it had to cut off."""
    limit = min(tokenizer.model_max_length, 512)
    for prompt in prompts:
        ids = tokenizer(prompt, verbose=False).input_ids
        if len(ids) > limit:
            lost = tokenizer.decode(ids[limit - 1 :], skip_special_tokens=True)
            logger.warning("the prompt is longer than %d tokens; not read: '%s'", limit, lost)
    batch = tokenizer(prompts, padding="longest", truncation=True, max_length=limit, return_tensors="pt")
    return batch.input_ids, batch.attention_mask


def encode_tokens(encoder: T5EncoderModel | CLIPTextModel, ids: Tensor, mask: Tensor) -> Conditioning:
    """tau as a token sequence, of ids (B, N) and mask (B, N)."""
    ids, mask = ids.to(encoder.device), mask.to(encoder.device)
    return Conditioning(tokens=encoder(input_ids=ids, attention_mask=mask).last_hidden_state, mask=mask)


def mean_of_tokens(tau: Conditioning) -> Conditioning:
    """The same tau with the mean of its real tokens as its pooled part."""
    assert tau.tokens is not None and tau.mask is not None
    real = tau.mask[..., None].to(tau.tokens.dtype)
    return Conditioning(tau.tokens, tau.mask, (tau.tokens * real).sum(1) / real.sum(1))


def concatenate(first: Conditioning, second: Conditioning) -> Conditioning:
    """The rows of both; the shorter token sequence is padded and masked. Neither has a guidance scale as an input."""
    tokens, mask = _join(first.tokens, first.mask, second.tokens, second.mask)
    tokens_1, mask_1 = _join(first.tokens_1, first.mask_1, second.tokens_1, second.mask_1)
    pooled = None
    if first.pooled is not None and second.pooled is not None:
        pooled = torch.cat([first.pooled, second.pooled])
    return Conditioning(tokens, mask, pooled, tokens_1, mask_1)


def _join(
    first: Tensor | None, first_mask: Tensor | None, second: Tensor | None, second_mask: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Tokens (B, N, D) and mask (B, N) of both batches; sequences without a mask are of one length."""
    if first is None or second is None:
        return None, None
    if first_mask is None or second_mask is None:
        return torch.cat([first, second]), None
    length = max(first.shape[1], second.shape[1])
    tokens = torch.cat([lengthen(part, length) for part in (first, second)])
    return tokens, torch.cat([lengthen(part, length) for part in (first_mask, second_mask)])


def lengthen(part: Tensor, length: int) -> Tensor:
    """Zeros up to ``length`` along the token axis (1)."""
    padding = part.new_zeros(part.shape[0], length - part.shape[1], *part.shape[2:])
    return torch.cat([part, padding], dim=1)
