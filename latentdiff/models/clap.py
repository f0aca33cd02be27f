"""CLAP, a joint embedding of sounds and captions (Wu et al. 2023): transformers' `ClapModel`, of any size."""

import json
from typing import cast

import numpy as np
import torch
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from transformers import (
    AutoTokenizer,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextModelWithProjection,
    PreTrainedTokenizerBase,
    RobertaTokenizer,
)

from latentdiff.config import CLAPTower
from latentdiff.models.text import MAX_TOKENS


def new_clap(config: CLAPTower, captions: list[str]) -> tuple[ClapModel, RobertaTokenizer, ClapFeatureExtractor]:
    """A small CLAP, its tokenizer (learnt from the captions) and its audio front end (16 kHz, 64 mels)."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(captions, vocab_size=config.vocabulary, special_tokens=special, show_progress=False)
    learnt = json.loads(bpe._tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in learnt["merges"]]
    tokenizer = RobertaTokenizer(vocab=learnt["vocab"], merges=merges, model_max_length=MAX_TOKENS)
    features = ClapFeatureExtractor(
        feature_size=64,
        sampling_rate=16000,
        hop_length=320,
        max_length_s=10,
        fft_window_size=1024,
        frequency_min=50,
        frequency_max=8000,
        truncation="rand_trunc",
        padding="repeatpad",
    )
    stages = len(config.audio_depths)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": config.text_width,
        "intermediate_size": 2 * config.text_width,
        "num_hidden_layers": config.text_layers,
        "num_attention_heads": max(1, config.text_width // 32),
        "max_position_embeddings": MAX_TOKENS + 2,
        "projection_dim": config.projection,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
    }
    audio = {
        "spec_size": 256,
        "num_mel_bins": 64,
        "patch_embeds_hidden_size": config.audio_width,
        "hidden_size": config.audio_width * 2 ** (stages - 1),
        "depths": list(config.audio_depths),
        "num_attention_heads": [2 * 2**stage for stage in range(stages)],
        "projection_dim": config.projection,
    }
    model = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=config.projection))
    return model, tokenizer, features


def load_clap(source: str) -> tuple[ClapModel, PreTrainedTokenizerBase, ClapFeatureExtractor]:
    """A published CLAP or one of ours, by folder or hub id."""
    return (
        ClapModel.from_pretrained(source),
        AutoTokenizer.from_pretrained(source),
        ClapFeatureExtractor.from_pretrained(source),
    )


def audio_features(extractor: ClapFeatureExtractor, waves: list[np.ndarray]) -> Tensor:
    """Log-mel input (B, 1, frames, mels) of waveforms at the extractor's rate.

    Waves longer than the extractor's window keep their beginning: its own random crop reads NumPy's global
    generator, so the same sound would not give the same embedding twice.
    """
    longest = extractor.nb_max_samples
    inputs = extractor([wave[:longest] for wave in waves], sampling_rate=extractor.sampling_rate, return_tensors="pt")
    return cast(Tensor, inputs.input_features)


def embed_text(clap: ClapModel | ClapTextModelWithProjection, ids: Tensor, mask: Tensor) -> Tensor:
    """Unit-length caption embedding (B, P)."""
    ids, mask = ids.to(clap.device), mask.to(clap.device)
    if isinstance(clap, ClapTextModelWithProjection):  # the text half by itself, as AudioLDM has it
        return _unit(clap(input_ids=ids, attention_mask=mask).text_embeds)
    return _unit(clap.get_text_features(input_ids=ids, attention_mask=mask))


def embed_audio(clap: ClapModel, features: Tensor) -> Tensor:
    """Unit-length audio embedding (B, P) of `audio_features`."""
    return _unit(clap.get_audio_features(input_features=features.to(clap.device)))


def _unit(output: object) -> Tensor:
    """transformers 5 returns an object with `pooler_output`, transformers 4 a tensor."""
    embedding = output if isinstance(output, Tensor) else output.pooler_output  # type: ignore[attr-defined]
    return torch.nn.functional.normalize(embedding, dim=-1)
