"""What both pipelines share: prompts to tau, the guided denoising loop, and how a pipeline is found and saved.

Shapes: B prompts times media a prompt, z (B, C, h, w).
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from latentdiff.errors import InputError
from latentdiff.interop.folder import recognise
from latentdiff.interop.hub import fetch
from latentdiff.interop.load import load_own, load_parts
from latentdiff.models.prompts import prompt_encoder
from latentdiff.models.text import Conditioning, concatenate
from latentdiff.names import BUNDLED, PIPELINES, bundled_folder

Callback = Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any]]
"""diffusers' ``callback_on_step_end(pipeline, step, timestep, {"latents": z}) -> {"latents": z}``."""


class GenerationError(RuntimeError):
    """The model made something that is not finite; no file is written from it."""


class LatentDiffusionPipeline(DiffusionPipeline):
    """Prompt -> tau -> z_0, whatever the medium. The subclasses say how large z is, and decode z_0."""

    _callback_tensor_inputs = ["latents"]
    made = "media"
    """What it makes, in the words of an error."""

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
            return super().from_pretrained(str(folder), dtype=dtype, **{**parts, **kwargs})
        return cls(**{**load_parts(folder, family, dtype), **kwargs})

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str], beside: list[str] | None = None) -> Conditioning:
        """tau of the prompts; padding is masked, so a prompt means the same alone and among longer ones.

        Args:
            prompts: the texts.
            beside: if these are negative prompts, the prompts that each of them stands beside.
        """
        tau = prompt_encoder(self.components, pooled=bool(self.unet.config.class_embed_type))(prompts, beside)
        return tau.to(self.unet.dtype)

    @torch.no_grad()
    def sample(
        self,
        prompts: list[str],
        size: tuple[int, int],
        each: int,
        steps: int | None,
        guidance_scale: float | None,
        negative_prompt: str | list[str] | None,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: Tensor | None,
        callback: Callback | None,
    ) -> Tensor:
        """z_0 (B, C, h, w) of prompts, ``each`` of every prompt, one after the other.

        Args:
            prompts: checked ones.
            size: (h, w) of the latent.
            each: media of each prompt.
            steps: sampling steps; None takes the model's default.
            guidance_scale: classifier-free guidance, 1 or less turns it off; None takes the model's default.
            negative_prompt: one for all or one for each prompt; None is the empty caption.
            generator: one for all, or one for each medium.
            latents: unit noise to start from.
            callback: diffusers' callback.

        Raises:
            InputError: for a bad argument, before anything is computed.
        """
        steps = self.config.default_steps if steps is None else steps
        guidance = self.config.default_guidance if guidance_scale is None else guidance_scale
        if steps < 1:
            raise InputError(f"{steps} steps cannot be taken; give at least 1.")
        if each < 1:
            raise InputError(f"{each} {self.made} a prompt cannot be made; give at least 1.")
        negative = None
        if guidance > 1:
            negatives = _one_for_each(negative_prompt, len(prompts))
            negative = self.encode_prompt(negatives, prompts).repeat(each)
        z = self.draw_latents((len(prompts) * each, self.unet.config.in_channels, *size), generator, latents)
        tau = self.encode_prompt(prompts).repeat(each)
        return self.denoise(z, tau, negative, guidance, steps, generator, callback)

    @torch.no_grad()
    def denoise(
        self,
        z: Tensor,
        tau: Conditioning,
        negative: Conditioning | None,
        guidance_scale: float,
        steps: int,
        generator: Any,
        callback: Callback | None,
    ) -> Tensor:
        """z_T (B, C, h, w), unit variance, to z_0 by the scheduler's steps.

        With ``negative`` the prediction is eps_neg + s (eps - eps_neg) (Ho & Salimans 2022, equation 6).
        """
        self._interrupt = False
        self.scheduler.set_timesteps(steps, device=z.device)
        z = z * self.scheduler.init_noise_sigma
        both = tau if negative is None else concatenate(negative, tau)
        extra = self._scheduler_arguments(generator)
        for number, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            if self._interrupt:
                break
            twice = z if negative is None else torch.cat([z, z])
            prediction = self.unet(self.scheduler.scale_model_input(twice, t), t, **both.unet_arguments()).sample
            if negative is not None:
                without, with_prompt = prediction.chunk(2)
                prediction = without + guidance_scale * (with_prompt - without)
            z = self.scheduler.step(prediction, t, z, **extra).prev_sample
            if callback is not None:
                z = callback(self, number, t, {"latents": z}).get("latents", z)
        if not torch.isfinite(z).all():
            raise GenerationError(
                "the model's latents are not finite; try --dtype float32, or another sampler or guidance scale."
            )
        return z

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
            if len(generator) != shape[0]:
                given_for = f"{len(generator)} generators were given for {shape[0]} {self.made}"
                raise InputError(f"{given_for}; give one for each.")
            noise = [torch.randn(shape[1:], generator=g, device=g.device, dtype=torch.float32) for g in generator]
            return torch.stack([part.to(device, dtype) for part in noise])
        source = generator.device if generator is not None else device
        return torch.randn(shape, generator=generator, device=source, dtype=torch.float32).to(device, dtype)


def require_output_type(wanted: str, known: tuple[str, ...]) -> None:
    """Refuse an ``output_type`` that a pipeline does not have.

    Raises:
        InputError: naming those it has.
    """
    if wanted not in known:
        raise InputError(f"unknown output_type '{wanted}'; choose {', '.join(known[:-1])} or {known[-1]}.")


def _one_for_each(negative: str | list[str] | None, prompts: int) -> list[str]:
    if negative is None or isinstance(negative, str):
        return [negative or ""] * prompts
    if len(negative) != prompts:
        raise InputError(f"{len(negative)} negative prompts were given for {prompts} prompts.")
    return list(negative)


def as_list(prompt: str | list[str]) -> list[str]:
    """One prompt or several, as a list.

    Raises:
        InputError: if one of them is empty or no text.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise InputError("no prompt was given.")
    for text in prompts:
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"a prompt must be a text that is not empty, this one is {text!r}.")
    return prompts
