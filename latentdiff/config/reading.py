"""Reading of configurations: YAML, its one-level include, the command line, and what is wrong in plain words."""

from collections.abc import Iterator
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from latentdiff.config.recipes import AnyRecipe
from latentdiff.config.sections import Section
from latentdiff.errors import InputError


def load_config(path: Path, overrides: list[str] | None = None) -> AnyRecipe:
    """Read a training configuration.

    Args:
        path: YAML file; its ``include:`` key may name one other file (relative to it), whose keys it
            overrides.
        overrides: ``key.sub=value`` strings that win over both; values are read as YAML.

    Raises:
        InputError: for a missing file, broken YAML, an unknown key (the nearest known one is named) or a bad
            value.
    """
    values = _read_yaml(path)
    if include := values.pop("include", None):
        if not isinstance(include, str):
            raise InputError(f"{path}: include is {include!r}; it must name one file.")
        base = _read_yaml(path.parent / include)
        if "include" in base:
            raise InputError(f"{path.parent / include} itself has an include; only one level is allowed.")
        values = _merge(base, values)
    for override in overrides or []:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise InputError(f"'{override}' is not of the form key.sub=value.")
        nested: Any = _parse_yaml(text, f"the value of '{key}'")
        for part in reversed(key.strip().split(".")):
            nested = {part: nested}
        values = _merge(values, nested)
    try:
        return TypeAdapter(AnyRecipe).validate_python(_floats(values))
    except ValidationError as error:
        problems = error.errors()
        # A value that may be of two kinds (a section or a name, a number or a folder) fails as both; what it was
        # not written as has less to say.
        said = [
            p
            for p in problems
            if not (p["type"] == "string_type" and isinstance(p["input"], dict))
            and not (p["type"] == "path_type" and len(problems) > 1)
        ]
        sentences = dict.fromkeys(_explain(p, values) for p in said or problems)
        raise InputError(f"{path}: {'; '.join(sentences)}.") from error


def save_config(config: Section, path: Path) -> None:
    """Write the resolved configuration as YAML, beside the weights it made."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"there is no configuration file {path}.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file in UTF-8.") from error
    values = _parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise InputError(f"{path} does not hold keys and values.")
    return values


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{where} is not valid YAML: {' '.join(str(error).split())}.") from error


def _floats(value: Any) -> Any:
    """YAML 1.1 reads ``1e-4`` as a string (it wants ``1.0e-4``); people write the former."""
    if isinstance(value, dict):
        return {key: _floats(item) for key, item in value.items()}
    if isinstance(value, str) and value[:1] in "+-.0123456789" and "e" in value.lower():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and value.get("kind") in (None, old.get("kind")):
            merged[key] = _merge(old, value)
        else:  # a section of another kind has other keys, so it takes the old one's place
            merged[key] = value
    return merged


def _explain(problem: ErrorDetails, values: dict[str, Any]) -> str:
    where = ".".join(_written(problem, values))
    if problem["type"] == "extra_forbidden":
        section, _, key = where.rpartition(".")
        if where in _known_keys(_stage(values)):
            return f"'{key}' is a key of another kind of {section}; leave it out or change {section}.kind"
        return f"unknown key '{where}'; did you mean '{_nearest(where, values)}'?"
    if problem["type"] == "value_error":
        return f"{where}: {problem['ctx']['error']}" if where else str(problem["ctx"]["error"])
    if problem["type"] == "union_tag_not_found":
        return f"{where or 'the file'} lacks the key {problem.get('ctx', {}).get('discriminator')}"
    shown = "" if isinstance(problem["input"], dict) else f" (got {problem['input']!r})"
    return f"{where or 'the file'}: {problem['msg']}{shown}"


def _written(problem: ErrorDetails, values: Any) -> Iterator[str]:
    """The keys to the problem as they stand in the file; pydantic puts the names of types between them."""
    for part in problem["loc"]:
        inside = isinstance(values, dict) and part in values
        if inside or (isinstance(values, list) and isinstance(part, int) and part < len(values)):
            values = values[part]
            yield str(part)
    if problem["type"] == "missing":
        yield str(problem["loc"][-1])


def _nearest(unknown: str, values: dict[str, Any]) -> str:
    """The known key most like an unknown one, with its section if that is another one."""
    section, _, key = unknown.rpartition(".")

    def likeness(known: str) -> float:
        known_section, _, known_key = known.rpartition(".")
        return SequenceMatcher(None, key, known_key).ratio() + 0.1 * (section == known_section)

    near = max(sorted(set(_known_keys(_stage(values)))), key=likeness)
    return near.removeprefix(f"{section}.")


def _stage(values: dict[str, Any]) -> Any:
    """The recipe that the file's ``stage`` names."""
    stages = {get_args(m.model_fields["stage"].annotation)[0]: m for m in get_args(get_args(AnyRecipe)[0])}
    return stages[values["stage"]]


def _known_keys(model: Any, section: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield section + name
        for part in _types_in(field.annotation):
            if isinstance(part, type) and issubclass(part, Section):
                yield from _known_keys(part, f"{section}{name}.")


def _types_in(annotation: Any) -> Iterator[Any]:
    """An annotation, and all that it is made of."""
    yield annotation
    for part in get_args(annotation):
        yield from _types_in(part)
