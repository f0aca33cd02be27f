"""Typed configurations: what a YAML file, its one-level include and the command line may say.

YAML holds plain values only, never import paths. Every key is checked before anything heavy is imported:
an unknown key is an error that names the nearest known one.
"""

from collections.abc import Iterator
from difflib import SequenceMatcher
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from latentdiff.errors import InputError


class Section(BaseModel):
    """A part of a configuration: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(Section):
    """Where the captioned media are and how a training item is cut from them."""

    path: Path
    """A folder in the `audiofolder` convention: metadata.jsonl or metadata.csv, or .txt sidecars."""
    caption_key: str | None = None
    """The metadata column that holds the captions; by default ``text``, else ``caption``."""
    seconds: float = Field(4.096, gt=0)
    """Length of a training item: longer files are cropped at random, shorter ones end in silence."""
    max_bad_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of faulty files that is left out (each is named); more than that stops the run before it begins."""
    held_out: float = Field(0.02, gt=0, lt=0.9)
    """Fraction of the files kept for validation (the same ones for every recipe and seed)."""
    num_workers: int = Field(0, ge=0)


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
    """Items a process takes through the model at once."""
    gradient_accumulation: int = Field(1, gt=0)
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
    overfit_check_steps: int = Field(20, ge=0)
    """Steps of the one-batch overfit check before training; 0 skips it."""
    trackers: list[
        Literal["tensorboard", "wandb", "mlflow", "comet_ml", "clearml", "dvclive", "aim", "swanlab", "trackio"]
    ] = ["tensorboard"]
    """accelerate's; the default needs no account."""


class MelSection(Section):
    """The mel front end: a preset's name or all its fields."""

    mel: str | dict[str, Any] = "starter-16k-64"


class Recipe(Section):
    """The keys every training configuration has."""

    data: DataConfig
    output: Path
    seed: int = Field(0, ge=0, lt=2**31)
    train: TrainConfig
    optimizer: OptimizerConfig


class PatchAutoencoderConfig(Section):
    """Our autoencoder that starts from the linear solution (PCA of mel patches)."""

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


class VAERecipe(Recipe, MelSection):
    """Train an autoencoder of x."""

    stage: Literal["vae"]
    autoencoder: AutoencoderConfig = PatchAutoencoderConfig()
    weights: VAEWeights = VAEWeights()
    adversarial_start: int = Field(0, ge=0)
    """First step at which the discriminator's verdict reaches the autoencoder."""
    statistics_items: int = Field(512, gt=1)
    """Training items from which PCA is solved and the latent scale measured."""


class VocoderWeights(Section):
    """Weights of the vocoder's loss terms (HiFi-GAN, equation 8); keys are the terms' names."""

    mel: float = Field(45.0, ge=0)
    stft: float = Field(0.0, ge=0)
    """Multi-resolution STFT distance (Parallel WaveGAN); HiFi-GAN itself has none."""
    feature_matching: float = Field(2.0, ge=0)
    adversarial: float = Field(1.0, ge=0)


class GeneratorConfig(Section):
    """transformers' `SpeechT5HifiGan`; the product of the rates must be the mel's hop."""

    upsample_rates: tuple[int, ...] = (8, 8, 2, 2)
    upsample_kernel_sizes: tuple[int, ...] = (16, 16, 4, 4)
    upsample_initial_channel: int = Field(128, gt=0)
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))


class VocoderRecipe(Recipe, MelSection):
    """Train a HiFi-GAN vocoder of the mel."""

    stage: Literal["vocoder"]
    generator: GeneratorConfig = GeneratorConfig()
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


class NewTextEncoder(Section):
    """A small T5 encoder trained jointly, with a tokenizer learnt from the captions."""

    width: int = Field(192, gt=0)
    layers: int = Field(3, gt=0)
    heads: int = Field(4, gt=0)
    vocabulary: int = Field(2048, gt=64)


class CLAPTower(Section):
    """Sizes of a small `ClapModel` trained here."""

    text_width: int = Field(128, gt=0)
    text_layers: int = Field(2, gt=0)
    audio_width: int = Field(32, gt=0)
    """Channels of the first Swin stage; doubled at each later one."""
    audio_depths: tuple[int, ...] = (1, 1, 2)
    projection: int = Field(128, gt=0)
    vocabulary: int = Field(2048, gt=64)


class CLAPRecipe(Recipe):
    """Train a joint embedding of sounds and captions."""

    stage: Literal["clap"]
    model: CLAPTower | str = CLAPTower()
    """Sizes of a new model, or a folder or hub id to go on from."""


class UNetConfig(Section):
    """diffusers' `UNet2DConditionModel`, in its own words."""

    block_out_channels: tuple[int, ...] = (96, 128, 160)
    layers_per_block: int = Field(1, gt=0)
    attention: tuple[bool, ...] = (False, True, True)
    """Whether a level has cross-attention."""
    attention_heads: int = Field(8, gt=0)
    norm_num_groups: int = Field(16, gt=0)


class NoiseScheduleConfig(Section):
    """The forward process, shared by training and sampling."""

    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "scaled_linear"
    """diffusers' names: CompVis's and AudioLDM's "linear" is ``scaled_linear`` here."""
    beta_start: float = Field(0.0015, gt=0, lt=1)
    beta_end: float = Field(0.0195, gt=0, lt=1)
    num_train_timesteps: int = Field(1000, gt=1)
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"


