"""Loading of components by folder or hub id, with one plain sentence when it cannot be done."""

import hashlib
import json
from pathlib import Path
from typing import cast

from diffusers import AutoencoderKL
from transformers import SpeechT5HifiGan

from latentdiff.errors import InputError
from latentdiff.models.autoencoder import Autoencoder, PatchAutoencoder


def load_autoencoder(source: str) -> Autoencoder:
    """Ours or diffusers', told apart by the ``_class_name`` in their ``config.json``."""
    path = require_component(source, "config.json")
    name = json.loads(path.read_text())["_class_name"] if path else "AutoencoderKL"
    kind = PatchAutoencoder if name == "PatchAutoencoder" else AutoencoderKL
    return cast(Autoencoder, kind.from_pretrained(source))


def load_vocoder(source: str) -> SpeechT5HifiGan:
    """A HiFi-GAN."""
    require_component(source, "config.json")
    return SpeechT5HifiGan.from_pretrained(source)


def require_component(source: str, file: str) -> Path | None:
    """The file in a component's folder; None where ``source`` looks like a hub id.

    Raises:
        InputError: if it is neither.
    """
    folder = Path(source)
    if (folder / file).is_file():
        return folder / file
    if folder.exists() or source.count("/") != 1 or source.startswith((".", "/")):
        raise InputError(f"{source} is no component folder: it has no {file}. Train that stage first, or name another.")
    return None


def weights_hash(source: str) -> str:
    """What identifies a component's weights: a hash of its folder's files, or the hub id itself."""
    config = require_component(source, "config.json")
    if config is None:
        return source
    digest = hashlib.sha256()
    for path in sorted(config.parent.glob("*")):
        if path.suffix in {".json", ".safetensors"}:
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
