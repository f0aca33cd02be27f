"""Stage ``diffusion``: the denoiser eps_theta(z_t, t, tau) on cached latents, with its text encoder if that is new."""

import dataclasses
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather
from diffusers import SchedulerMixin
from torch import Tensor, nn
from torch.utils.data import Dataset

from latentdiff.config import DiffusionRecipe, ImageData, NewTextEncoder
from latentdiff.data.balance import Repeated, balanced
from latentdiff.diffusion.importance import ImportanceSampled
from latentdiff.diffusion.learned_schedule import LearnedSchedule
from latentdiff.diffusion.objectives import WeightedLoss
from latentdiff.diffusion.samplers import make_scheduler
from latentdiff.errors import InputError
from latentdiff.models.denoiser import Denoiser, new_denoiser, predict, without_fused_attention
from latentdiff.models.lora import save_lora
from latentdiff.models.text import NOTHING, Conditioning
from latentdiff.models.vocabulary import Vocabulary
from latentdiff.pipelines.base import LatentDiffusionPipeline
from latentdiff.pipelines.text_to_audio import TextToAudioPipeline
from latentdiff.pipelines.text_to_image import TextToImagePipeline
from latentdiff.training.caches import SPLITS, Caches
from latentdiff.training.conditioning import Listener, new_listener
from latentdiff.training.finetuning import go_on_from
from latentdiff.training.first_stage import SoundStage, first_stage, first_stage_of
from latentdiff.training.objective import learned_schedule_of, new_objective, process_of, with_drawn_times
from latentdiff.training.recipe import Losses, Recipe, Step


class ConditionedDenoiser(nn.Module):
    """What makes tau and the U-Net in one forward pass, so that both can learn from the one loss.

    A noise schedule that learns from it too, and what importance sampling remembers, are parts of this, although the
    objective calls them: whatever distributes, averages and saves the network then does so with them.
    """

    def __init__(
        self,
        unet: Denoiser,
        listener: Listener,
        schedule: LearnedSchedule | None = None,
        times: ImportanceSampled | None = None,
    ) -> None:
        super().__init__()
        self.unet, self.listener = unet, listener
        self.heard_by = list(listener.checkpointed)
        for name in self.heard_by:
            self.add_module(name, listener.parts[name])
        self.schedule, self.times = schedule, times  # behind them: averages are stored by the order of parameters

    def train(self, mode: bool = True) -> "ConditionedDenoiser":
        """A published text encoder stays as it is: no dropout in what does not learn."""
        super().train(mode)
        for part in (self.get_submodule(name) for name in self.heard_by):
            if not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()
        return self

    def forward(self, z_t: Tensor, t: Tensor, read: Conditioning, captions: list[str]) -> Tensor:
        """The prediction (B, C, h, w) at z_t and t (B,), by what the frozen parts have read of the captions."""
        return predict(self.unet, z_t, t, self.listener.tell(read, captions))


