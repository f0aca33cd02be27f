"""The formats of checkpoints, and how an older one becomes the next. Each step changes a copy, never the original."""

import json
from collections.abc import Callable
from pathlib import Path

from accelerate.utils import load

from latentdiff.training.averages import save_averages

FORMAT_VERSION = 2


def _schedules_and_averages_as_plain_files(checkpoint: Path) -> None:
    """1 -> 2: these were accelerate's custom objects, pickles that it reads without any check."""
    schedules = []
    count = len(list(checkpoint.glob("custom_checkpoint_*.pkl")))
    for number in range(count):
        path = checkpoint / f"custom_checkpoint_{number}.pkl"
        state = load(path, map_location="cpu")  # of tensors and plain values only
        if "shadow_params" in state:
            save_averages(checkpoint, state["shadow_params"], state["optimization_step"])
        else:
            schedules.append(state)
        path.unlink()
    (checkpoint / "schedules.json").write_text(json.dumps(schedules))


UPGRADES: dict[int, Callable[[Path], None]] = {1: _schedules_and_averages_as_plain_files}
"""From a version to the next."""
