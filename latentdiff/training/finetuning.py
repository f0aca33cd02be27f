"""A finished pipeline that the diffusion stage goes on from: its parts in the places of new ones, or LoRA beside."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from diffusers import SchedulerMixin
from safetensors import SafetensorError
from torch import nn
from transformers import T5EncoderModel

from latentdiff.config import AnyData, DiffusionRecipe, ImageData
from latentdiff.diffusion.process import family_of
from latentdiff.diffusion.samplers import few_step_sampler, make_scheduler
from latentdiff.errors import InputError
from latentdiff.interop.folder import recognise
from latentdiff.interop.hub import fetch
from latentdiff.models.lora import add_lora
from latentdiff.models.text import NOTHING, Conditioning
from latentdiff.names import BUNDLED, PIPELINES, bundled_folder
from latentdiff.pipelines.base import LatentDiffusionPipeline
from latentdiff.pipelines.text_to_audio import TextToAudioPipeline
from latentdiff.pipelines.text_to_image import TextToImagePipeline
from latentdiff.training.conditioning import Listener

logger = logging.getLogger(__name__)

HEARING = ("text_encoder", "tokenizer", "clap", "clap_tokenizer", "projection_model", "language_model", "adapter")
"""The components by which a pipeline hears prompts."""


class FrozenListener(Listener):
    """One whose parts all stay as they are, so that tau itself is cached and no part is in a checkpoint."""

    @property
    def checkpointed(self) -> dict[str, nn.Module]:
        return {}

    @torch.no_grad()
    def read(self, captions: list[str], known: Conditioning = NOTHING) -> Conditioning:
        """tau of captions, unless it is known."""
        if known.tokens is not None or known.pooled is not None:
            return known
        assert self.encoder is not None
        return self.encoder(captions)

    def tell(self, read: Conditioning, captions: list[str]) -> Conditioning:
        return read


@dataclass(frozen=True)
class Finished:
    """A pipeline with the folder it came from; all of it is frozen but what is to learn."""

    pipeline: LatentDiffusionPipeline
    folder: Path
    learns: tuple[str, ...]
    """Components that learn on."""

    @property
    def process(self) -> Mapping[str, Any]:
        """The scheduler's configuration: noise levels and prediction."""
        config: Mapping[str, Any] = self.pipeline.scheduler.config
        return config

    def listener(self, device: torch.device) -> Listener:
        """The components that hear prompts, in training."""
        parts = {name: part for name in HEARING if (part := getattr(self.pipeline, name, None)) is not None}
        kind = Listener if "text_encoder" in self.learns else FrozenListener
        listener = kind(parts, bool(self.pipeline.unet.config.class_embed_type), device)
        if kind is FrozenListener or "clap" in parts:
            listener.sources = {"init": self._hash_of_hearing()}
        return listener

    def _hash_of_hearing(self) -> str:
        family = recognise(self.folder)
        names = HEARING if isinstance(family, str) else [family.parts[n].folder for n in HEARING if n in family.parts]
        digest = hashlib.sha256()
        for path in sorted(path for name in names for path in (self.folder / name).glob("*") if path.is_file()):
            digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()

    def scheduler(self, sampler: str | None) -> SchedulerMixin:
        """A sampler by name on the pipeline's process, or its own."""
        return make_scheduler(sampler, self.process) if sampler is not None else self.pipeline.scheduler

    def require_fitting(self, channels: int, output_channels: int) -> None:
        """Refuse latents of another number of channels than the U-Net's, and an objective that wants other outputs.

        Raises:
            InputError: with both values.
        """
        unet = self.pipeline.unet.config
        if unet.in_channels != channels:
            raise InputError(f"the data have {channels} channels, and init takes {unet.in_channels}; make them equal.")
        if unet.out_channels != channels * output_channels:
            raise InputError(
                f"the objective needs {channels * output_channels} channels of output, and init has "
                f"{unet.out_channels}; choose the objective.kind that it was trained with, or simple."
            )

    def with_settings(self, config: DiffusionRecipe) -> LatentDiffusionPipeline:
        """The pipeline as it is now, with what the configuration says of its use and its own where that is silent."""
        own, data = self.pipeline.config, config.data
        made: dict[str, float | bool]
        if isinstance(data, ImageData):
            made = {"default_height": data.size[0], "default_width": data.size[1]}
        else:
            compose = own.default_compose if config.default_compose is None else config.default_compose
            made = {"default_seconds": data.seconds, "default_compose": compose}
        pipeline: LatentDiffusionPipeline = type(self.pipeline)(
            **{**self.pipeline.components, "scheduler": self.scheduler(config.sampler)},
            default_steps=own.default_steps if config.default_steps is None else config.default_steps,
            default_guidance=own.default_guidance if config.default_guidance is None else config.default_guidance,
            default_guidance_interval=config.default_guidance_interval or own.default_guidance_interval,
            default_guidance_rescale=(
                own.default_guidance_rescale
                if config.default_guidance_rescale is None
                else config.default_guidance_rescale
            ),
            prediction=own.prediction,
            **made,
        )
        return pipeline


