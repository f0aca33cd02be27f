"""The sections of a training configuration: data, optimiser, loop, and the sizes of networks."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """A part of a configuration: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(Section):
    """Where the captioned media are."""

    path: Path
    """A folder in the `audiofolder` or `imagefolder` convention: metadata.jsonl or metadata.csv, or .txt sidecars. Or
    WebDataset shards, here or in any store of fsspec: ``shards/{000..099}.tar``, ``s3://bucket/*.tar``."""
    caption_key: str | None = None
    """The metadata column that holds the captions; by default ``text``, else ``caption``."""
    max_bad_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of faulty files that is left out (each is named); more than that stops the run before it begins."""
    held_out: Annotated[float, Field(gt=0, lt=0.9)] | Path = 0.02
    """Fraction of the files kept for validation (the same ones for every recipe and seed), or a folder of others."""
    num_workers: int = Field(0, ge=0)


class AudioData(DataConfig):
    """A folder of sounds, and how a training item is cut from them."""

    kind: Literal["audio"] = "audio"
    seconds: float = Field(4.096, gt=0)
    """Length of a training item: longer files are cropped at random, shorter ones end in silence."""


def _opaque(colour: str) -> str:
    from PIL import ImageColor  # here, because reading a configuration imports nothing that it does not need

    if len(ImageColor.getrgb(colour)) != 3:  # a ValueError says that it knows no such colour
        raise ValueError("the background must be opaque")
    return colour


class Framing(Section):
    """How a picture of any size becomes x; it travels inside the VAE's ``config.json`` as ``image``."""

    size: Annotated[
        tuple[Annotated[int, Field(gt=0, le=2048)], Annotated[int, Field(gt=0, le=2048)]],
        BeforeValidator(lambda size: (size, size) if isinstance(size, int) else size),
    ] = (64, 64)
    """[height, width] of a training item in pixels, or one number for a square."""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """Other proportions: cut off what overhangs (at a random place), fill up with background, or distort."""
    background: Annotated[str, AfterValidator(_opaque)] = "white"
    """What shines through transparent pixels and fills up padding: a name or #rrggbb."""
    channels: Literal[1, 3] = 3
    """Of x: RGB, or the luminance alone."""


class ImageData(DataConfig, Framing):
    """A folder of pictures, and how a training item is made of them."""

    kind: Literal["image"]

    @property
    def framing(self) -> Framing:
        """The part that travels with the VAE."""
        return Framing(**{name: getattr(self, name) for name in Framing.model_fields})


AnyData = Annotated[
    Annotated[AudioData | ImageData, Field(discriminator="kind")],
    # Audio is what a section without a kind means.
    BeforeValidator(lambda data: {"kind": "audio", **data} if isinstance(data, dict) else data),
]


