"""Tensors by name, as checkpoints hold them: compared before any of them is used."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from latentdiff.errors import InputError


def require_same_keys(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights with names too many, too few, or of another shape.

    Raises:
        InputError: with the unexpected and the missing names as two lists.
    """
    unexpected, missing = sorted(set(given) - set(wanted)), sorted(set(wanted) - set(given))
    if unexpected or missing:
        raise InputError(wrong_keys(source, unexpected, missing))
    for name, tensor in wanted.items():
        if given[name].shape != tensor.shape:
            shapes = f"{tuple(given[name].shape)} and not {tuple(tensor.shape)}"
            raise InputError(f"{source} does not hold the weights it should: {name} has the shape {shapes}.")


def wrong_keys(source: str, unexpected: Iterable[str], missing: Iterable[str]) -> str:
    """The sentence about names of weights that do not fit."""
    lists = f"unexpected: [{_some(sorted(unexpected))}], missing: [{_some(sorted(missing))}]"
    return f"{source} does not hold the weights it should; {lists}."


def _some(names: list[str]) -> str:
    return ", ".join(names[:20]) + (f", and {len(names) - 20} more" if len(names) > 20 else "")
