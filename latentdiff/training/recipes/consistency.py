"""Stage ``consistency``: a student of a finished pipeline that needs one to four steps where its teacher needs 20."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from latentdiff.config import ConsistencyRecipe, DistillationConfig, ImageData
from latentdiff.data.latents import LatentItems
from latentdiff.diffusion.consistency import (
    ConsistencyObjective,
    KarrasConsistency,
    LatentConsistency,
    doubling_intervals,
    draw_guidance,
    guidance_embedding,
    guided,
)
from latentdiff.diffusion.coordinates import Denoise
from latentdiff.diffusion.samplers import make_scheduler
from latentdiff.errors import InputError
from latentdiff.models.denoiser import predict, without_fused_attention
from latentdiff.models.text import Conditioning
from latentdiff.pipelines.arguments import Sampling
from latentdiff.pipelines.base import LatentDiffusionPipeline
from latentdiff.training.caches import SPLITS, Caches
from latentdiff.training.first_stage import first_stage_of
from latentdiff.training.recipe import Losses, Recipe, Step
from latentdiff.training.teacher import consistency_form, load_teacher, new_student, no_teacher

GUIDANCE_WIDTH = 256
"""Channels of the guidance scale as an input (the code of Luo et al. 2023, ``unet_time_cond_proj_dim``)."""
TEACHER_STEPS = 20
"""Of the teacher's samples that the student's are held against."""
_AUTOCAST = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class ConsistencyTraining(Recipe[ConsistencyRecipe]):
    """min E distance(f(z_t, t), f'(z_s, s)) at neighbouring times t > s; only the U-Net learns.

    Distillation is LCM's (Luo et al. 2023, algorithm 1), without a teacher it is improved consistency training (Song
    and Dhariwal 2024). Both on the times of LCMScheduler; on EDM's process, on those of CMStochasticIterativeScheduler.
    """

    def __init__(self, config: ConsistencyRecipe, device: torch.device) -> None:
        super().__init__(config, device)
        folder = Path()
        if config.teacher is not None:
            self.teacher, folder = load_teacher(config.teacher, config.data, device)
        else:
            assert isinstance(config.data, ImageData) and config.unet is not None  # the configuration was checked
            self.teacher = no_teacher(config.data, config.unet, device)
        self.form = consistency_form(self.teacher, config.method.intervals)
        if isinstance(self.form, KarrasConsistency) and config.unet is None:
            raise InputError(
                "the teacher is told time as EDM has it, and a student otherwise; give unet for a new one."
            )
        self.prompted = self.teacher.hears_prompts
        self.first_stage = first_stage_of(self.teacher, folder, config.data, device)
        caches = Caches(config.data, config.output / "latents", captioned=self.prompted, make=True)
        self.latents, self.held_out = (
            self.first_stage.latents(split, rows, caches) for split, rows in zip(SPLITS, caches.rows(), strict=True)
        )
        self.distilled = isinstance(config.method, DistillationConfig)
        self.guided = self.distilled and self.prompted
        self._check_fit()
        pairs: Literal["uniform", "lognormal"] = "uniform" if self.distilled else "lognormal"
        self.objective = ConsistencyObjective(self.form, pairs=pairs, inverse_gap=not self.distilled)
        self.student = new_student(self.teacher.unet, config.unet, GUIDANCE_WIDTH if self.guided else 0).to(device)
        if device.type == "cpu":
            without_fused_attention(self.student)
        self.networks = {"student": self.student}
        self.target, self._followed = self.student, 0
        if isinstance(config.method, DistillationConfig) and config.method.target_decay:
            self.target = copy.deepcopy(self.student).requires_grad_(False)
            self.networks["target"] = self.target
        self.phases, self.averaged = {"student": ("student",)}, ("student",)
        self.weights = {"loss": 1.0}
        self.nothing = self.teacher.encode_prompt([""])
        self._wanted: tuple[Tensor, Tensor] | None = None

    def _check_fit(self) -> None:
        found, expected = self.latents.mean.shape[1], self.teacher.unet.config.in_channels
        if found != expected:
            raise InputError(
                f"data.channels is {found}, and the teacher makes pictures of {expected}; make them equal."
            )
        method, own = self.config.method, self.teacher.config.default_guidance
        if not isinstance(method, DistillationConfig) or not self.guided:
            return
        if not method.guidance[0] <= max(own, 1.0) <= method.guidance[1]:
            raise InputError(
                f"method.guidance is {list(method.guidance)}, which leaves out the teacher's own default, {own:g}."
            )

    @property
    def items(self) -> Dataset[dict[str, Any]]:
        return self.latents

    def losses(self, batch: dict[str, Any], step: Step) -> Iterator[tuple[str, Losses]]:
        self._follow(step)
        generator, count, captions = step.generator, len(batch["mean"]), batch["caption"]
        z_0 = batch["mean"] + batch["deviation"] * torch.randn(batch["mean"].shape, generator=generator).to(self.device)
        z_0 = self.first_stage.exact(z_0)
        eps = torch.randn(z_0.shape, generator=generator).to(self.device)
        pair = self.objective.draw_pair(self._intervals(step.number), count, generator)
        scale = None
        if isinstance(self.config.method, DistillationConfig):
            if self.guided:
                scale = draw_guidance(*self.config.method.guidance, count, generator).to(self.device)
        else:
            dropped = torch.rand(count, generator=generator) < self.config.method.caption_dropout
            captions = ["" if drop else caption for drop, caption in zip(dropped, captions, strict=True)]
        yield "student", {"loss": self._loss(self.target, z_0, eps, pair, captions, scale).mean()}

    def _follow(self, step: Step) -> None:
        """Move the target towards what the last step made of the student.

        Before a step and not after one, because the loop may take several batches to a step. A resumed run does it
        for the step that the stopped one ended with.
        """
        method = self.config.method
        if isinstance(method, DistillationConfig) and method.target_decay and step.number != self._followed:
            with torch.no_grad():
                for average, current in zip(self.target.parameters(), self.student.parameters(), strict=True):
                    average.lerp_(current, 1 - method.target_decay)
        self._followed = step.number

    def _intervals(self, number: int) -> int:
        method = self.config.method
        if isinstance(method, DistillationConfig):
            return method.intervals
        return doubling_intervals(number, self.config.train.max_steps, method.first_intervals, method.intervals)

    def _loss(
        self,
        target: nn.Module,
        z_0: Tensor,
        eps: Tensor,
        pair: tuple[Tensor, Tensor],
        captions: list[str],
        scale: Tensor | None,
    ) -> Tensor:
        """(B,), for guidance scales (B,) where the student hears them."""
        tau = self.teacher.encode_prompt(captions)
        told = tau if scale is None else replace(tau, guidance=guidance_embedding(scale, GUIDANCE_WIDTH))
        t, s = (time.to(self.device) for time in pair)
        student = self._denoise(self.networks["student"], told)
        held_against = student if target is self.student else self._denoise(target, told)
        if not self.distilled:
            return self.objective.training_loss(student, held_against, z_0, t, s, eps)
        teacher = self._denoise(self.teacher.unet, tau)
        if scale is not None:
            without = self._denoise(self.teacher.unet, self.nothing.repeat(len(captions)))
            teacher = guided(teacher, without, scale, self.teacher.config.default_guidance_rescale)
        return self.objective.distillation_loss(student, held_against, teacher, z_0, t, s, eps)

    def _denoise(self, network: Any, tau: Conditioning) -> Denoise:
        """A network under tau, in the precision of the run (the loop sets that of the student alone)."""
        dtype = _AUTOCAST[self.config.train.mixed_precision]

        def denoise(z_t: Tensor, t: Tensor) -> Tensor:
            with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
                prediction = predict(network, z_t, t, tau)
            return prediction[:, : z_t.shape[1]].float()  # without a variance that the teacher may have learnt

        return denoise

    def validate(self, folder: Path) -> dict[str, float]:
        """Held-out loss at fixed times and noise, how far samples are from the teacher's, and a few samples."""
        items = self.held_out
        count = min(256, len(items))
        captions = [items.rows[int(row)].captions[0] for row in items.owner[:count]]
        figures = {"loss": self._held_out_loss(items, captions)}
        pipeline = self.pipeline()
        figures |= self._distances(pipeline, captions[:32], items.mean[: len(captions[:32])].shape)
        self.first_stage.save_examples(folder, pipeline, captions if self.prompted else None)
        return figures

    def _held_out_loss(self, items: LatentItems, captions: list[str]) -> float:
        """With the student as its own target, at the last intervals and the pipeline's own guidance."""
        generator, count = torch.Generator().manual_seed(0), len(captions)
        z_0 = items.mean[:count].to(self.device)
        eps = torch.randn(z_0.shape, generator=generator).to(self.device)
        t, s = self.objective.draw_pair(self.config.method.intervals, count, generator)
        total = 0.0
        for part in torch.arange(count).split(32):
            pair, prompts = (t[part], s[part]), [captions[i] for i in part.tolist()]
            scale = torch.full((len(part),), self._guidance, device=self.device) if self.guided else None
            total += float(self._loss(self.student, z_0[part], eps[part], pair, prompts, scale).sum())
        return total / count

    @property
    def _guidance(self) -> float:
        """The pipeline's own guidance scale."""
        return max(float(self.teacher.config.default_guidance), 1.0) if self.guided else 1.0

    def _distances(self, pipeline: LatentDiffusionPipeline, captions: list[str], shape: torch.Size) -> dict[str, float]:
        """RMS distance in latent space of samples in 1, 2 and 4 steps to the teacher's from the same noise."""
        if self.config.teacher is None:
            return {}
        if self._wanted is None:
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))
            self._wanted = noise, self._sample(self.teacher, captions, noise, TEACHER_STEPS)
        noise, wanted = self._wanted
        return {
            f"distance_{steps}": float((self._sample(pipeline, captions, noise, steps) - wanted).square().mean().sqrt())
            for steps in (1, 2, 4)
            if steps <= self.config.method.intervals
        }

    def _sample(self, pipeline: LatentDiffusionPipeline, captions: list[str], noise: Tensor, steps: int) -> Tensor:
        generator = torch.Generator().manual_seed(2)
        size = noise.shape[2], noise.shape[3]
        return pipeline.sample(captions, size, Sampling(1, steps, self._guidance), generator=generator, latents=noise)

    def pipeline(self) -> LatentDiffusionPipeline:
        """The teacher with the student in the place of its U-Net, and the student's sampler."""
        data, method = self.config.data, self.config.method
        process = dict(self.teacher.scheduler.config)
        if isinstance(self.form, LatentConsistency):
            process |= {"original_inference_steps": method.intervals, "timestep_scaling": self.form.timestep_scaling}
        scheduler = make_scheduler("lcm" if isinstance(self.form, LatentConsistency) else "cm", process)
        settings: dict[str, Any] = {
            "default_steps": self.config.default_steps,
            "default_guidance": self._guidance,
            "guidance_range": list(method.guidance) if isinstance(method, DistillationConfig) and self.guided else None,
        }
        if isinstance(data, ImageData):
            settings |= {"default_height": data.size[0], "default_width": data.size[1]}
        else:
            settings |= {"default_seconds": data.seconds, "default_compose": self.teacher.config.default_compose}
        parts = {**self.teacher.components, "unet": self.student, "scheduler": scheduler}
        pipeline: LatentDiffusionPipeline = type(self.teacher)(**parts, **settings)
        pipeline.vocabulary = self.teacher.vocabulary
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def export(self, folder: Path) -> None:
        """``OUTPUT/pipeline``."""
        self.pipeline().save_pretrained(folder / "pipeline")

    def check(self) -> list[str]:
        return self.first_stage.check(self.latents)
