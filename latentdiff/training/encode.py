"""The verb ``data encode``: fill the caches of a diffusion configuration, by one process or several, and end."""

import contextlib
import logging
from datetime import timedelta
from pathlib import Path

from latentdiff.config import DiffusionRecipe, load_config
from latentdiff.doctor import check_torch_pair
from latentdiff.errors import InputError
from latentdiff.training.claim import claimed
from latentdiff.training.guards import explain

logger = logging.getLogger(__name__)
PATIENCE = timedelta(days=1)
"""How long a process waits for one that looks at all files, or for a slower one."""


def encode(path: Path, overrides: list[str]) -> str:
    """Encode what a configuration trains on; what is there already stays. Returns what there is now, in a sentence.

    Raises:
        InputError: for a bad configuration or data set.
    """
    config = load_config(path, overrides)
    if not isinstance(config, DiffusionRecipe):
        raise InputError(f"{path} has the stage {config.stage}; only the stage diffusion trains on what is encoded.")
    check_torch_pair()
    import torch
    from accelerate import PartialState

    from latentdiff.training.recipes.diffusion import DiffusionTraining

    class Encoding(DiffusionTraining):
        fills_caches = True

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    state, root = PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE), config.latents
    root = root or config.output / "latents"
    root.mkdir(parents=True, exist_ok=True)
    try:
        with claimed(root) if state.is_main_process else contextlib.nullcontext():
            done = Encoding(config, state.device)
    except RuntimeError as error:
        if (sentence := explain(error, config)) is None:
            raise
        raise InputError(sentence) from error
    captions = done.latents.prompts.captions
    embedded = f", {len(captions)} captions" if captions else ""
    items = f"{len(done.latents)} latents to train on and {len(done.held_out)} held out{embedded}"
    state.destroy_process_group()
    return f"{root}  {items}" if state.is_main_process else ""