class DiffusionTraining(Recipe[DiffusionRecipe]):
    """min E |eps_theta(z_t, t, tau) - eps|^2 (latent diffusion, equation 3), or another objective of the same network.

    With caption dropout for guidance, or with no captions at all.
    """

    fills_caches = False
    """Whether it may encode into a folder that the configuration names."""

    def __init__(self, config: DiffusionRecipe, device: torch.device) -> None:
        super().__init__(config, device)
        self.finished = go_on_from(config, device) if config.init is not None else None
        process = None
        if self.finished is not None:
            process, pipeline = self.finished.process, self.finished.pipeline
            self.first_stage = first_stage_of(pipeline, self.finished.folder, config.data, device)
        else:
            self.first_stage = first_stage(config, device)
        self.prompted = config.conditioning == "prompt"
        caches = Caches(
            config.data,
            root=config.latents or config.output / "latents",
            captioned=self.prompted,
            make=self.fills_caches or config.latents is None,
        )
        rows = caches.rows()
        self.objective = new_objective(config, process, pixels=self.first_stage.vae is None)
        self.scheduler()  # refuses a sampler that cannot run the objective's process
        weighted = getattr(config.objective, "channel_weights", "even") == "decoded"
        if weighted and self.first_stage.vae is None:
            raise InputError(
                "objective.channel_weights is decoded, and there is no VAE whose decoder could say; use even."
            )
        latents, self.held_out = (
            self.first_stage.latents(split, part, caches) for split, part in zip(SPLITS, rows, strict=True)
        )
        if weighted:
            assert isinstance(self.objective, WeightedLoss)
            self.objective = dataclasses.replace(self.objective, channels=self.first_stage.channel_weights(latents))
        self.drawn = with_drawn_times(config, self.objective, process)
        if self.finished is not None:
            self.listener = self.finished.listener(device)
        else:
            self.listener = new_listener(config, rows[0].all_captions(), device)
        self.vocabulary = self._vocabulary(rows[0].all_captions())
        self.latents = dataclasses.replace(latents, prompts=self.listener.prompts(config, rows[0], caches))
        self.unet = self._unet(self.latents.mean.shape[1])
        if device.type == "cpu":
            without_fused_attention(self.unet)
        times = self.drawn if isinstance(self.drawn, ImportanceSampled) else None
        whole = ConditionedDenoiser(self.unet, self.listener, learned_schedule_of(self.objective), times)
        self.networks = {"denoiser": whole}
        self.phases, self.averaged = {"denoiser": ("denoiser",)}, ("denoiser",)
        self.weights = {"loss": 1.0}

    def _unet(self, channels: int) -> Denoiser:
        """The finished pipeline's, or a new one, for latents of so many channels."""
        if self.finished is not None:
            self.finished.require_fitting(channels, self.objective.output_channels)
            return self.finished.pipeline.unet
        assert self.config.unet is not None
        widths = self.listener.widths
        return new_denoiser(
            self.config.unet,
            latent_channels=channels,
            tokens_width=widths.tokens,
            pooled_width=widths.pooled,
            pooled_apart=widths.pooled_apart,
            output_channels=self.objective.output_channels,
        )

    def _vocabulary(self, captions: Iterable[str]) -> Vocabulary | None:
        """The captions' words, where a text encoder learns them; a published one knows more than it could say."""
        if self.finished is not None:
            before = self.finished.pipeline.vocabulary
            return before and before.and_known(Vocabulary.of_captions(captions).known)
        learns = isinstance(self.config.text_encoder, NewTextEncoder) and self.config.clap is None
        return Vocabulary.of_captions(captions) if learns else None

    @property
    def items(self) -> Dataset[dict[str, Any]]:
        if self.config.balance is None:
            return self.latents
        owners = [self.latents.rows[int(row)] for row in self.latents.owner[:]]
        return Repeated(self.latents, balanced(owners, self.config.balance))

    def predict(self, z_t: Tensor, t: Tensor, captions: list[str], told: Conditioning = NOTHING) -> Tensor:
        """The network's prediction for z_t (B, C, h, w) at t (B,) under captions; ``told`` is what is embedded."""
        return self.networks["denoiser"](z_t, t, self.listener.read(captions, told), captions)

    def losses(self, batch: dict[str, Any], step: Step) -> Iterator[tuple[str, Losses]]:
        generator, count = step.generator, len(batch["mean"])
        z_0 = batch["mean"] + batch["deviation"] * torch.randn(batch["mean"].shape, generator=generator).to(self.device)
        z_0 = self.first_stage.exact(z_0)
        eps = torch.randn(z_0.shape, generator=generator).to(self.device)
        t = self.drawn.draw_times(count, generator).to(self.device)
        dropped = torch.rand(count, generator=generator) < self.config.caption_dropout
        captions = ["" if drop else caption for drop, caption in zip(dropped, batch["caption"], strict=True)]
        told = self.listener.told(batch, dropped, self.latents.prompts.empty())
        denoise = partial(self.predict, captions=captions, told=told)
        error = self.drawn.loss(denoise, z_0, t, eps)
        yield "denoiser", {"loss": error.mean()}
        if isinstance(self.drawn, ImportanceSampled):
            self.drawn.update(gather(t), gather(error.detach()))

    def validate(self, folder: Path) -> dict[str, float]:
        """Held-out loss at fixed t and noise, with the right captions and with shuffled ones, and a few samples.

        Whatever times training draws, these are the objective's own.
        """
        items, generator = self.held_out, torch.Generator().manual_seed(0)
        count = min(256, len(items))
        z_0 = self.first_stage.exact(items.mean[:count].to(self.device))
        eps = torch.randn(z_0.shape, generator=generator).to(self.device)
        t = self.objective.draw_times(count, generator).to(self.device)
        captions = [items.rows[int(row)].captions[0] for row in items.owner[:count]]
        figures, told = {}, {"loss": captions}
        if self.prompted:
            told["loss_shuffled"] = captions[1:] + captions[:1]
        for name, prompts in told.items():
            total = 0.0
            for part in torch.arange(count).split(32):
                denoise = partial(self.predict, captions=[prompts[i] for i in part.tolist()])
                total += float(self.objective.loss(denoise, z_0[part], t[part], eps[part]).sum())
            figures[name] = total / count
        self.first_stage.save_examples(folder, self.pipeline(), captions if self.prompted else None)
        return figures

    def scheduler(self) -> SchedulerMixin:
        """The sampler, on the process that is trained; a learned one as it is now."""
        if self.finished is not None:
            return self.finished.scheduler(self.config.sampler)
        assert self.config.sampler is not None
        return make_scheduler(self.config.sampler, process_of(self.config, self.objective))

    def pipeline(self) -> LatentDiffusionPipeline:
        """What has been trained so far, as a user would use it."""
        finished = self.finished
        pipeline = finished.with_settings(self.config) if finished is not None else self._new_pipeline()
        pipeline.vocabulary = self.vocabulary
        return pipeline

    def _new_pipeline(self) -> LatentDiffusionPipeline:
        parts: dict[str, Any] = {
            **self.listener.parts,
            "vae": self.first_stage.vae,
            "unet": self.unet,
            "scheduler": self.scheduler(),
            "default_steps": self.config.default_steps,
            "default_guidance": self.config.default_guidance,
            "default_guidance_interval": self.config.default_guidance_interval,
            "default_guidance_rescale": self.config.default_guidance_rescale or 0.0,
        }
        if isinstance(self.config.data, ImageData):
            height, width = self.config.data.size
            return TextToImagePipeline(**parts, default_height=height, default_width=width)
        assert isinstance(self.first_stage, SoundStage)
        return TextToAudioPipeline(
            **parts,
            vocoder=self.first_stage.vocoder,
            default_seconds=self.config.data.seconds,
            default_compose=bool(self.config.default_compose),
        )

    def export(self, folder: Path) -> None:
        """``OUTPUT/pipeline``, or of low-rank matrices ``OUTPUT/lora``."""
        if self.config.lora is not None:
            save_lora(self.unet, folder / "lora")
            if self.vocabulary is not None:
                self.vocabulary.save(folder / "lora")
            return
        self.pipeline().save_pretrained(folder / "pipeline")

    def check(self) -> list[str]:
        return self.first_stage.check(self.latents)
