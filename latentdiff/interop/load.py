"""A folder's components: those of a published one by its family's table, those of ours by their own names."""

import json
import math
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import diffusers
import torch
import transformers
from safetensors import SafetensorError

from latentdiff.errors import InputError
from latentdiff.interop.family import Family
from latentdiff.interop.folder import kinds_of_own, kinds_of_parts
from latentdiff.interop.hifigan import vocoder_from_file
from latentdiff.interop.pickles import read_pickle
from latentdiff.interop.states import wrong_keys
from latentdiff.media.mel import PRESETS, MelConfig
from latentdiff.models import autoencoder, denoiser, prompts, vocoder
from latentdiff.models.autoencoder import compression
from latentdiff.models.prompts import ConditionAdapter


def load_parts(folder: Path, family: Family, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of our pipeline: a published folder's components, their mel, and the family's defaults.

    Raises:
        InputError: if a component is missing, broken, of another family, or does not fit another one.
    """
    kinds = kinds_of_parts(folder, family)
    tables = {name: family.parts[name] for name in kinds}
    parts = {name: load_one(folder / part.folder, part.kinds[0], kinds[name], dtype) for name, part in tables.items()}
    return complete(parts, family, str(folder))


def complete(parts: dict[str, Any], family: Family, source: str) -> dict[str, Any]:
    """Arguments of our pipeline: components, with their mel and the family's defaults.

    Raises:
        InputError: if two of them do not fit.
    """
    _require_fitting(source, parts)
    return {**parts, **_media_defaults(family, parts), **family.defaults}


def load_own(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The components of a pipeline of ours.

    Raises:
        InputError: if one is missing, broken, or from elsewhere.
    """
    return {name: load_one(folder / name, kind, kind, dtype) for name, kind in kinds_of_own(folder).items()}


def load_one(folder: Path, kind: str, noted: str, dtype: torch.dtype) -> Any:
    """One component, in evaluation mode; ``kind`` is the class to load it as, ``noted`` the class it is noted as.

    Raises:
        InputError: if it cannot be loaded whole.
    """
    try:
        loaded = _load(folder, kind, noted, dtype)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError, UnpicklingError) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise InputError(f"{folder} cannot be loaded: {reason}.") from error
    return loaded.eval() if isinstance(loaded, torch.nn.Module) else loaded


def _load(folder: Path, kind: str, noted: str, dtype: torch.dtype) -> Any:
    if "Tokenizer" in kind:
        return transformers.AutoTokenizer.from_pretrained(folder)
    if kind.endswith("Scheduler"):
        scheduler: Any = getattr(diffusers, noted, None)
        if not (isinstance(scheduler, type) and issubclass(scheduler, diffusers.SchedulerMixin)):
            raise InputError(f"{folder} holds a {noted}, which diffusers does not have.")
        return scheduler.from_pretrained(folder)  # type: ignore[attr-defined]
    if (folder / "vocoder.pt").is_file():  # Auffusion's own files
        return vocoder_from_file(folder / "vocoder.pt", folder / "config.json").to(dtype)
    if (folder / "condition_adapter.pt").is_file():
        adapter = _adapter(folder)
        return adapter if dtype == torch.float32 else adapter.to(dtype)
    homes = (diffusers, transformers, autoencoder, denoiser, prompts, vocoder)
    home = next((home for home in homes if hasattr(home, kind)), None)
    if home is None:
        raise InputError(f"{folder} holds a {noted}, which no library here has.")
    model: Any = getattr(home, kind)
    if not issubclass(model, torch.nn.Module):
        return model.from_pretrained(folder)
    word = "dtype" if issubclass(model, transformers.PreTrainedModel) else "torch_dtype"
    loaded, info = model.from_pretrained(folder, output_loading_info=True, **{word: dtype})
    if info["missing_keys"]:  # left alone, they would be random
        raise InputError(wrong_keys(str(folder), info["unexpected_keys"], info["missing_keys"]))
    return loaded


def _adapter(folder: Path) -> ConditionAdapter:
    sizes = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    adapter = ConditionAdapter(sizes["condition_dim"], sizes["cross_attention_dim"])
    adapter.load_state_dict(read_pickle(folder / "condition_adapter.pt"))
    return adapter


def _media_defaults(family: Family, parts: dict[str, Any]) -> dict[str, Any]:
    """How much is made when nobody says: what the U-Net was trained on. Sounds also get their mel here."""
    vae, side = parts["vae"], parts["unet"].config.sample_size
    if family.medium == "image":
        height, width = side if isinstance(side, (tuple, list)) else (side or 64, side or 64)
        return {"default_height": height * compression(vae), "default_width": width * compression(vae)}
    mel = _mel(family, parts["vocoder"].config)
    vae.register_to_config(mel=mel.to_dict())
    parts["vocoder"].config.mel = mel.to_dict()
    if mel.frequency_first:  # Auffusion: 1024 frames, whatever the picture that Stable Diffusion was trained on
        frames = 1024
    else:
        frames = (side[0] if isinstance(side, (tuple, list)) else side or 256) * compression(vae)
    return {"default_seconds": frames * mel.hop_length / mel.sampling_rate}


def _mel(family: Family, vocoder: Any) -> MelConfig:
    """The family's mel that has the vocoder's rate, hop and bands.

    Where there is none the vocoder is of its owner's making; then these three are the vocoder's and the rest is the
    family's, which is as much as a folder says.
    """
    rate, bands, hop = vocoder.sampling_rate, vocoder.model_in_dim, math.prod(vocoder.upsample_rates)
    presets = [PRESETS[name] for name in family.mels]
    for mel in presets:
        if (mel.sampling_rate, mel.n_mels, mel.hop_length) == (rate, bands, hop):
            return mel
    fmax = min(presets[0].fmax, rate / 2)
    return replace(presets[0], sampling_rate=rate, n_mels=bands, hop_length=hop, fmax=fmax)


def _require_fitting(source: str, parts: dict[str, Any]) -> None:
    """Refuse components that cannot work together, with both values.

    Raises:
        InputError: naming the first two.
    """
    unet, vae, width = parts["unet"].config, parts["vae"].config, _token_width(parts)
    pairs = [("the U-Net's in_channels", unet.in_channels, "the VAE's latent_channels", vae.latent_channels)]
    if width is not None and isinstance(unet.cross_attention_dim, int):
        pairs.append(("the U-Net's cross_attention_dim", unet.cross_attention_dim, "the width of its text", width))
    if unet.class_embed_type is not None and "clap" in parts:
        projected = unet.projection_class_embeddings_input_dim
        pairs.append(("the U-Net's class embedding", projected, "CLAP's", parts["clap"].config.projection_dim))
    for first, one, second, other in pairs:
        if one != other:
            raise InputError(f"the parts of {source} do not fit: {first} is {one}, and {second} {other}.")
    if "vocoder" in parts and parts["vocoder"].config.model_in_dim % compression(parts["vae"]):
        bands, factor = parts["vocoder"].config.model_in_dim, compression(parts["vae"])
        raise InputError(
            f"the parts of {source} do not fit: the VAE's compression {factor} does not divide {bands} bands."
        )


def _token_width(parts: dict[str, Any]) -> int | None:
    """D of the sequence that cross-attention reads; None where there is none, or more than one."""
    if "adapter" in parts:
        return int(parts["adapter"].config.cross_attention_dim)
    if "text_encoder" not in parts or "language_model" in parts:
        return None
    return int(parts["text_encoder"].config.hidden_size)
