"""The finished pipeline that a few-step student is made from."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors import SafetensorError

from latentdiff.config import AnyData, AnyUNet, ImageData, PlainUNetConfig
from latentdiff.diffusion.consistency import ConsistencyForm, KarrasConsistency, LatentConsistency
from latentdiff.diffusion.process import EDMSchedule, family_of, prediction_of
from latentdiff.diffusion.samplers import few_step_sampler, make_scheduler
from latentdiff.diffusion.schedule import DiscreteSchedule
from latentdiff.errors import InputError
from latentdiff.models.denoiser import Denoiser, new_denoiser
from latentdiff.names import BUNDLED, bundled_folder
from latentdiff.pipelines.base import LatentDiffusionPipeline
from latentdiff.pipelines.text_to_audio import TextToAudioPipeline
from latentdiff.pipelines.text_to_image import TextToImagePipeline

PIXELS_DEVIATION = 0.5
"""EDM's sigma_data of pixels (Karras et al. 2022, table 1)."""


def load_teacher(source: str, data: AnyData, device: torch.device) -> tuple[LatentDiffusionPipeline, Path]:
    """A frozen pipeline by folder or bundled name, and its folder.

    Raises:
        InputError: if there is none, or one of another medium.
    """
    kind: Any = TextToImagePipeline if isinstance(data, ImageData) else TextToAudioPipeline
    folder = bundled_folder(source) if source in BUNDLED else Path(source)
    index = folder / "model_index.json"
    if not index.is_file():
        raise InputError(
            f"the teacher {source} is no pipeline folder: it has no model_index.json. Name the folder OUTPUT/pipeline "
            f"of a diffusion run, or {' or '.join(BUNDLED)}."
        )
    try:
        made = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
        if made != kind.__name__:
            raise InputError(
                f"the teacher {source} is a {made}, and data.kind is {data.kind}, which needs a {kind.__name__}."
            )
        pipeline: LatentDiffusionPipeline = kind.from_pretrained(folder)
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise InputError(f"the teacher {source} cannot be loaded: {reason}.") from error
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return pipeline.to(device), folder


def no_teacher(data: ImageData, sizes: AnyUNet, device: torch.device) -> LatentDiffusionPipeline:
    """What stands in its place for pixels without a prompt: EDM's process, and a new U-Net that teaches nothing."""
    process = EDMSchedule(sigma_data=PIXELS_DEVIATION).to_config()
    unet = new_denoiser(sizes, data.channels, tokens_width=None, pooled_width=None).requires_grad_(False)
    return TextToImagePipeline(vae=None, unet=unet, scheduler=make_scheduler("euler", process)).to(device)


def consistency_form(pipeline: LatentDiffusionPipeline, intervals: int) -> ConsistencyForm:
    """The boundary-respecting function on the pipeline's process.

    Raises:
        InputError: if no student of this pipeline could be sampled by one of diffusers' schedulers.
    """
    config = pipeline.scheduler.config
    if few_step_sampler(config):
        raise InputError("the teacher is a few-step student itself; name the pipeline that it was made from.")
    if family_of(config) == "edm":
        return KarrasConsistency(EDMSchedule.from_config(config))
    if family_of(config) != "variance_preserving":
        raise InputError(
            f"the teacher undoes a process of the {family_of(config)} kind; few-step students are made of "
            "variance-preserving ones and of EDM's."
        )
    form = LatentConsistency(DiscreteSchedule.from_config(config), prediction_of(config))
    steps = len(form.schedule.betas)
    if steps % intervals or 2 * intervals > steps:
        raise InputError(
            f"method.intervals is {intervals}; it must divide the teacher's {steps} training times, in parts of two "
            "or more."
        )
    return form


def new_student(teacher: Denoiser, sizes: AnyUNet | None, guidance_width: int) -> Denoiser:
    """A U-Net that stands in the teacher's place.

    Args:
        teacher: the pipeline's.
        sizes: of a new one; None for a copy of the teacher, which begins by ignoring the guidance scale.
        guidance_width: channels of the guidance scale as an input; 0 for none.

    Raises:
        InputError: if only one of the two hears prompts.
    """
    built, old = teacher, teacher.config
    if sizes is not None:
        hears = isinstance(teacher, UNet2DConditionModel)
        if hears == isinstance(sizes, PlainUNetConfig):
            raise InputError(f"unet.kind is {sizes.kind}, and the teacher hears {'' if hears else 'no '}prompts.")
        tokens_width = old.cross_attention_dim if hears and isinstance(old.cross_attention_dim, int) else None
        pooled_width = old.projection_class_embeddings_input_dim if hears else None
        apart = bool(hears and old.class_embeddings_concat)
        built = new_denoiser(sizes, old.in_channels, tokens_width, pooled_width, apart)
    if not guidance_width:
        return copy.deepcopy(built).requires_grad_(True)
    student: UNet2DConditionModel = UNet2DConditionModel.from_config(
        {**built.config, "time_cond_proj_dim": guidance_width}
    )
    student.load_state_dict(built.state_dict(), strict=False)
    torch.nn.init.zeros_(student.time_embedding.cond_proj.weight)
    return student
