"""The configurations of the stages that train a denoiser, and of all stages by their key ``stage``."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from latentdiff.config.components import CLAPRecipe, JudgeRecipe, Recipe, VAERecipe, VocoderRecipe
from latentdiff.config.objectives import AnyObjective, ContinuousObjective, SimpleObjective
from latentdiff.config.sections import (
    AnyData,
    AnyUNet,
    ImageData,
    LoRAConfig,
    NewTextEncoder,
    NoiseScheduleConfig,
    PlainUNetConfig,
    Section,
    TwoStreamUNetConfig,
    UNetConfig,
)

_WITHOUT_PROMPT = {"text_encoder": None, "caption_dropout": 0.0, "default_guidance": 1.0}
"""What the keys of a `DiffusionRecipe` mean where ``conditioning`` is ``none``."""

_OF_INIT: dict[str, Any] = {
    **dict.fromkeys(("vae", "vocoder", "text_encoder", "clap", "language_model", "adapter", "unet", "schedule")),
    **{"clap_condition": "text", "pooled_tokens": False},
}
"""What a finished pipeline says itself, and how these keys of a `DiffusionRecipe` stand where ``init`` names one."""
_LEFT_TO_INIT = ("sampler", "default_steps", "default_guidance")
"""Keys that are null where the pipeline's own stay."""

_Sampler = Literal["ddim", "ddpm", "dpmsolver++", "dpmsolver++-karras", "unipc", "heun", "euler"]
_OWN_PROCESS = [get_args(kind.model_fields["kind"].annotation)[0] for kind in get_args(ContinuousObjective)]


