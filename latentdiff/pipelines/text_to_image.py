"""Text to image: prompt -> tau -> z_0 -> RGB."""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import SchedulerMixin
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedTokenizerBase, T5EncoderModel

from latentdiff.errors import InputError
from latentdiff.media.image import from_x, to_pictures
from latentdiff.models.autoencoder import Autoencoder, compression, decode
from latentdiff.models.denoiser import Denoiser
from latentdiff.names import MAX_SIDE
from latentdiff.pipelines.arguments import Callback, Sampling, require_output_type
from latentdiff.pipelines.base import GenerationError, LatentDiffusionPipeline


@dataclass
class ImageOutput(BaseOutput):
    """Pictures."""

    images: list[Image.Image] | np.ndarray | Tensor
    """Pillow's pictures; or in [0, 1] float32 (B, H, W, C) for ``np``, (B, C, H, W) for ``pt``; or latents."""


class TextToImagePipeline(LatentDiffusionPipeline):
    """Latent diffusion over pictures, as Stable Diffusion (Rombach et al. 2022) and its relatives, or over pixels.

    Why an own class: diffusers' pipelines fix CLIP as the text encoder, mix up prompts of different length, and
    none goes without a VAE. This one shares all but the decoding with `TextToAudioPipeline`.

    Args:
        vae: autoencoder of pictures; None where the denoiser works on pixels.
        unet: the denoiser.
        scheduler: any diffusers scheduler; assign another to change the sampler.
        text_encoder: T5 for cross-attention, or CLIP as in Stable Diffusion; None where the denoiser hears no prompt.
        tokenizer: of the text encoder.
        default_steps: sampling steps when the caller names none.
        default_guidance: guidance scale when the caller names none.
        default_height: pixels, when the caller names none.
        default_width: likewise.
        prediction: what the network predicts; None believes the scheduler.
        guidance_range: lowest and highest scale that a distilled student has learnt to hear as an input.
        default_guidance_interval: the part of the steps that is guided when the caller names none; None is all.
        default_guidance_rescale: how far guidance is rescaled when the caller does not say.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components = ["vae", "text_encoder", "tokenizer"]
    made = "pictures"

    def __init__(
        self,
        vae: Autoencoder | None,
        unet: Denoiser,
        scheduler: SchedulerMixin,
        text_encoder: T5EncoderModel | CLIPTextModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        default_steps: int = 20,
        default_guidance: float = 3.0,
        default_height: int = 64,
        default_width: int = 64,
        prediction: str | None = None,
        guidance_range: list[float] | None = None,
        default_guidance_interval: list[float] | None = None,
        default_guidance_rescale: float = 0.0,
    ) -> None:
        super().__init__()
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer)
        self.register_to_config(
            default_steps=default_steps,
            default_guidance=default_guidance,
            default_height=default_height,
            default_width=default_width,
            guidance_range=guidance_range,
            default_guidance_interval=default_guidance_interval,
            default_guidance_rescale=default_guidance_rescale,
        )
        self.keep_process(prediction)
        if vae is not None and getattr(vae.config, "mel", None):
            raise InputError("the VAE is one of sounds: it carries a mel definition. Give one of pictures.")

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        callback_on_step_end: Callback | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float | None = None,
    ) -> ImageOutput | tuple[list[Image.Image] | np.ndarray | Tensor]:
        """Pictures of prompts.

        Args:
            prompt: one or several; none for a model that hears none.
            height: pixels, a multiple of the VAE's compression.
            width: pixels, likewise; the two need not be equal.
            num_inference_steps: sampling steps.
            guidance_scale: classifier-free guidance; 1 or less turns it off.
            guidance_interval: the part of the steps that is guided, in shares; (0.2, 0.8) spares both outer fifths.
            guidance_rescale: from 0 to 1, how far guidance is kept from making contrasts stronger (Lin et al. 2024).
            negative_prompt: what to steer away from; by default the empty caption.
            num_images_per_prompt: pictures of each prompt, one after the other in the output.
            generator: one for all, or a list of one for each picture, which then does not depend on the others.
            latents: unit noise (B, C, h, w) to start from.
            callback_on_step_end: diffusers' callback; set ``pipeline._interrupt = True`` in it to stop early.
            output_type: ``pil``, ``np``, ``pt`` or ``latent``.
            return_dict: an `ImageOutput`, or else a tuple of the same.

        Raises:
            InputError: for a bad argument, before anything is computed.
            GenerationError: if the result is not finite.
        """
        prompts = self.prompts_of(prompt, negative_prompt, guidance_scale)
        require_output_type(output_type, ("pil", "np", "pt", "latent"))
        guidance = guidance_scale, guidance_interval, guidance_rescale
        how = Sampling(num_images_per_prompt, num_inference_steps, *guidance, callback_on_step_end)
        z = self.sample(prompts, self._latent_size(height, width), how, negative_prompt, generator, latents)
        images = z if output_type == "latent" else self._present(from_x(self.decode(z)).cpu(), output_type)
        self.maybe_free_model_hooks()
        return ImageOutput(images=images) if return_dict else (images,)

    def decode(self, z: Tensor) -> Tensor:
        """x (B, C, H, W), about in [-1, 1], of scaled latents (B, c, h, w)."""
        x = z if self.vae is None else decode(self.vae, z / self.vae.config.scaling_factor)
        if not torch.isfinite(x).all():
            raise GenerationError("the picture is not finite; try --dtype float32.")
        return x

    @staticmethod
    def _present(pixels: Tensor, output_type: str) -> list[Image.Image] | np.ndarray | Tensor:
        """uint8 pixels (B, C, H, W) as the caller wants them."""
        if output_type == "pil":
            return to_pictures(pixels)
        scaled = pixels.float() / 255.0
        return scaled if output_type == "pt" else scaled.permute(0, 2, 3, 1).numpy()

    def _latent_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """(h, w) of the latent of a picture of this many pixels."""
        factor = compression(self.vae) if self.vae is not None else 1
        size = []
        for name, asked in (("height", height), ("width", width)):
            side = self.config[f"default_{name}"] if asked is None else asked
            if not 0 < side <= MAX_SIDE:
                raise InputError(f"a {name} of {side} pixels cannot be made; give more than 0 and at most {MAX_SIDE}.")
            if side % factor:
                near = max(1, round(side / factor)) * factor
                raise InputError(
                    f"a {name} of {side} pixels is not divisible by {factor}, the model's compression; try {near}."
                )
            size.append(side // factor)
        return size[0], size[1]