class OptimizerConfig(Section):
    """AdamW and its learning-rate schedule."""

    lr: float = Field(gt=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    weight_decay: float = Field(0.01, ge=0)
    schedule: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "constant_with_warmup"
    warmup_steps: int = Field(0, ge=0)


class TrainConfig(Section):
    """How long, how much at once, and what is written on the way."""

    max_steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    """Items a process takes through the model at once, at most."""
    gradient_accumulation: int = Field(1, gt=0)
    """A step has ``batch_size * gradient_accumulation`` items, shared by all processes, however many there are."""
    max_grad_norm: float = Field(1.0, gt=0)
    ema_decay: float = Field(0.0, ge=0, lt=1)
    """Decay of the exponential moving average of the weights; 0 keeps none."""
    mixed_precision: Annotated[
        Literal["no", "fp16", "bf16"], BeforeValidator(lambda value: "no" if value is False else value)
    ] = "no"
    """accelerate's word; YAML 1.1 reads a bare ``no`` as false."""
    log_every: int = Field(20, gt=0)
    validate_every: int = Field(1000, gt=0)
    checkpoint_every: int = Field(1000, gt=0)
    keep_checkpoints: int = Field(2, gt=0)
    timeout: float = Field(1800.0, gt=0)
    """Seconds that a process waits for the others, or for a data worker, before the run ends with an error. The
    others wait while one validates, so it must be longer than a validation."""
    accept_changes: bool = False
    """Go on from a checkpoint although a key that changes the result is not as it was."""
    overfit_check_steps: int = Field(20, ge=0)
    """Steps of the one-batch overfit check before training; 0 skips it."""
    trackers: list[
        Literal["tensorboard", "wandb", "mlflow", "comet_ml", "clearml", "dvclive", "aim", "swanlab", "trackio"]
    ] = ["tensorboard"]
    """accelerate's; the default needs no account."""


class MelSection(Section):
    """The mel front end: a preset's name or all its fields."""

    mel: str | dict[str, Any] = "starter-16k-64"


class PatchAutoencoderConfig(Section):
    """Our autoencoder that starts from the linear solution (PCA of patches)."""

    kind: Literal["patch"] = "patch"
    patch_size: Literal[4, 8, 16, 32] = 8
    """Compression an axis."""
    latent_channels: int = Field(8, gt=0)
    width: int = Field(64, gt=0, multiple_of=8)
    """Channels of the convolutional residual branches; 0 parameters of them act at the start."""
    depth: int = Field(2, gt=0)
    """Residual blocks a resolution."""


class KLAutoencoderConfig(Section):
    """diffusers' `AutoencoderKL`, as AudioLDM and Stable Diffusion have it."""

    kind: Literal["kl"]
    block_out_channels: tuple[int, ...] = (128, 256, 512)
    layers_per_block: int = Field(2, gt=0)
    latent_channels: int = Field(8, gt=0)
    norm_num_groups: int = Field(32, gt=0)


AutoencoderConfig = Annotated[PatchAutoencoderConfig | KLAutoencoderConfig, Field(discriminator="kind")]


class VAEWeights(Section):
    """Weights of the VAE's loss terms; keys are the terms' names."""

    reconstruction: float = Field(1.0, ge=0)
    """L1 on x, mean over elements."""
    kl: float = Field(1e-4, ge=0)
    """KL to N(0, I), **mean** over latent elements (a sum would be h*w*C times as large)."""
    adversarial: float = Field(0.0, ge=0)
    """Hinge PatchGAN on x; 0 builds no discriminator."""


class VocoderWeights(Section):
    """Weights of the vocoder's loss terms (HiFi-GAN, equation 8); keys are the terms' names."""

    mel: float = Field(45.0, ge=0)
    stft: float = Field(0.0, ge=0)
    """Multi-resolution STFT distance (Parallel WaveGAN); HiFi-GAN itself has none."""
    feature_matching: float = Field(2.0, ge=0)
    adversarial: float = Field(1.0, ge=0)


class GeneratorConfig(Section):
    """transformers' `SpeechT5HifiGan`; the product of the rates must be the mel's hop."""

    resblock: Literal[1, 2] = 1
    """Type of the residual blocks: 1 of HiFi-GAN V1 and V2, 2 of V3."""
    upsample_rates: tuple[int, ...] = (8, 8, 2, 2)
    upsample_kernel_sizes: tuple[int, ...] = (16, 16, 4, 4)
    upsample_initial_channel: int = Field(128, gt=0)
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))