class DiffusionRecipe(Recipe):
    """Train the denoiser (and, if it is new, the text encoder) on latents."""

    stage: Literal["diffusion"]
    vae: str
    """Folder or hub id."""
    vocoder: str
    """Folder or hub id."""
    text_encoder: NewTextEncoder | str | None = NewTextEncoder()
    """A new small T5, or a folder or hub id of a published one (kept frozen), or null: no token sequence."""
    clap: str | None = None
    """Folder or hub id of a CLAP whose embedding also conditions (FiLM); null: none."""
    clap_condition: Literal["text", "audio"] = "text"
    """What CLAP sees in training; at use it always sees the prompt (AudioLDM trains on ``audio``)."""
    pooled_tokens: bool = False
    """Also add the mean of the T5 tokens to the time embedding (FiLM): what the prompt is about reaches every
    layer at once, and is learnt much sooner than through attention alone. Where CLAP is given, it has that place."""
    unet: UNetConfig = UNetConfig()
    schedule: NoiseScheduleConfig = NoiseScheduleConfig()
    caption_dropout: float = Field(0.1, ge=0, lt=1)
    """Chance of the empty caption, which classifier-free guidance needs."""
    min_snr_gamma: float | None = Field(None, gt=0)
    """Clamp of the loss weight (Hang et al. 2023); null: the plain loss."""
    sampler: Literal["ddim", "ddpm", "dpmsolver++", "unipc", "heun", "euler"] = "dpmsolver++"
    """The saved pipeline's scheduler, with its default number of steps and guidance scale."""
    default_steps: int = Field(20, gt=0)
    default_guidance: float = Field(3.0, ge=0)


class JudgeRecipe(Recipe, MelSection):
    """Train a classifier of the ``sources`` labels, to listen to what a generator makes."""

    stage: Literal["judge"]
    width: int = Field(48, gt=0)


AnyRecipe = Annotated[
    VAERecipe | VocoderRecipe | CLAPRecipe | DiffusionRecipe | JudgeRecipe, Field(discriminator="stage")
]


def load_config(path: Path, overrides: list[str] | None = None) -> AnyRecipe:
    """Read a training configuration.

    Args:
        path: YAML file; its ``include:`` key may name one other file (relative to it), whose keys it
            overrides.
        overrides: ``key.sub=value`` strings that win over both; values are read as YAML.

    Raises:
        InputError: for a missing file, broken YAML, an unknown key (the nearest known one is named) or a bad
            value.
    """
    values = _read_yaml(path)
    if include := values.pop("include", None):
        if not isinstance(include, str):
            raise InputError(f"{path}: include is {include!r}; it must name one file.")
        base = _read_yaml(path.parent / include)
        if "include" in base:
            raise InputError(f"{path.parent / include} itself has an include; only one level is allowed.")
        values = _merge(base, values)
    for override in overrides or []:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise InputError(f"'{override}' is not of the form key.sub=value.")
        nested: Any = _parse_yaml(text, f"the value of '{key}'")
        for part in reversed(key.strip().split(".")):
            nested = {part: nested}
        values = _merge(values, nested)
    try:
        return TypeAdapter(AnyRecipe).validate_python(_floats(values))
    except ValidationError as error:
        problems = error.errors()
        # A value that may be a section or a name fails as both; as a section it has the more to say.
        said = [p for p in problems if not (p["type"] == "string_type" and isinstance(p["input"], dict))]
        raise InputError(f"{path}: {'; '.join(_explain(p, values) for p in said or problems)}.") from error


def save_config(config: Section, path: Path) -> None:
    """Write the resolved configuration as YAML, beside the weights it made."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"there is no configuration file {path}.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file in UTF-8.") from error
    values = _parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise InputError(f"{path} does not hold keys and values.")
    return values


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{where} is not valid YAML: {' '.join(str(error).split())}.") from error


def _floats(value: Any) -> Any:
    """YAML 1.1 reads ``1e-4`` as a string (it wants ``1.0e-4``); people write the former."""
    if isinstance(value, dict):
        return {key: _floats(item) for key, item in value.items()}
    if isinstance(value, str) and value[:1] in "+-.0123456789" and "e" in value.lower():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and value.get("kind") in (None, old.get("kind")):
            merged[key] = _merge(old, value)
        else:  # a section of another kind has other keys, so it takes the old one's place
            merged[key] = value
    return merged


def _explain(problem: ErrorDetails, values: dict[str, Any]) -> str:
    where = ".".join(_written(problem, values))
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{where}'; did you mean '{_nearest(where, values)}'?"
    if problem["type"] == "union_tag_not_found":
        return f"{where or 'the file'} lacks the key {problem.get('ctx', {}).get('discriminator')}"
    shown = "" if isinstance(problem["input"], dict) else f" (got {problem['input']!r})"
    return f"{where or 'the file'}: {problem['msg']}{shown}"


def _written(problem: ErrorDetails, values: Any) -> Iterator[str]:
    """The keys to the problem as they stand in the file; pydantic puts the names of types between them."""
    for part in problem["loc"]:
        inside = isinstance(values, dict) and part in values
        if inside or (isinstance(values, list) and isinstance(part, int) and part < len(values)):
            values = values[part]
            yield str(part)
    if problem["type"] == "missing":
        yield str(problem["loc"][-1])


def _nearest(unknown: str, values: dict[str, Any]) -> str:
    """The known key most like an unknown one, with its section if that is another one."""
    section, _, key = unknown.rpartition(".")

    def likeness(known: str) -> float:
        known_section, _, known_key = known.rpartition(".")
        return SequenceMatcher(None, key, known_key).ratio() + 0.1 * (section == known_section)

    stages: dict[str, Any] = {get_args(m.model_fields["stage"].annotation)[0]: m for m in Recipe.__subclasses__()}
    # The unknown key itself may be one of another kind of the same section.
    near = max(sorted(set(_known_keys(stages[values["stage"]])) - {unknown}), key=likeness)
    return near.removeprefix(f"{section}.")


def _known_keys(model: Any, section: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield section + name
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, Section):
                yield from _known_keys(part, f"{section}{name}.")
