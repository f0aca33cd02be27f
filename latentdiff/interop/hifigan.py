"""HiFi-GAN's own files (Kong et al. 2020): ``g_XXXXXXXX`` with ``config.json``, to and from `SpeechT5HifiGan`.

Weight normalisation keeps a kernel as direction v and length g; its keys are ``weight_g`` and ``weight_v``, or
``parametrizations.weight.original0`` and ``original1`` since PyTorch 2. It is folded into the kernel on the way in.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from latentdiff.errors import InputError
from latentdiff.interop.pickles import read_pickle
from latentdiff.interop.states import require_same_keys
from latentdiff.media.mel import MelConfig
from latentdiff.models.vocoder import build_vocoder


def vocoder_from_file(file: Path, config: Path) -> SpeechT5HifiGan:
    """The generator of an original checkpoint, with the mel that its configuration says.

    Raises:
        InputError: if either file is not what it should be.
    """
    try:
        h = json.loads(config.read_text(encoding="utf-8"))
        sizes = _sizes(h)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{config} is not a HiFi-GAN's configuration ({error}).") from None
    state = read_pickle(file)
    return vocoder_from_state(state.get("generator", state), sizes, str(file))


def vocoder_from_state(state: dict[str, Tensor], config: SpeechT5HifiGanConfig, source: str) -> SpeechT5HifiGan:
    """A vocoder of a generator's tensors by their original names.

    Raises:
        InputError: with both lists, if names are missing or unexpected.
    """
    vocoder = build_vocoder(config)
    plain = without_weight_norm(state)
    ours = {f"upsampler.{name[4:]}" if name.startswith("ups.") else name: tensor for name, tensor in plain.items()}
    ours |= {"mean": vocoder.mean, "scale": vocoder.scale}
    require_same_keys(ours, vocoder.state_dict(), source)
    vocoder.load_state_dict(ours)
    return vocoder.eval()


def generator_state(vocoder: SpeechT5HifiGan) -> dict[str, Tensor]:
    """A vocoder's tensors by their original names, with weight normalisation as the original code has it.

    Raises:
        InputError: if it normalises its input, which the original cannot.
    """
    if vocoder.config.normalize_before and not (bool((vocoder.mean == 0).all()) and bool((vocoder.scale == 1).all())):
        raise InputError("the vocoder normalises its input, which an original HiFi-GAN file cannot say.")
    state = {}
    for name, tensor in vocoder.state_dict().items():
        name = name.replace("upsampler.", "ups.", 1)
        if name in ("mean", "scale"):
            continue
        if name.endswith(".weight"):
            stem = name.removesuffix("weight")
            state[f"{stem}weight_g"] = _length(tensor)
            state[f"{stem}weight_v"] = tensor.clone()
        else:
            state[name] = tensor.clone()
    return state


def without_weight_norm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors with direction and length multiplied out, under both spellings."""
    spelt = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in state.items()
    }
    plain = {}
    for name, tensor in spelt.items():
        if name.endswith("weight_v"):
            length = spelt.get(f"{name[:-1]}g")
            if length is None:
                raise InputError(f"the weights have {name} and no {name[:-1]}g; they are not whole.")
            plain[name[:-2]] = tensor * (length / _length(tensor))  # a ratio of exactly 1 where g is the norm of v
        elif not name.endswith("weight_g"):
            plain[name] = tensor
    return plain


def original_config(vocoder: SpeechT5HifiGan) -> dict[str, Any]:
    """HiFi-GAN's ``config.json`` of a vocoder that carries its mel.

    Raises:
        InputError: if it carries none.
    """
    config, definition = vocoder.config, getattr(vocoder.config, "mel", None)
    if not definition:
        raise InputError("the vocoder carries no mel definition in its config.json, which an original file needs.")
    mel = MelConfig.from_dict(definition)
    return {
        "resblock": getattr(config, "resblock", "1"),
        "upsample_rates": config.upsample_rates,
        "upsample_kernel_sizes": config.upsample_kernel_sizes,
        "upsample_initial_channel": config.upsample_initial_channel,
        "resblock_kernel_sizes": config.resblock_kernel_sizes,
        "resblock_dilation_sizes": config.resblock_dilation_sizes,
        "num_mels": mel.n_mels,
        "n_fft": mel.n_fft,
        "hop_size": mel.hop_length,
        "win_size": mel.win_length,
        "sampling_rate": mel.sampling_rate,
        "fmin": mel.fmin,
        "fmax": mel.fmax,
    }


def _length(kernel: Tensor) -> Tensor:
    """g of a kernel: its norm over all but the first axis, which is PyTorch's ``dim=0``."""
    return torch.norm_except_dim(kernel, 2, 0)


def _sizes(h: dict[str, Any]) -> SpeechT5HifiGanConfig:
    """HiFi-GAN's ``config.json`` in transformers' words.

    Raises:
        InputError: for residual blocks of an unknown type.
    """
    if str(h["resblock"]) not in ("1", "2"):
        raise InputError(f"this HiFi-GAN has residual blocks of type {h['resblock']}; there are 1 and 2 (V3).")
    mel = MelConfig(
        sampling_rate=h["sampling_rate"],
        n_fft=h["n_fft"],
        hop_length=h["hop_size"],
        win_length=h["win_size"],
        n_mels=h["num_mels"],
        fmin=float(h["fmin"]),
        fmax=float(h["fmax"] or h["sampling_rate"] / 2),
        peak=0.95,
    )
    return SpeechT5HifiGanConfig(
        model_in_dim=h["num_mels"],
        sampling_rate=h["sampling_rate"],
        upsample_initial_channel=h["upsample_initial_channel"],
        upsample_rates=h["upsample_rates"],
        upsample_kernel_sizes=h["upsample_kernel_sizes"],
        resblock_kernel_sizes=h["resblock_kernel_sizes"],
        resblock_dilation_sizes=h["resblock_dilation_sizes"],
        normalize_before=False,
        resblock=str(h["resblock"]),
        mel=mel.to_dict(),
    )