class LoRAConfig(Section):
    """Low-rank matrices beside a frozen U-Net's (Hu et al. 2021), by peft: W + alpha / rank B A."""

    rank: int = Field(8, gt=0)
    alpha: int | None = Field(None, gt=0)
    """null: the rank, so that B A is added as it is."""
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Ends of the names of the layers that get them; by default all projections of the attention."""


class NewTextEncoder(Section):
    """A T5 encoder trained jointly, with a tokenizer learnt from the captions."""

    width: int = Field(192, gt=0)
    layers: int = Field(3, gt=0)
    heads: int = Field(4, gt=0)
    vocabulary: int = Field(2048, gt=64)
    head_width: int | None = Field(None, gt=0)
    """Channels of a head; null: the heads share the width."""
    inner_width: int | None = Field(None, gt=0)
    """Channels inside the feed-forward layers; null: twice the width."""
    gated: bool = True
    """GELU with a gate (T5 1.1), or without."""


class CLAPTower(Section):
    """Sizes of a small `ClapModel` trained here."""

    text_width: int = Field(128, gt=0)
    text_layers: int = Field(2, gt=0)
    audio_width: int = Field(32, gt=0)
    """Channels of the first Swin stage; doubled at each later one."""
    audio_depths: tuple[int, ...] = (1, 1, 2)
    projection: int = Field(128, gt=0)
    vocabulary: int = Field(2048, gt=64)


class UNetConfig(Section):
    """diffusers' `UNet2DConditionModel`, in its own words: it hears the prompt."""

    kind: Literal["conditional"] = "conditional"
    block_out_channels: tuple[int, ...] = (96, 128, 160)
    layers_per_block: Annotated[int, Field(gt=0)] | tuple[Annotated[int, Field(gt=0)], ...] = 1
    """Of all levels, or of each; on the way up there is one more."""
    attention: tuple[bool, ...] = (False, True, True)
    """Whether a level has cross-attention."""
    attention_heads: Annotated[int, Field(gt=0)] | tuple[Annotated[int, Field(gt=0)], ...] = 8
    """Of all levels, or of each."""
    linear_projection: bool = False
    """Around attention: linear layers (Stable Diffusion 2), or convolutions of one pixel."""
    norm_num_groups: int = Field(16, gt=0)


class TwoStreamUNetConfig(Section):
    """diffusers' `AudioLDM2UNet2DConditionModel`: an attention of its own for each of two token sequences."""

    kind: Literal["two_stream"]
    block_out_channels: tuple[int, ...] = (128, 256, 384, 640)
    layers_per_block: int = Field(2, gt=0)
    attention: tuple[bool, ...] = (False, True, True, True)
    """Whether a level has attention."""
    attention_heads: Annotated[int, Field(gt=0)] | tuple[Annotated[int, Field(gt=0)], ...] = 8
    """Of all levels, or of each."""
    transformer_layers: int = Field(1, gt=0)
    """Layers of each attention."""
    last_self_attention: bool = False
    """One more behind the two, of a level to itself, as there is one before them."""
    norm_num_groups: int = Field(32, gt=0)


class PlainUNetConfig(Section):
    """diffusers' `UNet2DModel`, the U-Net of DDPM and its relatives: it hears no prompt."""

    kind: Literal["plain"]
    block_out_channels: tuple[int, ...] = (128, 256, 256, 256)
    layers_per_block: int = Field(2, gt=0)
    attention: tuple[bool, ...] = (False, True, False, False)
    """Whether a level has self-attention; between the two halves there always is some."""
    head_width: int | None = Field(None, gt=0)
    """Channels of an attention head; null: one head."""
    norm_num_groups: int = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    time_shift: Literal["default", "scale_shift"] = "default"
    """How t reaches a block: added, or as scale and shift of its norm (improved DDPM)."""
    time_width: int | None = Field(None, gt=0)
    """Channels of the embedding of t; null: four times the first level's."""
    resample: Literal["conv", "resnet"] = "conv"
    """How the size changes between levels: by a convolution, or by a residual block (ADM, EDM)."""
    fourier_features: bool = False
    """Also see sin and cos of fine multiples of the input, and add it to the output (VDM)."""


AnyUNet = Annotated[
    Annotated[UNetConfig | TwoStreamUNetConfig | PlainUNetConfig, Field(discriminator="kind")],
    # One that hears the prompt is what a section without a kind means.
    BeforeValidator(lambda unet: {"kind": "conditional", **unet} if isinstance(unet, dict) else unet),
]


class NoiseScheduleConfig(Section):
    """The forward process of objectives on discrete times, shared by training and sampling."""

    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "scaled_linear"
    """diffusers' names: CompVis's and AudioLDM's "linear" is ``scaled_linear`` here, cosine ``squaredcos_cap_v2``."""
    beta_start: float = Field(0.0015, gt=0, lt=1)
    beta_end: float = Field(0.0195, gt=0, lt=1)
    num_train_timesteps: int = Field(1000, gt=1)
    rescale_betas_zero_snr: bool = False
    """Shift the schedule so that nothing of the data is left at its end (Lin et al. 2023)."""
