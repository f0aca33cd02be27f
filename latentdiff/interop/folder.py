"""A model's folder before anything of it is loaded: which family it is of, and whether it is whole.

Nothing in a folder can make code run: its classes are looked up in the tables of the families, never imported by name.
"""

import json
import struct
from pathlib import Path
from typing import Any

from latentdiff.errors import InputError
from latentdiff.interop.audioldm import AUDIOLDM
from latentdiff.interop.audioldm2 import AUDIOLDM2
from latentdiff.interop.auffusion import AUFFUSION, AUFFUSION_WITHOUT_ADAPTER
from latentdiff.interop.family import Family, Part
from latentdiff.interop.musicldm import MUSICLDM
from latentdiff.interop.stable_diffusion import STABLE_DIFFUSION
from latentdiff.names import PIPELINES

INDEX = "model_index.json"
MAX_HEADER = 100 * 2**20
"""Bytes; the bound of the safetensors format itself."""
FAMILIES = (AUDIOLDM, AUDIOLDM2, MUSICLDM, STABLE_DIFFUSION, AUFFUSION)
LIBRARIES = (
    "diffusers",
    "transformers",
    "audioldm2",
    "latentdiff.models.autoencoder",
    "latentdiff.models.denoiser",
    "latentdiff.models.prompts",
    "latentdiff.models.vocoder",
)
"""Where the classes of a pipeline of ours may be from."""
WEIGHTS = (".safetensors", ".bin", ".pt")
"""Best first. The libraries read the other two with ``weights_only``, so they cannot run code either."""


def recognise(folder: Path) -> Family | str:
    """The family of a published folder, or the medium of one of ours.

    Raises:
        InputError: if it is neither.
    """
    if (folder / "condition_config.json").is_file():
        return AUFFUSION
    if not (folder / INDEX).is_file():
        raise InputError(f"{folder} is a folder without {INDEX}, so no pipeline; training writes OUTPUT/pipeline.")
    kind = read_json(folder / INDEX).get("_class_name")
    if isinstance(kind, list):
        raise InputError(
            f"{folder} wants a program of its own to be run ({kind[0]}); a model's programs are never run."
        )
    own = next((medium for medium, name in PIPELINES.items() if name == kind), None)
    if own is not None:
        return own
    family = next((family for family in FAMILIES if kind in family.pipelines), None)
    if family is None:
        known = ", ".join([*PIPELINES.values(), *(name for family in FAMILIES for name in family.pipelines)])
        raise InputError(f"{folder} holds a pipeline of the class {kind}; known are {known}.")
    return AUFFUSION_WITHOUT_ADAPTER if family is STABLE_DIFFUSION and (folder / "vocoder").is_dir() else family


def medium_of_folder(folder: Path) -> str:
    """Whether the pipeline in it makes "audio" or "image"."""
    family = recognise(folder)
    return family if isinstance(family, str) else family.medium


def read_index(folder: Path) -> dict[str, Any] | None:
    """What ``model_index.json`` says, or would say if the family wrote one; None where nothing tells a pipeline."""
    if (folder / INDEX).is_file():
        return read_json(folder / INDEX)
    if (folder / "condition_config.json").is_file():
        parts = {
            part.folder: ["", part.kinds[0]] for part in AUFFUSION.parts.values() if "Tokenizer" not in part.kinds[0]
        }
        return {"_class_name": AUFFUSION.pipelines[0], **parts}
    return None


