"""Loading of components by folder or hub id, with one plain sentence when it cannot be done."""

import hashlib
import json
from pathlib import Path
from typing import Any, cast

from diffusers import AutoencoderKL
from safetensors import SafetensorError
from transformers import SpeechT5HifiGan

from latentdiff.errors import InputError
from latentdiff.models.autoencoder import Autoencoder, PatchAutoencoder
from latentdiff.models.vocoder import ShortHifiGan

_SAVING = {"_name_or_path", "_diffusers_version", "transformers_version"}
"""What a component's ``config.json`` notes of how and from where it was saved."""


def load_autoencoder(source: str) -> Autoencoder:
    """Ours or diffusers', told apart by the ``_class_name`` in their ``config.json``.

    Raises:
        InputError: if there is none, or something else, at ``source``.
    """
    kind = _kind(source)
    if kind not in (None, "PatchAutoencoder", "AutoencoderKL"):
        raise InputError(f"{source} holds a {kind} and not an autoencoder; name the folder of a VAE.")
    return cast(Autoencoder, _load(PatchAutoencoder if kind == "PatchAutoencoder" else AutoencoderKL, source))


def load_vocoder(source: str) -> SpeechT5HifiGan:
    """A HiFi-GAN.

    Raises:
        InputError: if there is none, or something else, at ``source``.
    """
    kind = _kind(source)
    if kind not in (None, "SpeechT5HifiGan", "ShortHifiGan"):
        raise InputError(f"{source} holds a {kind} and not a vocoder; name the folder of a SpeechT5HifiGan.")
    return _load(ShortHifiGan if kind == "ShortHifiGan" else SpeechT5HifiGan, source)


def _kind(source: str) -> str | None:
    """The class that a component's ``config.json`` names; None for a hub id."""
    path = require_component(source, "config.json")
    if path is None:
        return None
    config = _read(path)
    names = [config.get("_class_name"), *(config.get("architectures") or [])]  # diffusers', transformers'
    return next((name for name in names if name), "component of unknown class")


def _read(config: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{config} is not valid JSON ({error}); save that component again.") from error
    return facts


def _load(kind: Any, source: str) -> Any:
    try:
        return kind.from_pretrained(source).float()  # bundled and many published weights are stored in half precision
    except (OSError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise InputError(
            f"the weights of {source} cannot be loaded: {reason}. Name the folder of a trained component, or "
            "a hub id that this machine can reach."
        ) from error


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
    """What identifies a component's weights: a hash of its folder's files, or the hub id itself.

    Saved again, by another version or from another place, it is the same.

    Raises:
        InputError: if it is no component.
    """
    config = require_component(source, "config.json")
    if config is None:
        return source
    digest = hashlib.sha256()
    for path in sorted(config.parent.glob("*")):
        if path == config:
            facts = {key: value for key, value in _read(path).items() if key not in _SAVING}
            digest.update(json.dumps(facts, sort_keys=True).encode())
        elif path.suffix in {".json", ".safetensors"}:
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
