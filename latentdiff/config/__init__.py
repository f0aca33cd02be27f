"""Typed configurations: what a YAML file, its one-level include and the command line may say.

YAML holds plain values only, never import paths. Every key is checked before anything heavy is imported:
an unknown key is an error that names the nearest known one.
"""

from latentdiff.config.components import CLAPRecipe, JudgeRecipe, Recipe, VAERecipe, VocoderRecipe
from latentdiff.config.reading import load_config, save_config
from latentdiff.config.recipes import (
    AnyRecipe,
    ConsistencyRecipe,
    ConsistencyTrainingConfig,
    DiffusionRecipe,
    DistillationConfig,
)
from latentdiff.config.sections import (
    AnyData,
    AnyUNet,
    AudioData,
    AutoencoderConfig,
    CLAPTower,
    DataConfig,
    Framing,
    GeneratorConfig,
    ImageData,
    KLAutoencoderConfig,
    LoRAConfig,
    MelSection,
    NewTextEncoder,
    NoiseScheduleConfig,
    OptimizerConfig,
    PatchAutoencoderConfig,
    PlainUNetConfig,
    Section,
    TrainConfig,
    TwoStreamUNetConfig,
    UNetConfig,
    VAEWeights,
    VocoderWeights,
)

__all__ = [
    "AnyData",
    "AnyRecipe",
    "AnyUNet",
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
    "LoRAConfig",
    "MelSection",
    "NewTextEncoder",
    "NoiseScheduleConfig",
    "OptimizerConfig",
    "PatchAutoencoderConfig",
    "PlainUNetConfig",
    "Recipe",
    "Section",
    "TrainConfig",
    "TwoStreamUNetConfig",
    "UNetConfig",
    "VAERecipe",
    "VAEWeights",
    "VocoderRecipe",
    "VocoderWeights",
    "load_config",
    "save_config",
]
