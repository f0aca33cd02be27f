"""What both pipelines share: prompts to tau, the guided denoising loop, and how a pipeline is found and saved.

Shapes: B prompts times media a prompt, z (B, C, h, w).
"""

import inspect
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from latentdiff.diffusion.consistency import guidance_embedding
from latentdiff.diffusion.guidance import guide
from latentdiff.diffusion.process import check_same_process, prediction_of
from latentdiff.diffusion.samplers import network_input, readable_output, start_of
from latentdiff.errors import InputError
from latentdiff.interop.folder import recognise
from latentdiff.interop.hub import fetch
from latentdiff.interop.load import load_own, load_parts
from latentdiff.models.denoiser import predict
from latentdiff.models.lora import merge_lora
from latentdiff.models.prompts import prompt_encoder
from latentdiff.models.text import Conditioning, concatenate
from latentdiff.models.vocabulary import Vocabulary
from latentdiff.names import BUNDLED, PIPELINES, bundled_folder
from latentdiff.pipelines.arguments import (
    Callback,
    Guidance,
    Sampling,
    as_list,
    checked_interval,
    checked_rescale,
    one_for_each,
    require_generators,
)

logger = logging.getLogger(__name__)


class GenerationError(RuntimeError):
    """The model made something that is not finite; no file is written from it."""


