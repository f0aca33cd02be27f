"""The verb ``info``: what a model's folder or a generated file says about itself, no weights loaded."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentdiff.errors import InputError
from latentdiff.interop.folder import read_header, read_index, read_json
from latentdiff.interop.hub import about, is_hub_id
from latentdiff.names import BUNDLED, bundled_folder

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass
class Component:
    """One part of a pipeline, from its files alone."""

    name: str
    kind: str
    config: dict[str, Any]
    parameters: int = 0
    bytes: int = 0
    dtypes: set[str] = field(default_factory=set)


def describe(subject: str) -> str:
    """What a bundled model, a model's folder or hub id or a generated file says about itself, as plain text.

    Raises:
        InputError: if it is none of these, or is broken.
    """
    if subject in BUNDLED:
        return describe_model(bundled_folder(subject))
    path = Path(subject)
    if path.is_dir():
        return describe_model(path)
    if path.is_file():
        return describe_file(path)
    if is_hub_id(subject):
        return describe_model(about(subject))
    raise InputError(
        f"there is no '{subject}'; name a model's folder or hub id (owner/name), a sound or picture file or one of "
        f"{', '.join(BUNDLED)}."
    )


def describe_model(folder: Path) -> str:
    """The components of a pipeline's folder (or the one component in it), and its defaults.

    Raises:
        InputError: if it holds no model, or one with a broken file.
    """
    entries = read_index(folder)
    if entries is not None:
        parts = {key: value for key, value in entries.items() if isinstance(value, list) and len(value) == 2}
        components = [
            read_component(folder / name, name, kind) for name, (_, kind) in parts.items() if kind is not None
        ]
        lines = [f"Model       {entries.get('_class_name', 'unknown')}"]
        facts = {key: value for key, value in entries.items() if key not in parts and not key.startswith("_")}
    elif (folder / "config.json").is_file():
        config = read_json(folder / "config.json")
        kind = config.get("_class_name") or next(iter(config.get("architectures") or ["unknown"]))
        components, facts = [read_component(folder, kind, kind)], {}
        lines = ["Component   by itself, not a whole pipeline"]
    else:
        raise InputError(f"{folder} holds no model: it has neither model_index.json nor config.json.")
    lines += [f"Folder      {folder}", ""]
    lines += [_component_line(component) for component in components]
    if not any(component.bytes for component in components):
        lines.append("The weights are not here.")
    elif len(components) > 1:
        whole = Component("total", "", {})
        whole.parameters = sum(component.parameters for component in components)
        whole.bytes = sum(component.bytes for component in components)
        lines.append(_component_line(whole))
    lines.append("")
    lines += _mel_lines(components)
    lines += _image_lines(components)
    lines += [f"{key:24s}{value}" for key, value in facts.items()]
    lines.append(f"{'licence':24s}{licence(folder)}")
    return "\n".join(lines)


def describe_file(path: Path) -> str:
    """The recipe that a generated sound or picture carries.

    Raises:
        InputError: if it carries none, or is neither.
    """
    with path.open("rb") as file:
        is_png = file.read(len(PNG_SIGNATURE)) == PNG_SIGNATURE
    recipe, (what, size) = _read_png(path) if is_png or path.suffix.lower() == ".png" else _read_sound(path)
    if recipe is None:
        raise InputError(f"{path} carries no recipe: latentdiff did not make it, or a program has removed it.")
    lines = [f"{'file':18s}{path}", f"{what:18s}{size}"]
    # The recipe is as trustworthy as the file's sender, so what steers a terminal is shown as text.
    return "\n".join([*lines, *(f"{_plain(key):18s}{_plain(value)}" for key, value in recipe.items())])


def _read_sound(path: Path) -> tuple[dict | None, tuple[str, str]]:
    from latentdiff.media.audio import inspect_audio, read_recipe

    recipe, facts = read_recipe(path), inspect_audio(path)
    return recipe, ("length", f"{facts.seconds:.3f} s at {facts.sampling_rate} Hz")


def _read_png(path: Path) -> tuple[dict | None, tuple[str, str]]:
    from latentdiff.media.image import inspect_image, read_png_recipe

    facts = inspect_image(path)
    return read_png_recipe(path), ("size", f"{facts.width} x {facts.height} pixels")


def read_component(folder: Path, name: str, kind: str) -> Component:
    """Sizes of a component from the headers of its safetensors files.

    Raises:
        InputError: if one is broken.
    """
    configs = [folder / "config.json", folder / "scheduler_config.json"]
    config = next((read_json(file) for file in configs if file.is_file()), {})
    component = Component(name, kind, config)
    shapes: dict[str, list[int]] = {}  # by name: a variant in another precision counts once
    for file in sorted(folder.glob("*.safetensors")):
        header = read_header(file)
        component.bytes += file.stat().st_size
        component.dtypes |= {entry["dtype"] for entry in header.values()}
        shapes |= {tensor: entry["shape"] for tensor, entry in header.items()}
    component.parameters = sum(math.prod(shape) for shape in shapes.values())
    return component


def licence(folder: Path) -> str:
    """The licence that the model card's header names."""
    card = folder / "README.md"
    if not card.is_file():
        return "unknown: no model card (README.md)"
    for line in card.read_text(encoding="utf-8", errors="replace").splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip().lower() in ("license", "licence"):
            return _plain(value.strip())
    return "unknown: the model card does not say"


def _component_line(component: Component) -> str:
    size = f"{component.parameters / 1e6:9.3f} M parameters {component.bytes / 1e6:8.2f} MB"
    dtypes = ", ".join(sorted(component.dtypes))
    return f"{component.name:16s}{component.kind:26s}{size if component.bytes else ''}  {dtypes}".rstrip()


def _mel_lines(components: list[Component]) -> list[str]:
    """The mel definition, and the sampling rate by itself, from the first component that carries one."""
    mel = next((c.config["mel"] for c in components if isinstance(c.config.get("mel"), dict)), None)
    if mel is None:
        return []
    rate = f"{'sampling rate':24s}{mel.get('sampling_rate', 'unknown')} Hz"
    return [rate, f"{'mel':24s}{', '.join(f'{key} {value}' for key, value in mel.items())}"]


def _image_lines(components: list[Component]) -> list[str]:
    """How pictures were framed for training, from the VAE that carries it."""
    image = next((c.config["image"] for c in components if isinstance(c.config.get("image"), dict)), None)
    return [f"{'pictures':24s}{', '.join(f'{key} {value}' for key, value in image.items())}"] if image else []


def _plain(value: Any) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(value))