def go_on_from(config: DiffusionRecipe, device: torch.device) -> Finished:
    """The pipeline that ``init`` names, ready to learn as the configuration says.

    Raises:
        InputError: if there is none, it is of another medium, or it cannot be trained in this way.
    """
    assert config.init is not None
    if config.lora is not None and find_spec("peft") is None:
        raise InputError('lora needs peft, which is not installed: pip install "peft>=0.21".')
    pipeline, folder = _load(config.init, config.data)
    _check(pipeline, config.init)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    pipeline.to(device)
    if config.lora is not None:
        add_lora(pipeline.unet, config.lora.rank, config.lora.alpha, config.lora.targets)
        learns: tuple[str, ...] = ("unet",)
    else:
        learns = ("unet", "text_encoder") if config.train_text_encoder and _has_own_t5(pipeline, folder) else ("unet",)
        for name in learns:
            getattr(pipeline, name).requires_grad_(True)
    counts = {name: sum(p.numel() for p in getattr(pipeline, name).parameters() if p.requires_grad) for name in learns}
    said = ", ".join(f"{count / 1e6:.3g} M parameters of its {name}" for name, count in counts.items())
    logger.info("going on from %s: %s learn", config.init, said)
    return Finished(pipeline, folder, learns)


def _load(source: str, data: AnyData) -> tuple[LatentDiffusionPipeline, Path]:
    kind: Any = TextToImagePipeline if isinstance(data, ImageData) else TextToAudioPipeline
    folder = bundled_folder(source) if source in BUNDLED else Path(source)
    if not folder.is_dir():
        if source.count("/") != 1 or source.startswith((".", "/")):
            raise InputError(
                f"init is {source}, which is no folder; name a finished pipeline's, a hub id, or "
                f"{' or '.join(BUNDLED)}."
            )
        folder = fetch(source)
    family = recognise(folder)
    medium = family if isinstance(family, str) else family.medium
    if PIPELINES[medium] != kind.__name__:
        raise InputError(f"init is {source}, which makes media of the kind {medium}, and data.kind is {data.kind}.")
    try:
        pipeline: LatentDiffusionPipeline = kind.from_pretrained(folder)
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise InputError(f"init is {source}, which cannot be loaded: {reason}.") from error
    return pipeline, folder


def _check(pipeline: LatentDiffusionPipeline, source: str) -> None:
    config = pipeline.scheduler.config
    if not pipeline.hears_prompts:
        raise InputError(f"init is {source}, which hears no prompt; only models that do can be trained further.")
    if few_step_sampler(config):
        raise InputError(f"init is {source}, a few-step student; go on from the pipeline that it was made from.")
    if family_of(config) != "variance_preserving":
        raise InputError(
            f"init is {source}, which undoes a process of the {family_of(config)} kind; only variance-preserving ones "
            "can be trained further."
        )


def _has_own_t5(pipeline: LatentDiffusionPipeline, folder: Path) -> bool:
    """Whether the text encoder is one that was trained with the U-Net: ours, and not in a published family's place."""
    parts = pipeline.components
    joined = parts.get("language_model") is not None or parts.get("adapter") is not None
    return isinstance(recognise(folder), str) and isinstance(parts.get("text_encoder"), T5EncoderModel) and not joined
