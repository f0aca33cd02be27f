"""The names of our components' weights in the code of CompVis and AudioLDM, and in LAION-CLAP's.

Each table goes from ours to theirs. The way in uses it backwards: the model is built from the sizes of the tensors,
and every one of its names is looked up.
"""

import re
from collections.abc import Iterable

_WHOLE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding": "film_emb",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE = [
    (r"^encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.down.\1.block."),
    (r"^encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
    (r"^decoder\.up_blocks\.(\d+)\.resnets\.", r"decoder.up.\1.block."),
    (r"^decoder\.up_blocks\.(\d+)\.upsamplers\.0\.", r"decoder.up.\1.upsample."),
    (r"mid_block\.resnets\.0\.", "mid.block_1."),
    (r"mid_block\.resnets\.1\.", "mid.block_2."),
    (r"mid_block\.attentions\.0\.group_norm\.", "mid.attn_1.norm."),
    (r"mid_block\.attentions\.0\.to_([qkv])\.", r"mid.attn_1.\1."),
    (r"mid_block\.attentions\.0\.to_out\.0\.", "mid.attn_1.proj_out."),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
]
_CLAP = [
    (r"^text_model\.", "text_branch."),
    (r"^(text|audio)_projection\.linear1\.", r"\1_projection.0."),
    (r"^(text|audio)_projection\.linear2\.", r"\1_projection.2."),
]
_CLAP_AUDIO = [
    (r"^audio_model\.audio_encoder\.", "audio_branch."),
    (r"\.batch_norm\.", ".bn0."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.attention\.self\.(query|key|value)\.", r".attn.qkv[\1]."),
    (r"\.attention\.self\.", ".attn."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
]


def unet_names(ours: Iterable[str]) -> dict[str, str]:
    """Ours -> theirs, of a `UNet2DConditionModel` or AudioLDM2's with several attentions a block.

    Their blocks are numbered through all levels: an input block a residual block, and one a downsampling.
    """
    names = list(ours)
    layers = 1 + max(int(name.split(".")[3]) for name in names if re.match(r"down_blocks\.\d+\.resnets\.", name))
    attentions: dict[str, int] = {}
    for name in names:
        if match := re.match(r"(.*blocks?(?:\.\d+)?)\.attentions\.(\d+)\.", name):
            attentions[match[1]] = max(attentions.get(match[1], 0), int(match[2]) + 1)
    return {name: _unet_name(name, layers, attentions) for name in names}


def _unet_name(name: str, layers: int, attentions: dict[str, int]) -> str:
    stem, _, leaf = name.rpartition(".")
    if stem in _WHOLE:
        return f"{_WHOLE[stem]}.{leaf}"
    match = re.match(r"(down_blocks|up_blocks|mid_block)(?:\.(\d+))?\.(\w+)\.(\d+)\.(.*)", name)
    assert match is not None, name
    side, level, kind, index, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    first = level * (layers + 1)
    total = attentions.get(side if side == "mid_block" else f"{side}.{level}", 0)
    if kind == "resnets":
        part, _, leaf = rest.rpartition(".")
        rest = f"{_RESNET[part]}.{leaf}"
    if side == "mid_block":
        place = {"attentions": 1 + index, "resnets": index * (1 + total)}[kind]
        return f"middle_block.{place}.{rest}"
    each = total // (layers if side == "down_blocks" else layers + 1)
    if kind == "downsamplers":
        return f"input_blocks.{first + layers + 1}.0.op.{leaf}"
    if kind == "upsamplers":
        return f"output_blocks.{first + layers}.{1 + each}.conv.{leaf}"
    block, place = (index, 0) if kind == "resnets" else (index // each, 1 + index % each)
    return (
        f"input_blocks.{first + 1 + block}.{place}.{rest}"
        if side == "down_blocks"
        else f"output_blocks.{first + block}.{place}.{rest}"
    )


def vae_names(ours: Iterable[str]) -> dict[str, str]:
    """Ours -> theirs, of an `AutoencoderKL`; they number the decoder's levels from the smallest size's end."""
    names = list(ours)
    levels = 1 + max(int(name.split(".")[2]) for name in names if name.startswith("decoder.up_blocks."))
    turned = {
        name: re.sub(r"^decoder\.up_blocks\.(\d+)", lambda m: f"decoder.up_blocks.{levels - 1 - int(m[1])}", name)
        for name in names
    }
    return {name: _replaced(other, _VAE) for name, other in turned.items()}


def clap_names(ours: Iterable[str]) -> dict[str, str]:
    """Ours -> theirs, of a `ClapModel` or its text half; ``qkv[query]`` is the first third of ``qkv``."""
    return {name: _replaced(name, _CLAP_AUDIO if name.startswith("audio_model.") else _CLAP) for name in ours}


def _replaced(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, other in rules:
        name = re.sub(pattern, other, name)
    return name
