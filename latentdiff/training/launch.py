"""From the command line to the loop: configuration, logging, recipe."""

import argparse
import logging
import sys
from pathlib import Path

from latentdiff.config import load_config
from latentdiff.doctor import check_torch_pair
from latentdiff.errors import InputError


def main(arguments: list[str]) -> int:
    """Train what a configuration says; returns the exit code (2 for bad input, after one sentence)."""
    parser = argparse.ArgumentParser("train.py", description="Train one stage: vae, vocoder, clap, diffusion or judge.")
    parser.add_argument("config", type=Path, help="a YAML file, for example configs/debug/audio_vae.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example train.max_steps=1000")
    parsed = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        config = load_config(parsed.config, parsed.overrides)
        check_torch_pair()
        # Heavy imports only after the configuration has been found good.
        from latentdiff.training.loop import Trainer
        from latentdiff.training.recipes import RECIPES

        Trainer(config, RECIPES[config.stage]).run()
    except InputError as error:
        print(f"latentdiff: {error}", file=sys.stderr)
        return 2
    return 0
