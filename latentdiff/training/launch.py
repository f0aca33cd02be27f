"""From the command line to the loop: configuration, signals, recipe, and exit codes."""

import argparse
import logging
import sys
from pathlib import Path

from latentdiff.config import load_config
from latentdiff.doctor import check_torch_pair
from latentdiff.errors import InputError
from latentdiff.training.guards import TrainingError, explain, innermost
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
            # Heavy imports only after the configuration has been found good.
            from latentdiff.training.loop import Trainer
            from latentdiff.training.recipes import RECIPES

            Trainer(config, RECIPES[config.stage], stop).run()
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


def _say(sentence: str, code: int) -> int:
    print(f"latentdiff: {sentence}", file=sys.stderr)
    return code
