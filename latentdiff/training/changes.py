"""What differs between a run's configuration and the one that its checkpoints were made with."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from latentdiff.config import AnyRecipe
from latentdiff.errors import InputError

logger = logging.getLogger(__name__)

HARMLESS = {
    *("train.max_steps", "train.log_every", "train.validate_every", "train.checkpoint_every"),
    *("train.keep_checkpoints", "train.timeout", "train.overfit_check_steps", "train.trackers"),
    *("train.accept_changes", "data.num_workers", "output", "latents"),
    *("sampler", "default_steps", "default_guidance", "default_guidance_interval"),
    *("default_guidance_rescale", "default_compose"),
}
"""Keys on which no weight depends: how long and how often, where, and what the saved pipeline does by default."""
_LENGTH = {"linear", "cosine"}
"""Learning-rate schedules that look at ``train.max_steps``."""


def review_changes(config: AnyRecipe, saved: Path) -> None:
    """Say what is not as it was when the run was last started; what changes its result must be asked for.

    Args:
        config: of the run that goes on.
        saved: the configuration that it had before.

    Raises:
        InputError: naming the keys, with both values.
    """
    if not saved.is_file():
        return
    before, now = yaml.safe_load(saved.read_text()), config.model_dump(mode="json")
    changed = {key: (old, new) for key, old, new in _differences(before, now)}
    if _items(before) == _items(now):  # shared out otherwise, but the same ones
        changed = {key: values for key, values in changed.items() if key not in _SHARES}
    said = {key: f"{key} was {old!r} and is {new!r}" for key, (old, new) in changed.items()}
    serious = [sentence for key, sentence in said.items() if key not in HARMLESS]
    if serious and not config.train.accept_changes:
        raise InputError(
            f"{saved.parent} was trained with another configuration: {'; '.join(serious)}. Set it back, name another "
            "output, or go on with the change by train.accept_changes=true."
        )
    if said:
        logger.warning("changed since the run was last started: %s", "; ".join(said.values()))
    if "train.max_steps" in changed and config.optimizer.schedule in _LENGTH:
        logger.warning("optimizer.schedule=%s now follows the new train.max_steps", config.optimizer.schedule)


_SHARES = {"train.batch_size", "train.gradient_accumulation"}


def _items(config: dict[str, Any]) -> int:
    """Items a step."""
    return int(config["train"]["batch_size"]) * int(config["train"]["gradient_accumulation"])


def _differences(before: Any, now: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Keys that both have, with two values; one that only one has came or went with a version of this package."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in before.keys() & now.keys():
            yield from _differences(before[name], now[name], f"{key}.{name}".lstrip("."))
    elif before != now:
        yield key, before, now
