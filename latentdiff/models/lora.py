"""Low-rank matrices beside a U-Net's own (LoRA, Hu et al. 2021), trained by peft, in diffusers' file layout."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from latentdiff.errors import InputError
from latentdiff.names import LORA_FILE

_PREFIX, _METADATA = "unet.", "lora_adapter_metadata"
_NAME = "default"
_OTHER_KINDS = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save")
"""Entries of peft's that would change what the two matrices mean."""
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"


def add_lora(unet: nn.Module, rank: int, alpha: int | None, targets: Sequence[str]) -> None:
    """New matrices in a frozen U-Net; they alone learn, and change nothing yet: B is zero.

    Raises:
        InputError: if the U-Net has no such layers, or they are none that can have them.
    """
    from peft import LoraConfig, inject_adapter_in_model  # an extra, and slow to import

    config = LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=list(targets))
    try:
        inject_adapter_in_model(config, unet, adapter_name=_NAME)
    except ValueError as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise InputError(f"lora.targets is {list(targets)}, which does not fit this U-Net: {reason}.") from error


def save_lora(unet: nn.Module, folder: Path) -> None:
    """Write what `add_lora` added as diffusers' ``load_lora_weights`` and `merge_lora` read it."""
    from peft.utils import get_peft_model_state_dict

    state = get_peft_model_state_dict(unet, adapter_name=_NAME)
    config = cast(Any, unet).peft_config[_NAME]
    said = {"r": config.r, "lora_alpha": config.lora_alpha, "target_modules": sorted(config.target_modules)}
    metadata = {_METADATA: json.dumps({_PREFIX + key: value for key, value in said.items()}), "format": "pt"}
    folder.mkdir(parents=True)
    save_file(
        {_PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in state.items()},
        folder / LORA_FILE,
        metadata,
    )


@torch.no_grad()
def merge_lora(unet: nn.Module, source: Path) -> None:
    """Add a saved LoRA to a U-Net's weights: W + alpha / rank B A. peft is not needed for it.

    Args:
        unet: is changed, or left as it was.
        source: a folder with ``pytorch_lora_weights.safetensors``, or such a file.

    Raises:
        InputError: if there is none, or it is of another U-Net.
    """
    state, said = _read(source)
    _require_fitting(unet, state, source)
    for name in sorted(name.removesuffix(_DOWN) for name in state if name.endswith(_DOWN)):
        down, up = state[name + _DOWN].float(), state[name + _UP].float()
        weight = cast(Tensor, unet.get_submodule(name).weight)
        scale = said.get("lora_alpha", len(down)) / len(down)
        change = (scale * up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
        weight.copy_((weight.float() + change.to(weight.device)).to(weight.dtype))


def _read(source: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The U-Net's part of a file, and what its writer said of it."""
    file = source / LORA_FILE if source.is_dir() else source
    if not file.is_file():
        raise InputError(f"{source} is no LoRA: it has no {LORA_FILE}; training with lora writes OUTPUT/lora.")
    try:
        with safe_open(file, "pt") as opened:
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no dictionary)
            said = json.loads((opened.metadata() or {}).get(_METADATA, "{}"))
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {' '.join(str(error).split())[:200].rstrip('.')}.") from error
    foreign = [name for name in state if not (name.startswith(_PREFIX) and name.endswith((_DOWN, _UP)))]
    if foreign or not state:
        what = f"{foreign[0]} is none" if foreign else "there are none"
        raise InputError(f"{file} is not a LoRA of a U-Net in diffusers' layout (unet.*{_DOWN}): {what}.")
    own = {name.removeprefix(_PREFIX): value for name, value in said.items()} if isinstance(said, dict) else {}
    if other := [name for name in _OTHER_KINDS if own.get(name)]:
        raise InputError(f"{file} is a LoRA with {other[0]}, which is not known here.")
    return {name.removeprefix(_PREFIX): tensor for name, tensor in state.items()}, own


def _require_fitting(unet: nn.Module, state: dict[str, Tensor], source: Path) -> None:
    layers = dict(unet.named_modules())
    for name in sorted({name.removesuffix(_DOWN).removesuffix(_UP) for name in state}):
        layer, down, up = layers.get(name), state.get(name + _DOWN), state.get(name + _UP)
        if down is None or up is None:
            raise InputError(f"the LoRA {source} is not whole: {name} has one matrix of two.")
        weight = getattr(layer, "weight", None)
        if weight is None:
            raise InputError(f"the LoRA {source} is of another model: this one's U-Net has no layer {name}.")
        found = (*up.shape[:1], *down.shape[1:])
        if found != tuple(weight.shape) or up.shape[1] != down.shape[0]:
            raise InputError(
                f"the LoRA {source} is of another model: its {name} is of the shape {list(found)}, and that of this "
                f"one's U-Net {list(weight.shape)}."
            )
