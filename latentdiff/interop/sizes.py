"""The sizes of a model from the shapes of its tensors, by their original names.

What no shape shows (how many heads share a width, the strides of a vocoder) is the published systems' own.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

State = Mapping[str, Tensor]

VOCODER_RATES = {  # kernels -> strides: AudioLDM at 16 kHz and at 48 kHz (audioldm2/utils.py), HiFi-GAN V1 and V2, V3
    (16, 16, 8, 4, 4): [5, 4, 2, 2, 2],
    (12, 10, 8, 4, 4): [6, 5, 4, 2, 2],
    (16, 16, 4, 4): [8, 8, 2, 2],
    (16, 16, 8): [8, 8, 4],
}


def unet_sizes(state: State) -> dict[str, Any]:
    """Arguments of the U-Net whose weights these are, without the number of heads.

    ``cross_attention_dim`` is a number where all levels read one sequence, a list of lists where they read several
    (AudioLDM2; None is self-attention), and the levels' widths where there is none (AudioLDM).
    """
    inputs = _count(state, r"input_blocks\.(\d+)\.")
    resnets = [n for n in range(1, inputs) if f"input_blocks.{n}.0.in_layers.2.weight" in state]
    ends = [n for n in range(1, inputs) if f"input_blocks.{n}.0.op.weight" in state]
    layers = (ends[0] if ends else inputs) - 1
    firsts = resnets[::layers]
    widths = [state[f"input_blocks.{n}.0.in_layers.2.weight"].shape[0] for n in firsts]
    contexts = [_contexts(state, f"input_blocks.{n}", width) for n, width in zip(firsts, widths, strict=True)]
    attends = [bool(context) for context in contexts]
    read = sorted({dim for context in contexts for dim in context if dim is not None})
    sizes: dict[str, Any] = {
        "in_channels": state["input_blocks.0.0.weight"].shape[1],
        "out_channels": state["out.2.weight"].shape[0],
        "block_out_channels": widths,
        "layers_per_block": layers,
        "down_block_types": ["CrossAttnDownBlock2D" if on else "DownBlock2D" for on in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if on else "UpBlock2D" for on in reversed(attends)],
        "transformer_layers_per_block": _count(state, r"middle_block\.1\.transformer_blocks\.(\d+)\."),
        "use_linear_projection": state["middle_block.1.proj_in.weight"].ndim == 2,
        "cross_attention_dim": read[0] if read else widths,
    }
    if max(len(context) for context in contexts) > 1:
        sizes["cross_attention_dim"] = [_contexts(state, "middle_block", widths[-1])] * len(widths)
    if "film_emb.weight" in state:
        sizes |= {
            "class_embed_type": "simple_projection",
            "projection_class_embeddings_input_dim": state["film_emb.weight"].shape[1],
            "class_embeddings_concat": True,
        }
    return sizes


def _contexts(state: State, block: str, width: int) -> list[int | None]:
    """What each attention of a block reads: a sequence of this width, or (None) the block's own values."""
    keys = (f"{block}.{place}.transformer_blocks.0.attn2.to_k.weight" for place in range(1, 9))
    dims = [state[key].shape[1] for key in keys if key in state]
    return [None if dim == width else dim for dim in dims]


