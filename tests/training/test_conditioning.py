"""tau in training: what the frozen parts say is kept, what learns gets gradients, and both agree with the pipelines."""

from typing import Any

import pytest
import torch
from diffusers import AudioLDM2ProjectionModel
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5EncoderModel

from latentdiff.data.items import collate
from latentdiff.models.prompts import ConditionAdapter, prompt_encoder
from latentdiff.training.conditioning import Listener, TauWidths
from tests.interop import published

PROMPTS = ["dog", "a violin, rain on a roof", ""]


def parts_of(name: str) -> dict[str, Any]:
    """Of a published system, very small, what it trains being trainable."""
    torch.manual_seed(0)
    clap, clip = published.clap(16), published.clip_text()
    t5 = T5EncoderModel(T5Config(vocab_size=100, d_model=24, d_ff=32, d_kv=8, num_heads=1, num_layers=1))
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=12, n_head=1, n_layer=1, vocab_size=100, n_positions=99))
    for frozen in (clap, clip, t5, gpt2.get_input_embeddings()):
        frozen.eval().requires_grad_(False)
    heard = {"clap": clap, "clap_tokenizer": published.roberta()}
    told = {"text_encoder": t5, "tokenizer": published.t5_tokenizer()}
    clips = {"text_encoder": clip, "tokenizer": published.clip_tokenizer()}
    return {
        "audioldm": heard,
        "audioldm2": {**heard, **told, "projection_model": AudioLDM2ProjectionModel(16, 24, 12),
                      "language_model": gpt2.eval()},
        "auffusion": {**clips, "adapter": ConditionAdapter(8, 10)},
        "stable_diffusion": clips,
        "tango": told,
    }[name]  # fmt: skip


WIDTHS = {
    "audioldm": TauWidths(None, 16, pooled_apart=True),
    "audioldm2": TauWidths((12, 24), None, pooled_apart=False),
    "auffusion": TauWidths(10, None, pooled_apart=False),
    "stable_diffusion": TauWidths(8, None, pooled_apart=False),
    "tango": TauWidths(24, None, pooled_apart=False),
}


@pytest.mark.parametrize("name", WIDTHS)
def test_what_is_cached_and_told_is_what_a_pipeline_hears(name: str) -> None:
    parts = parts_of(name)
    listener = Listener(parts, False, torch.device("cpu"))
    assert listener.widths == WIDTHS[name]
    said = listener.embed(PROMPTS)
    rows = [{key: values[i] for key, values in said.items()} for i in range(len(PROMPTS))]
    for row in rows:
        row |= {"length": torch.tensor(len(row["tokens"]))} if "tokens" in row else {}
    for dropped in (torch.tensor([False, False, False]), torch.tensor([True, False, False])):
        captions = ["" if drop else prompt for drop, prompt in zip(dropped, PROMPTS, strict=True)]
        told = listener.told(collate(rows), dropped, rows[2])
        tau, wanted = listener.tell(told, captions), prompt_encoder(parts, False)(captions)
        for ours, theirs, mask in ((tau.tokens, wanted.tokens, wanted.mask), (tau.pooled, wanted.pooled, None),
                                   (tau.tokens_1, wanted.tokens_1, wanted.mask_1)):  # fmt: skip
            assert (ours is None) == (theirs is None)
            if ours is not None and theirs is not None:
                real = torch.ones(theirs.shape[:1]) if mask is None else mask
                longest = real.shape[-1] if mask is not None else None
                ours = ours[:, :longest] if mask is not None else ours
                shape = (*real.shape, *[1] * (theirs.ndim - real.ndim))
                torch.testing.assert_close(ours * real.view(shape), theirs * real.view(shape), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["audioldm2", "auffusion"])
def test_what_learns_gets_gradients_and_nothing_else(name: str) -> None:
    listener = Listener(parts_of(name), False, torch.device("cpu"))
    tau = listener.tell(listener.read(PROMPTS), PROMPTS)
    assert tau.tokens is not None
    (tau.tokens * torch.randn_like(tau.tokens)).sum().backward()
    learning = {"audioldm2": {"projection_model", "language_model"}, "auffusion": {"adapter"}}[name]
    for part, network in listener.networks.items():
        for key, parameter in network.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, (part, key)
        assert (part in learning) == any(parameter.requires_grad for parameter in network.parameters())