def kinds_of_parts(folder: Path, family: Family) -> dict[str, str]:
    """The class of each component, by our name, of a folder that was found to be whole.

    Raises:
        InputError: if a component is missing, broken, or of a class that the family does not have.
    """
    index = read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
    components = {name: entry for name, entry in index.items() if isinstance(entry, list) and len(entry) == 2}
    known = {part.folder for part in family.parts.values()} | set(family.ignored)
    for name, (_, kind) in components.items():
        if kind is not None and name not in known:
            raise InputError(f"{folder} has a component {name} of the class {kind}, which no {_name(family)} has.")
    found = {}
    for name, part in family.parts.items():
        entry = components.get(part.folder)
        if part.optional and (entry is None or entry[1] is None):
            continue
        kind = entry[1] if entry is not None else _kind_by_config(folder / part.folder, part)
        if kind not in part.kinds and not (part.kinds[0] == "Scheduler" and str(kind).endswith("Scheduler")):
            wanted = " or ".join(part.kinds[:2])
            raise InputError(f"the {part.folder} of {folder} is a {kind}; that of a {_name(family)} is a {wanted}.")
        require_whole(folder / part.folder)
        found[name] = str(kind)
    return found


def kinds_of_own(folder: Path) -> dict[str, str]:
    """The class of each component of a pipeline of ours that was found to be whole.

    Raises:
        InputError: if one is missing, broken, or from elsewhere.
    """
    found = {}
    for name, entry in read_json(folder / INDEX).items():
        # A default may be a list too: a few-step student's range of guidance.
        if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(word, str) for word in entry):
            continue
        if entry[0] not in LIBRARIES:
            raise InputError(f"{folder} wants {entry[0]} to be run for its {name}; a model's programs are never run.")
        require_whole(folder / name)
        found[name] = str(entry[1])
    return found


def require_whole(folder: Path) -> None:
    """Refuse a component whose files are missing or broken; headers alone are read.

    Raises:
        InputError: naming the file.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        raise InputError(f"{folder} is missing or empty: the model is not whole, copy or download it again.")
    files = {path.name: path for path in folder.iterdir()}
    if any(name.startswith("tokenizer") or name == "preprocessor_config.json" for name in files):
        return
    if "scheduler_config.json" in files:
        read_json(files["scheduler_config.json"])
        return
    if "config.json" not in files:
        if any(path.suffix in WEIGHTS for path in files.values()):
            raise InputError(f"{folder} has weights and no config.json, so what they are of is unknown.")
        return  # a tokenizer of an old kind: vocabulary files alone
    read_json(files["config.json"])
    named = [
        read_json(path).get("weight_map", {}).values() for name, path in files.items() if name.endswith(".index.json")
    ]
    missing = sorted({shard for shards in named for shard in shards} - set(files))
    weights = [path for path in files.values() if path.suffix in WEIGHTS]
    if missing or not weights:
        what = missing[0] if missing else "its weights"
        raise InputError(f"{folder} is without {what}: the model is not whole, copy or download it again.")
    for path in weights:
        if path.suffix == ".safetensors":
            read_header(path)


def read_header(file: Path) -> dict[str, Any]:
    """Name -> dtype, shape and data_offsets of a safetensors file.

    Raises:
        InputError: if the header is broken or the file is shorter than it says.
    """
    try:
        with file.open("rb") as raw:
            (length,) = struct.unpack("<Q", raw.read(8))
            if length > MAX_HEADER:
                raise ValueError("header too long")
            header: dict[str, Any] = json.loads(raw.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if file.stat().st_size < 8 + length + end:
            raise ValueError("cut short")
    except (OSError, struct.error, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is not a whole safetensors file ({error}); copy or download it again.") from None
    return header


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        InputError: if it does not.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {file}: {error}.") from None
    if not isinstance(values, dict):
        raise InputError(f"{file} does not hold a JSON object.")
    return values


def _kind_by_config(folder: Path, part: Part) -> str:
    """The class that a component's own files name, where no index does."""
    for name in ("config.json", "scheduler_config.json"):
        if (folder / name).is_file() and not part.kinds[0].endswith("Tokenizer"):
            config = read_json(folder / name)
            return str(
                next((k for k in (config.get("_class_name"), *(config.get("architectures") or [])) if k), part.kinds[0])
            )
    return part.kinds[0]


def _name(family: Family) -> str:
    return family.pipelines[0]