class DiffusionRecipe(Recipe):
    """Train the denoiser (and, if it is new, the text encoder) on latents; or a finished one further."""

    stage: Literal["diffusion"]
    data: AnyData
    init: str | None = None
    """A finished pipeline to go on from: a bundled name, a folder or a hub id, of ours or of a published family. It
    brings the parts, the noise schedule and the prediction; null: new ones, by the keys below."""
    lora: LoRAConfig | None = None
    """With ``init``: only low-rank matrices learn, and OUTPUT/lora is what is saved; null: all of the U-Net does."""
    train_text_encoder: bool = True
    """With ``init`` and without ``lora``: the T5 of a pipeline of ours learns on. False keeps it as it is, as published
    families' encoders always are."""
    conditioning: Literal["prompt", "none"] = "prompt"
    """What steers the denoiser. With ``none`` it makes pictures like the data, whose captions are not read."""
    vae: Annotated[str | None, BeforeValidator(lambda vae: None if vae == "none" else vae)]
    """Folder or hub id, or for pictures ``none``: z is x itself."""
    vocoder: str | None = None
    """Folder or hub id; sounds need one, pictures have none."""
    latents: Path | None = None
    """A folder that `latentdiff data encode` has filled; what is there of something else is refused, with both keys.
    null: OUTPUT/latents, filled when the training begins."""
    text_encoder: NewTextEncoder | str | None = NewTextEncoder()
    """A new small T5, or a folder or hub id of a published one (kept frozen), or null: no token sequence."""
    clap: str | None = None
    """Folder or hub id of a CLAP whose embedding also conditions (FiLM); null: none."""
    clap_condition: Literal["text", "audio"] = "text"
    """What CLAP sees in training; at use it always sees the prompt (AudioLDM trains on ``audio``)."""
    language_model: str | None = None
    """Folder or hub id of a GPT-2 that goes on from CLAP and the text encoder's tokens, with a sequence of its own for
    a ``two_stream`` U-Net (AudioLDM2). It learns, with a new projection before it; null: none."""
    adapter: int | None = Field(None, gt=0)
    """Width of a trained linear layer and norm behind a frozen text encoder (Auffusion); null: none."""
    pooled_tokens: bool = False
    """Also add the mean of the T5 tokens to the time embedding (FiLM): what the prompt is about reaches every
    layer at once, and is learnt much sooner than through attention alone. Where CLAP is given, it has that place."""
    unet: AnyUNet | None = UNetConfig()
    objective: AnyObjective = SimpleObjective()
    schedule: NoiseScheduleConfig | None = NoiseScheduleConfig()
    """The process of objectives on discrete times; null for the others, which say their own."""
    balance: str | None = None
    """An attribute of the metadata whose rare names are drawn more often: a row of a name that n rows have, by
    1 / sqrt(n); null: all rows alike."""
    caption_dropout: float = Field(0.1, ge=0, lt=1)
    """Chance of the empty caption, which classifier-free guidance needs."""
    sampler: _Sampler | None = "dpmsolver++"
    """The saved pipeline's scheduler, with its default number of steps and guidance scale; null: those of ``init``."""
    default_steps: int | None = Field(20, gt=0)
    default_guidance: float | None = Field(3.0, ge=0)
    default_guidance_interval: tuple[float, float] | None = None
    """The part of the sampler's steps that is guided, as shares from 0 to 1; null: all of them, or as ``init`` says."""

    default_compose: bool | None = None
    """Whether the saved pipeline makes the sounds that a prompt joins one by one; null: no, or as ``init`` says."""

    default_guidance_rescale: float | None = Field(None, ge=0, le=1)
    """How far the saved pipeline keeps guidance from making media louder or richer in contrast; null: not at all, or as
    ``init`` says."""

    @field_validator("default_guidance_interval")
    @classmethod
    def _part(cls, interval: tuple[float, float] | None) -> tuple[float, float] | None:
        if interval is not None and not 0 <= interval[0] < interval[1] <= 1:
            raise ValueError("must be two shares from 0 to 1, the lower one first")
        return interval

    @model_validator(mode="before")
    @classmethod
    def _without_prompt(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("conditioning") != "none":
            return values
        return {**_WITHOUT_PROMPT, **values}

    @model_validator(mode="before")
    @classmethod
    def _left_to_init(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not values.get("init"):
            return values
        objective = values.get("objective", {})
        if isinstance(objective, dict) and objective.get("kind") not in _OWN_PROCESS:
            objective = {"prediction": None, **objective}
        return {**dict.fromkeys(_LEFT_TO_INIT), **_OF_INIT, **values, "objective": objective}

    @model_validator(mode="after")
    def _parts_of_init(self) -> Self:
        prediction = getattr(self.objective, "prediction", None)
        if self.init is None:
            nothing = [key for key in ("unet", *_LEFT_TO_INIT) if getattr(self, key) is None]
            if nothing or (prediction is None and not isinstance(self.objective, ContinuousObjective)):
                raise ValueError(f"{(nothing or ['objective.prediction'])[0]} is null, which only init can stand for")
            if self.lora is not None or not self.train_text_encoder:
                key = "lora" if self.lora is not None else "train_text_encoder"
                raise ValueError(f"{key} is a key for going on from a finished model; name it by init")
            return self
        if self.conditioning == "none":
            raise ValueError("conditioning is none, and init is for models that hear prompts; leave out one of the two")
        for key, value in _OF_INIT.items():
            if getattr(self, key) != value:
                raise ValueError(f"{key} comes from init, {self.init}; leave it out")
        if isinstance(self.objective, ContinuousObjective):
            raise ValueError(f"objective.kind is {self.objective.kind}, which says its own process; init brings one")
        if prediction is not None:
            raise ValueError(f"objective.prediction comes from init, {self.init}; leave it out")
        return self

    @model_validator(mode="before")
    @classmethod
    def _without_schedule(cls, values: Any) -> Any:
        objective = values.get("objective") if isinstance(values, dict) else None
        kind = objective.get("kind") if isinstance(objective, dict) else None
        return {"schedule": None, **values} if kind in _OWN_PROCESS else values

    @model_validator(mode="after")
    def _schedule_of_discrete_times_only(self) -> Self:
        own = isinstance(self.objective, ContinuousObjective)
        if own and self.schedule is not None:
            raise ValueError(f"objective.kind is {self.objective.kind}, which says its own process; leave schedule out")
        if not own and self.schedule is None and self.init is None:
            raise ValueError("schedule is null, and the objective needs one; leave it out for the default")
        return self

    @model_validator(mode="after")
    def _conditioning_is_what_it_says(self) -> Self:
        if self.conditioning == "prompt":
            if isinstance(self.unet, PlainUNetConfig):
                raise ValueError("unet.kind is plain, which hears no prompt; set conditioning: none, or leave it out")
            return self
        if not isinstance(self.data, ImageData):
            raise ValueError("conditioning is none, which only pictures can have; leave it out")
        for key, value in {**_WITHOUT_PROMPT, "clap": None, "adapter": None, "pooled_tokens": False}.items():
            if getattr(self, key) != value:
                raise ValueError(f"{key} is a key for models with prompts, and conditioning is none; leave it out")
        return self

    @model_validator(mode="after")
    def _what_goes_together(self) -> Self:
        frozen = isinstance(self.text_encoder, str)
        if (self.language_model is not None) != isinstance(self.unet, TwoStreamUNetConfig):
            raise ValueError("language_model and unet.kind two_stream go together; give both or neither")
        if self.language_model is not None and not (frozen and self.clap and not self.adapter):
            raise ValueError("language_model goes on from a published text_encoder and a clap; name both, no adapter")
        if self.adapter is not None and (not frozen or self.pooled_tokens):
            raise ValueError("adapter stands behind a published text_encoder; name one, without pooled_tokens")
        return self

    @model_validator(mode="after")
    def _parts_of_the_medium(self) -> Self:
        if isinstance(self.data, ImageData):
            for key in ("vocoder", "clap", "adapter", "default_compose"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key} is a key for sounds, and data.kind is image; leave it out")
            return self
        for key in ("vae", "vocoder") if self.init is None else ():
            if getattr(self, key) is None:
                raise ValueError(f"{key} is missing: sounds need one, name its folder or hub id")
        return self


class DistillationConfig(Section):
    """z_s is one step of the guided teacher, whose guidance scale is an input of the student (Luo et al. 2023)."""

    kind: Literal["distillation"] = "distillation"
    intervals: int = Field(50, gt=1)
    """Equal parts of the time, at whose two ends the student is made to agree; also the most steps it can take."""
    guidance: tuple[Annotated[float, Field(ge=1)], Annotated[float, Field(ge=1)]] = (1.0, 4.0)
    """Lowest and highest scale that it learns; the teacher's own default must be among them."""
    target_decay: float = Field(0.95, ge=0, lt=1)
    """Decay of the moving average of the student that it is held against; 0: against itself."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.guidance[0] > self.guidance[1]:
            raise ValueError(f"method.guidance is {list(self.guidance)}; the lowest scale comes first")
        return self


class ConsistencyTrainingConfig(Section):
    """z_s is from the data, no teacher is asked (Song and Dhariwal 2024). The student is held against itself."""

    kind: Literal["training"]
    first_intervals: int = Field(25, gt=1)
    """Equal parts of the time at the beginning; doubled after equal parts of the run."""
    intervals: int = Field(200, gt=1)
    """The same at the end; also the most steps the student can take."""
    caption_dropout: float = Field(0.1, ge=0, lt=1)
    """Chance of the empty caption, which classifier-free guidance needs."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.first_intervals > self.intervals:
            raise ValueError(
                f"method.first_intervals is {self.first_intervals}; it must be at most method.intervals, "
                f"{self.intervals}"
            )
        return self


ConsistencyMethod = Annotated[
    Annotated[DistillationConfig | ConsistencyTrainingConfig, Field(discriminator="kind")],
    # Distillation is what a section without a kind means.
    BeforeValidator(lambda method: {"kind": "distillation", **method} if isinstance(method, dict) else method),
]


class ConsistencyRecipe(Recipe):
    """Train a few-step student on a finished pipeline's latents."""

    stage: Literal["consistency"]
    data: AnyData
    teacher: str | None = None
    """Folder of a finished pipeline, or a bundled model's name. The student is one with its U-Net exchanged. null: none
    is needed to train a model of pixels without a prompt, on EDM's process."""
    method: ConsistencyMethod = DistillationConfig()
    unet: AnyUNet | None = None
    """Sizes of a new student; null: a copy of the teacher's U-Net, weights and all."""
    default_steps: int = Field(4, gt=0)

    @model_validator(mode="after")
    def _teacher_or_not(self) -> Self:
        if isinstance(self.unet, TwoStreamUNetConfig):
            raise ValueError("unet.kind two_stream is for the stage diffusion; choose conditional or plain")
        new = isinstance(self.data, ImageData) and isinstance(self.unet, PlainUNetConfig)
        if self.teacher is None and not (new and self.method.kind == "training"):
            raise ValueError(
                "teacher is missing: name the folder of a finished pipeline. Without one there are only pictures, with "
                "method.kind training and unet.kind plain"
            )
        return self


AnyRecipe = Annotated[
    VAERecipe | VocoderRecipe | CLAPRecipe | DiffusionRecipe | ConsistencyRecipe | JudgeRecipe,
    Field(discriminator="stage"),
]
