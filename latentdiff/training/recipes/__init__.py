"""The stages; a new one is one file here plus one line below and its configuration."""

from typing import Any

from latentdiff.training.recipe import Recipe
from latentdiff.training.recipes.clap import CLAPTraining
from latentdiff.training.recipes.consistency import ConsistencyTraining
from latentdiff.training.recipes.diffusion import DiffusionTraining
from latentdiff.training.recipes.judge import JudgeTraining
from latentdiff.training.recipes.vae import VAETraining
from latentdiff.training.recipes.vocoder import VocoderTraining

RECIPES: dict[str, type[Recipe[Any]]] = {
    "vae": VAETraining,
    "vocoder": VocoderTraining,
    "clap": CLAPTraining,
    "diffusion": DiffusionTraining,
    "consistency": ConsistencyTraining,
    "judge": JudgeTraining,
}