class LatentDiffusionPipeline(DiffusionPipeline):
    """Prompt -> tau -> z_0, whatever the medium. The subclasses say how large z is, and decode z_0."""

    _callback_tensor_inputs = ["latents"]
    clap: torch.nn.Module | None = None
    """Only the pipeline of sounds has one."""
    made = "media"
    """What it makes, in the words of an error."""
    vocabulary: Vocabulary | None = None
    """The words that it knows, saved beside its parts; None for a model that does not say."""

    def keep_process(self, prediction: str | None) -> None:
        """Remember the process that the scheduler undoes, which any scheduler assigned later must undo too.

        Args:
            prediction: what the model predicts, as its pipeline folder says; None believes the scheduler.

        Raises:
            InputError: if the scheduler contradicts it.
        """
        self._process = dict(self.scheduler.config)
        self._remarked: set[str] = set()
        self.register_to_config(prediction=prediction or prediction_of(self._process))
        self._check_scheduler()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """A pipeline by the name of a bundled model, by folder, or by hub id: one of ours, or of a published family.

        Args:
            pretrained_model_name_or_path: which.
            kwargs: diffusers' own; for a published family ``dtype``, ``revision``, ``cache_dir``, and components.

        Raises:
            InputError: if it is no pipeline, not whole, wants code to be run, or makes another medium.
        """
        name = str(pretrained_model_name_or_path)
        folder = bundled_folder(name) if name in BUNDLED else Path(name)
        if not folder.is_dir():
            folder = fetch(name, kwargs.pop("revision", None), kwargs.pop("cache_dir", None))
        # Bundled weights are stored in half precision; left alone, transformers would also compute in it.
        dtype = kwargs.pop("dtype", None) or kwargs.pop("torch_dtype", None) or torch.float32
        family = recognise(folder)
        medium = family if isinstance(family, str) else family.medium
        if PIPELINES[medium] != cls.__name__:
            raise InputError(f"{name} makes other media than {cls.made}; load it with {PIPELINES[medium]}.")
        if isinstance(family, str):
            parts = load_own(folder, dtype)
            own = super().from_pretrained(str(folder), dtype=dtype, **{**parts, **kwargs})
            own.vocabulary = Vocabulary.load(folder)
            return own
        return cls(**{**load_parts(folder, family, dtype), **kwargs})

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """The pipeline as a folder, its vocabulary included.

        Args:
            save_directory: the folder.
            kwargs: diffusers' own.
        """
        super().save_pretrained(save_directory, **kwargs)
        if self.vocabulary is not None:
            self.vocabulary.save(Path(save_directory))

    def load_lora_weights(self, source: str | Path) -> None:
        """Add a LoRA to the U-Net's weights; several may be added. There is no way back but to load the model again.

        Args:
            source: a folder that training with ``lora`` wrote, or any in diffusers' layout for the U-Net.

        Raises:
            InputError: if it is none, or of another model.
        """
        merge_lora(self.unet, Path(source))
        learnt = Vocabulary.load(Path(source))
        if self.vocabulary is not None and learnt is not None:  # words of its captions are no longer read as others
            self.vocabulary = self.vocabulary.and_known(learnt.known)

    @property
    def hears_prompts(self) -> bool:
        """Whether anything reads a prompt; a model without (DDPM's and its relatives') makes what its data were."""
        return self.text_encoder is not None or self.clap is not None

    def prompts_of(self, prompt: str | list[str] | None, negative: Any, guidance_scale: float | None) -> list[str]:
        """The prompts as a list; an empty one for a model that hears none.

        Raises:
            InputError: if one is empty or no text, or there are some that nothing would hear.
        """
        if self.hears_prompts:
            if prompt is None:
                raise InputError("no prompt was given.")
            return as_list(prompt)
        for name, given in (("prompt", prompt is not None), ("negative_prompt", negative is not None)):
            if given:
                raise InputError(f"this model hears no prompt, and {name} was given; leave it out.")
        if guidance_scale is not None and guidance_scale > 1:
            raise InputError(f"this model hears no prompt, so a guidance_scale of {guidance_scale:g} cannot steer it.")
        return [""]

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str], beside: list[str] | None = None) -> Conditioning:
        """tau of the prompts; padding is masked, so a prompt means the same alone and among longer ones.

        Args:
            prompts: the texts.
            beside: if these are negative prompts, the prompts that each of them stands beside.
        """
        if not self.hears_prompts:
            return Conditioning()
        prompts = self._read(prompts)
        tau = prompt_encoder(self.components, pooled=bool(self.unet.config.class_embed_type))(prompts, beside)
        return tau.to(self.unet.dtype)

    def _read(self, prompts: list[str]) -> list[str]:
        """Prompts in the words of the model's captions; each one's other words are said once."""
        if self.vocabulary is None:
            return prompts
        for prompt in dict.fromkeys(prompts):
            remark = self.vocabulary.remark(prompt)
            if remark is not None and prompt not in self._remarked:
                self._remarked.add(prompt)
                logger.warning(remark)
        return [self.vocabulary.read(prompt) for prompt in prompts]

    @torch.no_grad()
    def sample(
        self,
        prompts: list[str],
        size: tuple[int, int],
        how: Sampling,
        negative_prompt: str | list[str] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
    ) -> Tensor:
        """z_0 (B, C, h, w) of prompts, ``how.each`` of every prompt, one after the other.

        Args:
            prompts: checked ones.
            size: (h, w) of the latent.
            how: the rest.
            negative_prompt: one for all or one for each prompt; None is the empty caption.
            generator: one for all, or one for each medium.
            latents: unit noise to start from.

        Raises:
            InputError: for a bad argument, before anything is computed.
        """
        each = how.each
        steps = self.config.default_steps if how.steps is None else how.steps
        guidance = self.config.default_guidance if how.guidance_scale is None else how.guidance_scale
        if steps < 1:
            raise InputError(f"{steps} steps cannot be taken; give at least 1.")
        if each < 1:
            raise InputError(f"{each} {self.made} a prompt cannot be made; give at least 1.")
        most = self.scheduler.config.get("original_inference_steps", steps)
        if steps > most:
            raise InputError(f"{steps} steps cannot be taken: this few-step student has learnt {most} at most.")
        heard = self._guidance_input(guidance, negative_prompt, how)
        interval = checked_interval(how.guidance_interval, self.config.default_guidance_interval)
        rescale = checked_rescale(how.guidance_rescale, self.config.default_guidance_rescale)
        negative = None
        if guidance > 1 and heard is None and self.hears_prompts:
            negatives = one_for_each(negative_prompt, len(prompts))
            negative = self.encode_prompt(negatives, prompts).repeat(each)
        z = self.draw_latents((len(prompts) * each, self.unet.config.in_channels, *size), generator, latents)
        tau = self.encode_prompt(prompts).repeat(each)
        if heard is not None:
            tau = replace(tau, guidance=heard.to(z).expand(len(z), -1))
        return self.denoise(z, tau, negative, Guidance(guidance, interval, rescale), steps, generator, how.callback)

    def _guidance_input(
        self,
        guidance_scale: float,
        negative_prompt: str | list[str] | None,
        how: Sampling,
    ) -> Tensor | None:
        """The scale (1, W) as a distilled student hears it; None for a model that is run twice for it.

        Raises:
            InputError: if the student has not learnt that scale, or is given what only guidance by two runs can do.
        """
        width = self.unet.config.get("time_cond_proj_dim")
        if width is None:
            return None
        others = {"guidance_interval": how.guidance_interval, "guidance_rescale": how.guidance_rescale}
        for name, given in {"negative_prompt": negative_prompt, **others}.items():
            if given is not None:
                raise InputError(f"this few-step student has its guidance built in, and hears no {name}; leave it out.")
        scale = max(guidance_scale, 1.0)
        low, high = self.config.guidance_range or (scale, scale)
        if not low <= scale <= high:
            raise InputError(f"this few-step student knows guidance from {low:g} to {high:g}; {scale:g} is outside.")
        return guidance_embedding(torch.tensor([scale]), width)

    @torch.no_grad()
    def denoise(
        self,
        z: Tensor,
        tau: Conditioning,
        negative: Conditioning | None,
        guidance: Guidance,
        steps: int,
        generator: Any,
        callback: Callback | None,
    ) -> Tensor:
        """z_T (B, C, h, w), unit variance, to z_0 by the scheduler's steps.

        With ``negative`` the prediction is guided in the part of the steps that ``guidance`` names.
        """
        self._interrupt = False
        self._check_scheduler()
        try:
            self.scheduler.set_timesteps(steps, device=z.device)
        except ValueError as error:  # more steps than there are training times, for one
            raise InputError(f"{steps} steps cannot be taken: {' '.join(str(error).split())}") from error
        z = start_of(self.scheduler, z)
        both = tau if negative is None else concatenate(negative, tau)
        extra, times = self._scheduler_arguments(generator), self.scheduler.timesteps
        first, behind = (share * len(times) for share in guidance.interval)
        for number, t in enumerate(self.progress_bar(times)):
            if self._interrupt:
                break
            twice = negative is not None and first <= number < behind
            seen = torch.cat([z, z]) if twice else z
            prediction = predict(self.unet, network_input(self.scheduler, seen, t), t, both if twice else tau)
            if twice:
                without, with_prompt = prediction.chunk(2)
                prediction = guide(without, with_prompt, guidance.scale, guidance.rescale)
            z = self.scheduler.step(readable_output(self.scheduler, prediction, z), t, z, **extra).prev_sample
            if callback is not None:
                z = callback(self, number, t, {"latents": z}).get("latents", z)
        if not torch.isfinite(z).all():
            raise GenerationError(
                "the model's latents are not finite; try --dtype float32, or another sampler or guidance scale."
            )
        return z

    def _check_scheduler(self) -> None:
        """Refuse a scheduler that undoes another process than the model's.

        Raises:
            InputError: naming what differs.
        """
        config = self.scheduler.config
        if prediction_of(config) != self.config.prediction:
            raise InputError(
                f"the scheduler takes the network's output for '{prediction_of(config)}', but the model predicts "
                f"'{self.config.prediction}'; set the scheduler's prediction_type to that."
            )
        if dict(config) != self._process:
            check_same_process(config, self._process)

    def _scheduler_arguments(self, generator: Any) -> dict[str, Any]:
        """Schedulers that draw noise in their steps take the generator, the others do not know the word."""
        known = inspect.signature(self.scheduler.step).parameters
        return {"generator": generator} if "generator" in known else {}

    def draw_latents(self, shape: tuple[int, ...], generator: Any, given: Tensor | None) -> Tensor:
        """Unit noise (B, C, h, w): one generator an item, or one for all, or what the caller gives.

        Raises:
            InputError: if there are not as many generators, or not the latents' shape, as the batch has.
        """
        device, dtype = self._execution_device, self.unet.dtype
        if given is not None:
            if tuple(given.shape) != shape:
                raise InputError(f"latents have the shape {tuple(given.shape)}; this call needs {shape}.")
            return given.to(device, dtype)
        if isinstance(generator, list):
            require_generators(generator, shape[0], self.made)
            noise = [torch.randn(shape[1:], generator=g, device=g.device, dtype=torch.float32) for g in generator]
            return torch.stack([part.to(device, dtype) for part in noise])
        source = generator.device if generator is not None else device
        return torch.randn(shape, generator=generator, device=source, dtype=torch.float32).to(device, dtype)
