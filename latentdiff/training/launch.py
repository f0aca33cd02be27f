"""From the command line to the loop: configuration, signals, recipe, and exit codes."""

import argparse
import gc
import logging
import sys
from pathlib import Path

from latentdiff.config import AnyRecipe, load_config
from latentdiff.doctor import check_torch_pair
from latentdiff.errors import InputError
from latentdiff.training.guards import TooLargeError, TrainingError, explain, innermost, with_smaller_batches
from latentdiff.training.signals import Stopped, StopSignals, end_with_launcher


def main(arguments: list[str]) -> int:
    """Train what a configuration says.

    Returns:
        0: finished. 1: it cannot go on (memory, disk, values that are not finite, another process). 2: bad input.
        130: Ctrl-C. 143: SIGTERM or SIGUSR1. After the last two the same command goes on. Each is one sentence
        on stderr.
    """
    parser = argparse.ArgumentParser(
        "train.py", description="Train one stage: vae, vocoder, clap, diffusion, consistency or judge."
    )
    parser.add_argument("config", type=Path, help="a YAML file, for example configs/debug/audio_vae.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example train.max_steps=1000")
    parsed = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    end_with_launcher()
    config = None
    try:
        with StopSignals() as stop:
            config = load_config(parsed.config, parsed.overrides)
            check_torch_pair()
            while smaller := _train(config, stop):
                config = smaller
    except Stopped as stopped:
        return _say(f"{stopped}; the same command goes on", stopped.exit_code)
    except InputError as error:
        return _say(innermost(error), 2)
    except TrainingError as error:
        return _say(str(error), 1)
    except (RuntimeError, MemoryError) as error:
        if (sentence := explain(error, config)) is None:
            raise
        return _say(sentence, 1)
    return 0


def _train(config: AnyRecipe, stop: StopSignals) -> AnyRecipe | None:
    """Train to the end; or, out of memory, give the configuration with which to try again from the newest checkpoint.

    A function of its own, so that nothing of the failed attempt is kept by the next one.
    """
    # Heavy imports only after the configuration has been found good.
    import torch

    from latentdiff.training.loop import Trainer
    from latentdiff.training.recipes import RECIPES

    try:
        Trainer(config, RECIPES[config.stage], stop).run()
        return None
    except TooLargeError as error:
        if (smaller := with_smaller_batches(config)) is None:
            raise
        sizes = (config.train.batch_size, smaller.train.batch_size, smaller.train.gradient_accumulation)
        logging.warning(
            "out of memory with train.batch_size=%d (%s): going on with train.batch_size=%d and "
            "train.gradient_accumulation=%d, the same items a step",
            sizes[0], str(error).splitlines()[0], *sizes[1:],
        )  # fmt: skip
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.memory.empty_cache()
    return smaller


def _say(sentence: str, code: int) -> int:
    print(f"latentdiff: {sentence}", file=sys.stderr)
    return code
