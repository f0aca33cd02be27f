"""Typed configurations: what a YAML file, its one-level include and the command line may say.

YAML holds plain values only, never import paths. Every key is checked before anything heavy is imported:
an unknown key is an error that names the nearest known one.
"""

from latentdiff.config.reading import load_config, save_config
from latentdiff.config.recipes import (
    AnyRecipe,
    CLAPRecipe,
    ConsistencyRecipe,
    ConsistencyTrainingConfig,
    DiffusionRecipe,
    DistillationConfig,
    JudgeRecipe,
    Recipe,
    VAERecipe,
    VocoderRecipe,
)
from latentdiff.config.sections import (
    AnyData,
    AudioData,
    AutoencoderConfig,
    CLAPTower,
    DataConfig,
    Framing,
    GeneratorConfig,
    ImageData,
    KLAutoencoderConfig,
    MelSection,
    NewTextEncoder,
    NoiseScheduleConfig,
    OptimizerConfig,
    PatchAutoencoderConfig,
    Section,
    TrainConfig,
    UNetConfig,
    VAEWeights,
    VocoderWeights,
)

__all__ = [
    "AnyData",
    "AnyRecipe",
    "AudioData",
    "AutoencoderConfig",
    "CLAPRecipe",
    "CLAPTower",
    "ConsistencyRecipe",
    "ConsistencyTrainingConfig",
    "DataConfig",
    "DiffusionRecipe",
    "DistillationConfig",
    "Framing",
    "GeneratorConfig",
    "ImageData",
    "JudgeRecipe",
    "KLAutoencoderConfig",
    "MelSection",
    "NewTextEncoder",
    "NoiseScheduleConfig",
    "OptimizerConfig",
    "PatchAutoencoderConfig",
    "Recipe",
    "Section",
    "TrainConfig",
    "UNetConfig",
    "VAERecipe",
    "VAEWeights",
    "VocoderRecipe",
    "VocoderWeights",
    "load_config",
    "save_config",
]
