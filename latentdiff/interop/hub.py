"""Models by hub id: fetched into the hub's cache, without pickles where that can be, then read like any folder."""

import os
import re
from pathlib import Path

from latentdiff.errors import InputError
from latentdiff.interop.folder import INDEX

_LIGHT = ["*.json", "*.txt", "*.model"]
_PEEK = [INDEX, "condition_config.json", "vocoder/config.json", "vocoder/*.json"]
_ABOUT = [INDEX, "condition_config.json", "config.json", "*/config.json", "*/scheduler_config.json", "README.md"]
_NOT = ["*.fp16.*", "*non_ema*", "*.msgpack", "*.onnx", "*.h5", "safety_checker/*"]


def is_hub_id(name: str) -> bool:
    """Whether it is owner/name, and not a path with a first part that exists here."""
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name)) and not Path(name).parent.exists()


def about(name: str) -> Path:
    """A folder with what a hub model says of itself; weights are in it only if they have been fetched before.

    Raises:
        InputError: if the model cannot be had.
    """
    return _snapshot(name, None, None, _ABOUT)


def peek(name: str) -> Path:
    """A folder with what tells a hub model's family, and no weights.

    Raises:
        InputError: if the model cannot be had.
    """
    return _snapshot(name, None, None, _PEEK)


def fetch(name: str, revision: str | None = None, cache_dir: str | None = None) -> Path:
    """The folder of a hub model in the cache, downloaded if need be.

    Raises:
        InputError: if the model cannot be had.
    """
    folder = _snapshot(name, revision, cache_dir, [*_LIGHT, "*.safetensors"])
    without = [path.parent for path in folder.glob("*/config.json") if not list(path.parent.glob("*.safetensors"))]
    if without:  # an old upload has its weights as pickles; they are read with weights_only
        folder = _snapshot(
            name, revision, cache_dir, [f"{path.name}/*{end}" for path in without for end in (".bin", ".pt")]
        )
    return folder


def _snapshot(name: str, revision: str | None, cache_dir: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        folder = snapshot_download(
            name, revision=revision, cache_dir=cache_dir, allow_patterns=patterns, ignore_patterns=_NOT
        )
    except GatedRepoError:
        reason = "its owner asks for consent first; give it on the model's page and log in with `hf auth login`"
    except RepositoryNotFoundError:
        reason = "the hub has no such model, or it is private or has been renamed; look the name up"
    except RevisionNotFoundError:
        reason = f"it has no revision {revision}"
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
        why = "HF_HUB_OFFLINE forbids to ask the hub" if offline else "the hub cannot be reached"
        reason = f"it is not in this machine's cache, and {why}"
    except (OSError, ValueError) as error:  # its other errors are of these kinds
        reason = " ".join(str(error).split())[:200].rstrip(".")
    else:
        return Path(folder)
    raise InputError(f"cannot load the model '{name}': {reason}.")