def vae_sizes(state: State) -> dict[str, Any]:
    """Arguments of the `AutoencoderKL` whose weights these are."""
    levels = _count(state, r"encoder\.down\.(\d+)\.")
    widths = [state[f"encoder.down.{n}.block.0.conv1.weight"].shape[0] for n in range(levels)]
    return {
        "in_channels": state["encoder.conv_in.weight"].shape[1],
        "out_channels": state["decoder.conv_out.weight"].shape[0],
        "block_out_channels": widths,
        "layers_per_block": _count(state, r"encoder\.down\.0\.block\.(\d+)\."),
        "latent_channels": state["decoder.conv_in.weight"].shape[1],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def vocoder_sizes(state: State) -> dict[str, Any]:
    """Arguments of the HiFi-GAN (type 1) whose weights these are, weight normalisation folded in."""
    kernels = [state[f"ups.{n}.weight"].shape[2] for n in range(_count(state, r"ups\.(\d+)\."))]
    each = _count(state, r"resblocks\.(\d+)\.") // len(kernels)
    blocks = [f"resblocks.{n}.convs1" for n in range(each)]
    return {
        "model_in_dim": state["conv_pre.weight"].shape[1],
        "upsample_initial_channel": state["conv_pre.weight"].shape[0],
        "upsample_kernel_sizes": kernels,
        "upsample_rates": VOCODER_RATES.get(tuple(kernels), [kernel // 2 for kernel in kernels]),
        "resblock_kernel_sizes": [state[f"{block}.0.weight"].shape[2] for block in blocks],
        "resblock_dilation_sizes": [[1, 3, 5]] * each,
        "normalize_before": False,
    }


def clap_text_sizes(state: State) -> dict[str, Any]:
    """Arguments of the `ClapTextConfig` of a CLAP's text branch and projection."""
    words = state["text_branch.embeddings.word_embeddings.weight"]
    return {
        "vocab_size": words.shape[0],
        "hidden_size": words.shape[1],
        "intermediate_size": state["text_branch.encoder.layer.0.intermediate.dense.weight"].shape[0],
        "num_hidden_layers": _count(state, r"text_branch\.encoder\.layer\.(\d+)\."),
        "num_attention_heads": max(1, words.shape[1] // 64),  # RoBERTa's
        "max_position_embeddings": state["text_branch.embeddings.position_embeddings.weight"].shape[0],
        "type_vocab_size": state["text_branch.embeddings.token_type_embeddings.weight"].shape[0],
        "projection_dim": state["text_projection.0.weight"].shape[0],
    }


def clap_audio_sizes(state: State) -> dict[str, Any]:
    """Arguments of the `ClapAudioConfig` of a CLAP's HTSAT branch and projection."""
    patch = state["audio_branch.patch_embed.proj.weight"]
    stages = _count(state, r"audio_branch\.layers\.(\d+)\.")
    tables = [state[f"audio_branch.layers.{n}.blocks.0.attn.relative_position_bias_table"] for n in range(stages)]
    fusion = any(name.startswith("audio_branch.patch_embed.mel_conv2d") for name in state)
    return {
        "patch_embeds_hidden_size": patch.shape[0],
        "patch_embed_input_channels": patch.shape[1],
        "patch_size": patch.shape[2],
        "patch_stride": [patch.shape[2]] * 2,
        "hidden_size": state["audio_branch.norm.weight"].shape[0],
        "depths": [_count(state, rf"audio_branch\.layers\.{n}\.blocks\.(\d+)\.") for n in range(stages)],
        "num_attention_heads": [table.shape[1] for table in tables],
        "window_size": (int(tables[0].shape[0] ** 0.5) + 1) // 2,
        "num_mel_bins": state["audio_branch.bn0.weight"].shape[0],
        "projection_dim": state["audio_projection.0.weight"].shape[0],
        "enable_fusion": fusion,
        "fusion_type": "aff_2d" if fusion else None,
    }


def clip_text_sizes(state: State) -> dict[str, Any]:
    """Arguments of the `CLIPTextConfig` of Stable Diffusion 1's text encoder, by transformers' names."""
    words = state["embeddings.token_embedding.weight"]
    return {
        "vocab_size": words.shape[0],
        "hidden_size": words.shape[1],
        "projection_dim": words.shape[1],
        "intermediate_size": state["encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": _count(state, r"encoder\.layers\.(\d+)\."),
        "num_attention_heads": max(1, words.shape[1] // 64),
        "max_position_embeddings": state["embeddings.position_embedding.weight"].shape[0],
    }


def t5_sizes(state: State) -> dict[str, Any]:
    """Arguments of the `T5Config` of an encoder, by transformers' names; gated as all of T5 1.1 and FLAN are."""
    words = state["shared.weight"]
    layer = "encoder.block.0.layer"
    heads = state[f"{layer}.0.SelfAttention.relative_attention_bias.weight"].shape[1]
    gated = f"{layer}.1.DenseReluDense.wi_0.weight" in state
    return {
        "vocab_size": words.shape[0],
        "d_model": words.shape[1],
        "d_kv": state[f"{layer}.0.SelfAttention.q.weight"].shape[0] // heads,
        "d_ff": state[f"{layer}.1.DenseReluDense.wo.weight"].shape[1],
        "num_heads": heads,
        "num_layers": _count(state, r"encoder\.block\.(\d+)\."),
        "feed_forward_proj": "gated-gelu" if gated else "relu",
    }


def gpt2_sizes(state: State) -> dict[str, Any]:
    """Arguments of the `GPT2Config` of a language model, by transformers' names without their prefix."""
    words = state["wte.weight"]
    return {
        "vocab_size": words.shape[0],
        "n_embd": words.shape[1],
        "n_positions": state["wpe.weight"].shape[0],
        "n_layer": _count(state, r"h\.(\d+)\."),
        "n_head": max(1, words.shape[1] // 64),
        "max_new_tokens": 8,
    }


def _count(state: State, pattern: str) -> int:
    """One more than the greatest number that the pattern finds."""
    found = [int(match[1]) for name in state if (match := re.match(pattern, name))]
    return 1 + max(found) if found else 0
