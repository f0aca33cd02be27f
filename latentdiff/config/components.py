"""The keys of every stage, and the stages that train one component from media: VAE, vocoder, CLAP and judge."""

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from latentdiff.config.sections import (
    AnyData,
    AudioData,
    AutoencoderConfig,
    CLAPTower,
    DataConfig,
    GeneratorConfig,
    ImageData,
    MelSection,
    OptimizerConfig,
    PatchAutoencoderConfig,
    Section,
    TrainConfig,
    VAEWeights,
    VocoderWeights,
)


def _is_of_pictures(values: Any) -> bool:
    data = values.get("data") if isinstance(values, dict) else None
    return isinstance(data, dict) and data.get("kind") == "image"


class Recipe(Section):
    """The keys every training configuration has."""

    data: DataConfig
    output: Path
    seed: int = Field(0, ge=0, lt=2**31)
    train: TrainConfig
    optimizer: OptimizerConfig


class EitherMedium(Recipe):
    """A stage that learns from media of either kind, and sees sounds through a mel."""

    data: AnyData
    mel: str | dict[str, Any] | None = "starter-16k-64"
    """The mel front end of sounds: a preset's name or all its fields; null for pictures."""

    @model_validator(mode="before")
    @classmethod
    def _without_mel(cls, values: Any) -> Any:
        return {"mel": None, **values} if _is_of_pictures(values) else values

    @model_validator(mode="after")
    def _mel_of_sounds_only(self) -> Self:
        if (self.mel is None) != isinstance(self.data, ImageData):
            raise ValueError(
                "sounds need a mel (leave it out for the default)"
                if self.mel is None
                else "mel is a key for sounds, and data.kind is image; leave it out"
            )
        return self


class Continued(Recipe):
    """A stage that trains a new component, of the sizes in one of its sections, or a finished one further."""

    sizes: ClassVar[str]
    """The key of that section."""
    init: str | None = None
    """Folder or hub id of a finished component to go on from, which brings its sizes: their section is null then."""

    @model_validator(mode="before")
    @classmethod
    def _sizes_of_init(cls, values: Any) -> Any:
        return {cls.sizes: None, **values} if isinstance(values, dict) and values.get("init") else values

    @model_validator(mode="after")
    def _new_or_finished(self) -> Self:
        given = getattr(self, self.sizes) is not None
        if self.init is not None and given:
            raise ValueError(f"{self.sizes} comes from init, {self.init}; leave it out, or make it null")
        if self.init is None and not given:
            raise ValueError(f"{self.sizes} is null, which only init can stand for")
        return self


class VAERecipe(EitherMedium, Continued):
    """Train an autoencoder of x."""

    sizes = "autoencoder"
    stage: Literal["vae"]
    autoencoder: AutoencoderConfig | None = PatchAutoencoderConfig()
    weights: VAEWeights = VAEWeights()
    adversarial_start: int = Field(0, ge=0)
    """First step at which the discriminator's verdict reaches the autoencoder."""
    discriminator_width: int = Field(64, gt=0)
    """Channels of the PatchGAN's first layer; 64 is pix2pix's."""
    statistics_items: int = Field(512, gt=1)
    """Training items from which PCA is solved and the latent scale measured."""
    train_encoder: bool = True
    """With ``init``: False lets the decoder alone learn, so that latents and all denoisers of them stay as good as they
    were (as Stable Diffusion's vae-ft-mse has it)."""

    @model_validator(mode="after")
    def _encoder_of_init(self) -> Self:
        if self.init is None and not self.train_encoder:
            raise ValueError("train_encoder is a key for going on from a finished VAE; name it by init")
        return self


class VocoderRecipe(Continued, MelSection):
    """Train a HiFi-GAN vocoder of the mel."""

    sizes = "generator"
    stage: Literal["vocoder"]
    data: AudioData
    generator: GeneratorConfig | None = GeneratorConfig()
    mel_iterations: int = Field(0, ge=0)
    """How often the mel is imposed on the output (`LogMel.impose`) in use; HiFi-GAN itself: 0."""
    training_mel_iterations: int = Field(0, ge=0)
    """The same in training, where each one costs; 0 exactly where ``mel_iterations`` is 0."""
    discriminator_width: int = Field(32, gt=0)
    """Channels of the discriminators' first layer; 32 is HiFi-GAN's multi-period size."""
    weights: VocoderWeights = VocoderWeights()
    adversarial_start: int = Field(0, ge=0)
    """Step at which the discriminators come in; before it only the spectral terms train."""
    vae: str | None = None
    """Folder of a VAE that half of the training mels go through, so that the vocoder knows its smoothness."""


class CLAPRecipe(Recipe):
    """Train a joint embedding of sounds and captions."""

    stage: Literal["clap"]
    data: AudioData
    model: CLAPTower | str = CLAPTower()
    """Sizes of a new model, or a folder or hub id to go on from."""


class JudgeRecipe(EitherMedium):
    """Train a classifier of sounds by their ``sources``, or of pictures by each of their ``attributes``, to judge what
    a generator makes."""

    stage: Literal["judge"]
    width: int = Field(48, gt=0)
    """Channels of the first stage."""
    joined: float = Field(0.0, ge=0, le=1)
    """Share of the training sounds that are joined with another, added or one after the other, so that the judge learns
    to hear two names in one sound."""

    @model_validator(mode="after")
    def _joined_sounds_only(self) -> Self:
        if self.joined and isinstance(self.data, ImageData):
            raise ValueError("joined is a key for sounds, and data.kind is image; leave it out")
        return self
