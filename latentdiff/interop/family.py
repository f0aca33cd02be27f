"""What a family of published pipelines is: which of its folders holds which of our components."""

from dataclasses import dataclass, field
from typing import Any

TOKENIZERS = ("RobertaTokenizer", "T5Tokenizer", "CLIPTokenizer", "PreTrainedTokenizer", "TokenizersBackend")
"""Classes under which a tokenizer may be noted, also with ``Fast`` behind; which one it is, its files say."""


@dataclass(frozen=True)
class Part:
    """One of our components in their folder."""

    folder: str
    """Its name in ``model_index.json``, and its subfolder."""
    kinds: tuple[str, ...]
    """Classes it may be noted as; the first one is what it is loaded as. ``Scheduler`` is any of diffusers'."""
    optional: bool = False


def tokenizer(folder: str) -> Part:
    """A tokenizer in this folder."""
    return Part(folder, (*TOKENIZERS, *(f"{name}Fast" for name in TOKENIZERS)))


SCHEDULER = Part("scheduler", ("Scheduler",))
VAE = Part("vae", ("AutoencoderKL",))
UNET = Part("unet", ("UNet2DConditionModel",))
VOCODER = Part("vocoder", ("SpeechT5HifiGan",))
FEATURES = Part("feature_extractor", ("ClapFeatureExtractor",), optional=True)


@dataclass(frozen=True)
class Family:
    """A table from which a folder is loaded into one of our pipelines."""

    pipelines: tuple[str, ...]
    """The ``_class_name`` in ``model_index.json``."""
    medium: str
    parts: dict[str, Part]
    """By the name in our pipeline."""
    mels: tuple[str, ...] = ()
    """Presets of which the vocoder says one; its VAE carries no definition."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """Of steps and guidance: what the same call gives in diffusers."""
    ignored: tuple[str, ...] = ()
    """Their components that nothing here needs."""
