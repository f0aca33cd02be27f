"""The verb ``convert``: original files of weights to a folder that everything here loads, and back."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from latentdiff.errors import InputError
from latentdiff.interop.audioldm import AUDIOLDM
from latentdiff.interop.audioldm2 import AUDIOLDM2
from latentdiff.interop.family import Family
from latentdiff.interop.folder import INDEX, medium_of_folder, read_header
from latentdiff.interop.stable_diffusion import STABLE_DIFFUSION
from latentdiff.interop.tango import TANGO
from latentdiff.names import PIPELINES

TANGO_FILE = "pytorch_model_main.bin"
GENERATOR = "g_00000000"
"""How HiFi-GAN names a generator: by its step."""


def convert(source: Path, out: Path, like: str | None) -> str:
    """Write ``out``, which exists only when it is whole; returns what it is.

    Args:
        source: a file of weights, Tango's folder, a pipeline's folder, or a vocoder's.
        out: a folder; for a pipeline going back a file.
        like: a model whose tokenizers, heads, schedule and whatever else the file does not say are taken.

    Raises:
        InputError: if the source is none of these, is broken or holds code, or ``out`` is taken.
    """
    if not source.exists():
        raise InputError(f"there is no {source}; name a file of weights or a model's folder.")
    if os.path.lexists(out):
        raise InputError(f"{out} exists; choose another name, or remove it.")
    if not source.is_dir():
        return _forward(source, out, like)
    if (source / TANGO_FILE).is_file():
        from latentdiff.interop.compvis import tango

        return _write_parts(tango(source), TANGO, source, out, like)
    if (source / INDEX).is_file():
        return _pipeline_back(source, out)
    if (source / "config.json").is_file():
        return _vocoder_back(source, out)
    raise InputError(f"{source} is neither a pipeline's folder, nor a vocoder's, nor Tango's; nothing to convert.")


def _forward(source: Path, out: Path, like: str | None) -> str:
    """A file, told by the names in it."""
    from latentdiff.interop.compvis import clap_from_state, components
    from latentdiff.interop.hifigan import vocoder_from_file

    state = _read_state(source)
    if "generator" in state or "conv_pre.bias" in state:
        vocoder = vocoder_from_file(source, source.with_name("config.json"))
        _write(out, vocoder.save_pretrained)
        return f"{out}  a vocoder"
    names = {name.removeprefix("module.") for name in state}
    if "text_branch.embeddings.word_embeddings.weight" in names:
        return _write_clap(clap_from_state(state), out, like)
    parts = components(state)
    family = AUDIOLDM2 if "language_model" in parts else AUDIOLDM if "vocoder" in parts else STABLE_DIFFUSION
    return _write_parts(parts, family, source, out, like)


def _read_state(source: Path) -> dict[str, Any]:
    """The innermost dictionary of tensors."""
    if source.suffix == ".safetensors":
        from safetensors.torch import load_file

        read_header(source)
        return dict(load_file(source))
    from latentdiff.interop.pickles import read_pickle

    state = read_pickle(source)
    while isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise InputError(f"{source} holds no weights by name.")
    return state


def _write_parts(parts: dict[str, Any], family: Family, source: Path, out: Path, like: str | None) -> str:
    """A whole pipeline where nothing is missing, else its components side by side."""
    if like is not None:
        parts = _liken(parts, {name: part for name, part in _components_of(like).items() if name in family.parts})
    lacking = [name for name, part in family.parts.items() if name not in parts and not part.optional]

    def save(folder: Path) -> None:
        for name, part in parts.items():
            part.save_pretrained(folder / name)

    if lacking:
        _write(out, save)
        return (
            f"{out}  components: {', '.join(parts)}; without {', '.join(lacking)} it is no pipeline, "
            "--like MODEL takes them from one of the same family"
        )
    import latentdiff
    from latentdiff.interop.load import complete

    pipeline = getattr(latentdiff, PIPELINES[family.medium])(**complete(parts, family, str(source)))
    _write(out, pipeline.save_pretrained)
    return f"{out}  a {PIPELINES[family.medium]}"


def _liken(parts: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The other model with these weights: it says what no weight does (heads, strides, schedule), where sizes agree."""
    taken = {**parts, **other}
    for name, part in parts.items():
        if name == "scheduler" or name not in other:
            continue
        shapes, wanted = (
            {key: tensor.shape for key, tensor in model.state_dict().items()} for model in (part, other[name])
        )
        if shapes != wanted:
            taken[name] = part
            continue
        other[name].load_state_dict(part.state_dict())
        if name == "vae":
            other[name].register_to_config(scaling_factor=part.config.scaling_factor)
    return taken


def _write_clap(clap: Any, out: Path, like: str | None) -> str:
    """CLAP with its view of sounds, and its tokenizer if ``like`` has one."""
    from transformers import AutoTokenizer, ClapFeatureExtractor

    fusion = bool(clap.config.audio_config.enable_fusion)
    features = ClapFeatureExtractor(truncation="fusion" if fusion else "rand_trunc")
    tokenizer = AutoTokenizer.from_pretrained(like) if like is not None else None

    def save(folder: Path) -> None:
        for part in (clap, features, tokenizer):
            if part is not None:
                part.save_pretrained(folder)

    _write(out, save)
    return f"{out}  a CLAP" + ("" if tokenizer else "; its tokenizer is RoBERTa's, --like roberta-base takes it along")


def _pipeline_back(source: Path, out: Path) -> str:
    """CompVis's layout in one file, as a pickle of tensors or as safetensors."""
    if out.suffix not in (".ckpt", ".safetensors"):
        raise InputError(f"a pipeline goes back into one file; {out} must end in .ckpt or .safetensors.")
    import torch
    from safetensors.torch import save_file

    from latentdiff.interop.compvis import original_state

    state = original_state(_components_of(str(source)))
    staged = out.with_name(f".{out.name}-{os.getpid()}")
    try:
        if out.suffix == ".ckpt":
            torch.save({"state_dict": state}, staged)
        else:
            save_file(state, staged)
        os.replace(staged, out)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}.") from None
    finally:
        staged.unlink(missing_ok=True)
    return f"{out}  {len(state)} tensors in CompVis's layout"


def _vocoder_back(source: Path, out: Path) -> str:
    """HiFi-GAN's own generator file and its configuration."""
    import json

    import torch

    from latentdiff.interop.hifigan import generator_state, original_config
    from latentdiff.models.loading import load_vocoder

    vocoder = load_vocoder(str(source))
    state, config = generator_state(vocoder), original_config(vocoder)

    def save(folder: Path) -> None:
        folder.mkdir(parents=True)
        torch.save({"generator": state}, folder / GENERATOR)
        (folder / "config.json").write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")

    _write(out, save)
    return f"{out}  HiFi-GAN's {GENERATOR} and config.json"


def _components_of(model: str) -> dict[str, Any]:
    import latentdiff
    from latentdiff.commands.request import medium_of

    path = Path(model)
    medium = medium_of_folder(path) if path.is_dir() else medium_of(model)
    components = getattr(latentdiff, PIPELINES[medium]).from_pretrained(model).components
    return {name: part for name, part in components.items() if part is not None}


def _write(out: Path, save: Callable[[Path], Any]) -> None:
    """A folder, under a temporary name until it is whole."""
    with _staged(out) as folder:
        save(folder)


@contextlib.contextmanager
def _staged(out: Path) -> Iterator[Path]:
    staged = out.with_name(f".{out.name}-{os.getpid()}")
    try:
        yield staged
        os.replace(staged, out)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}.") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)
