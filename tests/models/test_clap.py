"""CLAP: shapes, unit length, plain transformers, and front end without chance."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

from latentdiff.config import CLAPTower
from latentdiff.models.clap import audio_features, embed_audio, embed_text, load_clap, new_clap
from latentdiff.models.text import tokenize

CAPTIONS = ["a dog barks twice", "rain on a roof", "two barks of a dog", "a high piano note"]
TOWER = CLAPTower(text_width=32, text_layers=1, audio_width=16, audio_depths=(1, 1), projection=24, vocabulary=300)


@pytest.fixture(scope="module")
def clap() -> tuple[ClapModel, Any, ClapFeatureExtractor]:
    torch.manual_seed(0)
    model, tokenizer, features = new_clap(TOWER, CAPTIONS)
    return model.eval(), tokenizer, features


def noise(seconds: float) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal(round(16000 * seconds))).astype(np.float32)


@torch.no_grad()
def test_embeddings_are_of_unit_length(clap: tuple[ClapModel, Any, ClapFeatureExtractor]) -> None:
    model, tokenizer, extractor = clap
    features = audio_features(extractor, [noise(0.5), noise(2.0), np.zeros(8000, np.float32)])
    assert features.shape == (3, 1, 501, 64)  # ten seconds, a hop of 320 at 16 kHz
    sounds = embed_audio(model, features)
    texts = embed_text(model, *tokenize(tokenizer, CAPTIONS))
    assert sounds.shape == (3, 24) and texts.shape == (4, 24)
    for embedding in (sounds, texts):
        assert torch.allclose(embedding.norm(dim=-1), torch.ones(len(embedding)), atol=1e-5)
    assert (texts[0] - texts[1]).abs().max() > 1e-3


def test_any_prompt_is_known(clap: tuple[ClapModel, Any, ClapFeatureExtractor]) -> None:
    """Byte-level: every text has tokens, and comes back from them."""
    _, tokenizer, _ = clap
    for prompt in ("xylophone quiz", "Zweihänder", "犬が吠える", ""):
        ids = tokenizer(prompt).input_ids
        assert tokenizer.unk_token_id not in ids
        assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == prompt
    assert len(tokenizer) <= TOWER.vocabulary


@torch.no_grad()
def test_a_caption_alone_equals_it_in_a_mixed_batch(
    clap: tuple[ClapModel, Any, ClapFeatureExtractor],
) -> None:
    model, tokenizer, _ = clap
    prompts = ["dog", "rain on a roof and then a high piano note and two barks", ""]
    batch = embed_text(model, *tokenize(tokenizer, prompts))
    for i, prompt in enumerate(prompts):
        alone = embed_text(model, *tokenize(tokenizer, [prompt]))
        assert (batch[i] - alone[0]).abs().max() < 1e-5


@pytest.mark.parametrize("seconds", [0.3, 10.0, 12.5])
def test_front_end_is_deterministic(clap: tuple[ClapModel, Any, ClapFeatureExtractor], seconds: float) -> None:
    """transformers crops longer sounds at random, by NumPy's global generator."""
    _, _, extractor = clap
    wave = noise(seconds)
    np.random.seed(1)
    first = audio_features(extractor, [wave])
    np.random.seed(2)
    again = audio_features(extractor, [wave])
    assert torch.equal(first, again)
    if seconds > 10:
        assert torch.equal(first, audio_features(extractor, [wave[:160000]]))
    together = audio_features(extractor, [noise(1.0), wave])
    assert torch.equal(together[1:], first)


@torch.no_grad()
def test_loads_in_plain_transformers(clap: tuple[ClapModel, Any, ClapFeatureExtractor], tmp_path: Path) -> None:
    for thing in clap:
        thing.save_pretrained(tmp_path)
    model, tokenizer, extractor = clap
    plain = ClapModel.from_pretrained(tmp_path).eval()
    plain_tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    plain_extractor = ClapFeatureExtractor.from_pretrained(tmp_path)
    ours, our_tokenizer, our_extractor = load_clap(str(tmp_path))

    wave = noise(1.0)
    features = audio_features(extractor, [wave])
    inputs = plain_extractor([wave], sampling_rate=16000, return_tensors="pt")
    assert torch.equal(inputs.input_features, features)
    assert torch.equal(audio_features(our_extractor, [wave]), features)
    for caption in [*CAPTIONS, "Something ELSE, 3 times!"]:
        ids = tokenizer(caption).input_ids
        assert plain_tokenizer(caption).input_ids == our_tokenizer(caption).input_ids == ids
    ids, mask = tokenize(tokenizer, CAPTIONS)
    for other in (plain, ours.eval()):
        assert torch.equal(embed_audio(other, features), embed_audio(model, features))
        assert torch.equal(embed_text(other, ids, mask), embed_text(model, ids, mask))


def test_both_towers_learn(clap: tuple[ClapModel, Any, ClapFeatureExtractor]) -> None:
    model, tokenizer, extractor = clap
    sounds = embed_audio(model, audio_features(extractor, [noise(1.0)]))
    texts = embed_text(model, *tokenize(tokenizer, ["a dog"]))
    (sounds * texts).sum().backward()
    for tower in (model.audio_model, model.text_model, model.audio_projection, model.text_projection):
        gradients = [p.grad for p in tower.parameters() if p.grad is not None]
        assert gradients and any(float(g.abs().max()) > 0 for g in gradients)
        assert all(torch.isfinite(g).all() for g in gradients)
    model.zero_grad()
