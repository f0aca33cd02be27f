"""The finished pipeline that a few-step student is made from."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors import SafetensorError

from latentdiff.config import AnyData, ImageData, UNetConfig
from latentdiff.diffusion.consistency import LatentConsistency
from latentdiff.diffusion.process import family_of, prediction_of
from latentdiff.diffusion.samplers import few_step_sampler
from latentdiff.diffusion.schedule import DiscreteSchedule
from latentdiff.errors import InputError
from latentdiff.models.denoiser import Denoiser, new_denoiser
from latentdiff.names import BUNDLED, bundled_folder
from latentdiff.pipelines.base import LatentDiffusionPipeline
from latentdiff.pipelines.text_to_audio import TextToAudioPipeline
from latentdiff.pipelines.text_to_image import TextToImagePipeline


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


def consistency_form(pipeline: LatentDiffusionPipeline, intervals: int) -> LatentConsistency:
    """The boundary-respecting function on the pipeline's process.

    Raises:
        InputError: if no student of this pipeline could be sampled by ``LCMScheduler``.
    """
    config = pipeline.scheduler.config
    if few_step_sampler(config):
        raise InputError("the teacher is a few-step student itself; name the pipeline that it was made from.")
    if family_of(config) != "variance_preserving":
        raise InputError(
            f"the teacher undoes a process of the {family_of(config)} kind; few-step students are made of "
            "variance-preserving ones."
        )
    form = LatentConsistency(DiscreteSchedule.from_config(config), prediction_of(config))
    steps = len(form.schedule.betas)
    if steps % intervals or 2 * intervals > steps:
        raise InputError(
            f"method.intervals is {intervals}; it must divide the teacher's {steps} training times, in parts of two "
            "or more."
        )
    return form


def new_student(teacher: Denoiser, sizes: UNetConfig | None, guidance_width: int) -> Denoiser:
    """A U-Net that stands in the teacher's place.

    Args:
        teacher: the pipeline's.
        sizes: of a new one; None for a copy of the teacher, which begins by ignoring the guidance scale.
        guidance_width: channels of the guidance scale as an input; 0 for none.

    Raises:
        InputError: for sizes, where the teacher hears no prompt.
    """
    if not isinstance(teacher, UNet2DConditionModel):
        if sizes is not None:
            raise InputError(
                "unet is given, and the teacher hears no prompt: its student is a copy of it; leave unet out."
            )
        return copy.deepcopy(teacher).requires_grad_(True)
    built, old = teacher, teacher.config
    if sizes is not None:
        tokens_width = old.cross_attention_dim if isinstance(old.cross_attention_dim, int) else None
        pooled_width = old.projection_class_embeddings_input_dim
        built = new_denoiser(sizes, old.in_channels, tokens_width, pooled_width, old.class_embeddings_concat)
    student = UNet2DConditionModel.from_config({**built.config, "time_cond_proj_dim": guidance_width or None})
    student.load_state_dict(built.state_dict(), strict=not guidance_width)
    if guidance_width:
        torch.nn.init.zeros_(student.time_embedding.cond_proj.weight)
    return student
