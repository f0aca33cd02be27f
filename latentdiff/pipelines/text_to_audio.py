"""Text to audio: prompt -> tau -> z_0 -> mel -> waveform."""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AudioLDM2ProjectionModel, SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor
from transformers import (
    ClapFeatureExtractor,
    ClapModel,
    ClapTextModelWithProjection,
    CLIPTextModel,
    GPT2LMHeadModel,
    PreTrainedTokenizerBase,
    SpeechT5HifiGan,
    T5EncoderModel,
)

from latentdiff.errors import InputError
from latentdiff.media.mel import LogMel, require_same_mel, resolve_mel
from latentdiff.models.autoencoder import Autoencoder, compression, decode
from latentdiff.models.denoiser import Denoiser
from latentdiff.models.prompts import ConditionAdapter
from latentdiff.models.vocoder import imposed_iterations, vocoder_mel, voice
from latentdiff.names import MAX_SECONDS
from latentdiff.pipelines.arguments import (
    Callback,
    Sampling,
    one_for_each,
    require_generators,
    require_output_type,
)
from latentdiff.pipelines.base import GenerationError, LatentDiffusionPipeline
from latentdiff.pipelines.composition import Part, mixed, parts_of
from latentdiff.pipelines.ranking import Ranker, best_of


@dataclass
class AudioOutput(BaseOutput):
    """Waveforms and their rate."""

    audios: np.ndarray | Tensor
    """float32 (B, samples) in [-1, 1]; latents (B, C, h, w) for ``output_type="latent"``."""
    sampling_rate: int
    """Hz; no diffusers output carries it, and people save at the wrong rate."""
    scores: np.ndarray | None = None
    """(B,), CLAP's cosine of each kept waveform and its prompt, where there were candidates."""
    chosen: np.ndarray | None = None
    """(B,), the places of the kept ones among all (B * candidates,) that were made."""
    parts: list[tuple[Part, ...]] | None = None
    """Of each prompt, the sounds that were made alone and added; None where each was made in one."""


class TextToAudioPipeline(LatentDiffusionPipeline):
    """Latent diffusion over log-mels with a HiFi-GAN, as AudioLDM (Liu et al. 2023) and its relatives.

    Why an own class: diffusers' audio pipelines each fix one text stack (CLAP, or CLAP + T5 + GPT-2), carry no
    mel definition, lose the sampling rate and mix up prompts of different length; none takes T5 alone.

    Args:
        vae: autoencoder of the mel.
        unet: the denoiser.
        scheduler: any diffusers scheduler; assign another to change the sampler.
        vocoder: HiFi-GAN of the same mel.
        text_encoder: T5 for cross-attention (Auffusion: CLIP), with ``tokenizer``.
        clap: CLAP for FiLM, with ``clap_tokenizer``; at least one of the two is there.
        projection_model: AudioLDM2's, from CLAP and T5 to its ``language_model``.
        language_model: AudioLDM2's GPT-2.
        adapter: Auffusion's, between its text encoder and the U-Net.
        feature_extractor: CLAP's view of sounds.
        default_steps: sampling steps when the caller names none.
        default_guidance: guidance scale when the caller names none.
        default_seconds: length when the caller names none.
        prediction: what the network predicts; None believes the scheduler.
        guidance_range: lowest and highest scale that a distilled student has learnt to hear as an input.
        default_guidance_interval: the part of the steps that is guided when the caller names none; None is all.
        default_guidance_rescale: how far guidance is rescaled when the caller does not say.
        default_compose: whether the sounds of a prompt are made one by one when the caller does not say.
    """

    model_cpu_offload_seq = "text_encoder->clap->projection_model->language_model->adapter->unet->vae->vocoder"
    _optional_components = [
        "text_encoder",
        "tokenizer",
        "clap",
        "clap_tokenizer",
        "projection_model",
        "language_model",
        "adapter",
        "feature_extractor",
    ]
    made = "waveforms"

    def __init__(
        self,
        vae: Autoencoder,
        unet: Denoiser,
        scheduler: SchedulerMixin,
        vocoder: SpeechT5HifiGan,
        text_encoder: T5EncoderModel | CLIPTextModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        clap: ClapModel | ClapTextModelWithProjection | None = None,
        clap_tokenizer: PreTrainedTokenizerBase | None = None,
        projection_model: AudioLDM2ProjectionModel | None = None,
        language_model: GPT2LMHeadModel | None = None,
        adapter: ConditionAdapter | None = None,
        feature_extractor: ClapFeatureExtractor | None = None,
        default_steps: int = 20,
        default_guidance: float = 3.0,
        default_seconds: float = 4.096,
        prediction: str | None = None,
        guidance_range: list[float] | None = None,
        default_guidance_interval: list[float] | None = None,
        default_guidance_rescale: float = 0.0,
        default_compose: bool = False,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae,
            unet=unet,
            scheduler=scheduler,
            vocoder=vocoder,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            clap=clap,
            clap_tokenizer=clap_tokenizer,
            projection_model=projection_model,
            language_model=language_model,
            adapter=adapter,
            feature_extractor=feature_extractor,
        )
        self.register_to_config(
            default_steps=default_steps,
            default_guidance=default_guidance,
            default_seconds=default_seconds,
            guidance_range=guidance_range,
            default_guidance_interval=default_guidance_interval,
            default_guidance_rescale=default_guidance_rescale,
            default_compose=default_compose,
        )
        self.keep_process(prediction)
        definition = getattr(vae.config, "mel", None)
        if not definition:
            raise InputError("the VAE carries no mel definition in its config.json, so its output cannot be voiced.")
        mel, other = resolve_mel(definition), vocoder_mel(vocoder)
        if other is not None:
            require_same_mel(mel, "the VAE", other, "the vocoder")
        self.mel = LogMel(mel)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        audio_length_in_s: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | list[str] | None = None,
        num_waveforms_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        callback_on_step_end: Callback | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        candidates: int = 1,
        ranker: Ranker | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float | None = None,
        compose: bool | None = None,
    ) -> AudioOutput | tuple[np.ndarray | Tensor, int]:
        """Waveforms of prompts.

        Args:
            prompt: one or several.
            audio_length_in_s: seconds of each waveform.
            num_inference_steps: sampling steps.
            guidance_scale: classifier-free guidance; 1 or less turns it off.
            guidance_interval: the part of the steps that is guided, in shares; (0.2, 0.8) spares both outer fifths.
            guidance_rescale: from 0 to 1, how far guidance is kept from making it louder (Lin et al. 2024).
            negative_prompt: what to steer away from; by default the empty caption.
            num_waveforms_per_prompt: waveforms of each prompt, one after the other in the output.
            generator: one for all, or a list of one for each waveform (each candidate), which is then independent.
            latents: unit noise (B, C, h, w) to start from.
            callback_on_step_end: diffusers' callback; set ``pipeline._interrupt = True`` in it to stop early.
            output_type: ``np``, ``pt`` or ``latent``.
            return_dict: an `AudioOutput`, or else a tuple of waveforms and rate.
            candidates: of so many for each waveform, the one that the ranker finds nearest to its prompt is kept.
            ranker: judges candidates; None is the model's own CLAP.
            compose: make the sounds that a prompt joins one by one and add them up (`pipelines.composition`); None is
                the model's default, and means no where latents are given or asked for.

        Raises:
            InputError: for a bad argument, before anything is computed.
            GenerationError: if the result is not finite.
        """
        prompts = self.prompts_of(prompt, negative_prompt, guidance_scale)
        rows, samples = self._length(audio_length_in_s)
        require_output_type(output_type, ("np", "pt", "latent"))
        judge, each = self._judge(candidates, ranker, output_type), num_waveforms_per_prompt * candidates
        parts = self._parts(prompts, compose, latents, output_type)
        guidance = guidance_scale, guidance_interval, guidance_rescale
        how = Sampling(each, num_inference_steps, *guidance, callback_on_step_end)
        if output_type == "latent":
            z = self.sample(prompts, self._latent_size(rows), how, negative_prompt, generator, latents)
            made = AudioOutput(audios=z, sampling_rate=self.mel.config.sampling_rate)
        else:
            log_mel = self._log_mels(parts, rows, how, negative_prompt, generator, latents)
            made = self._heard(self._voice(log_mel)[:, :samples], parts, prompts, judge, candidates, output_type)
        self.maybe_free_model_hooks()
        return made if return_dict else (made.audios, made.sampling_rate)

    def _parts(
        self, prompts: list[str], compose: bool | None, latents: Tensor | None, output_type: str
    ) -> list[tuple[Part, ...]]:
        """The sounds that each prompt is made of, one after another or together.

        Raises:
            InputError: if they are to be made apart for one latent.
        """
        one_latent = latents is not None or output_type == "latent"
        if compose and one_latent:
            raise InputError("a composed clip has a latent for each of its sounds; leave out compose, or latents.")
        if one_latent or not (self.config.default_compose if compose is None else compose):
            return [(Part(text),) for text in prompts]
        return [parts_of(text) for text in prompts]

    def _log_mels(
        self,
        parts: list[tuple[Part, ...]],
        rows: int,
        how: Sampling,
        negative_prompt: str | list[str] | None,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: Tensor | None,
    ) -> Tensor:
        """Log-mels (B, T, F) of prompts: the parts of one length are made at once, and those of a clip added.

        Raises:
            InputError: if the clip is too short for the sounds that follow one another.
        """
        negatives = None if negative_prompt is None else one_for_each(negative_prompt, len(parts))
        require_generators(generator, len(parts) * how.each, self.made)
        by_length: dict[int, list[tuple[int, Part]]] = {}
        for number, sounds in enumerate(parts):
            for part in sounds:
                span = part.rows(rows)
                by_length.setdefault(span.stop - span.start, []).append((number, part))
        if 0 in by_length:
            text = by_length[0][0][1].text
            raise InputError(f"the clip is too short for all its sounds, '{text}' among them; make it longer.")
        factor = compression(self.vae)
        made: list[list[tuple[slice, Tensor]]] = [[] for _ in range(len(parts) * how.each)]
        for length, group in sorted(by_length.items()):  # in an order that does not depend on the other prompts
            clips = [(number * how.each + i, part) for number, part in group for i in range(how.each)]
            z = self.sample(
                [part.text for _, part in group],
                self._latent_size(length),
                how,
                [negatives[number] for number, _ in group] if negatives is not None else None,
                [generator[clip] for clip, _ in clips] if isinstance(generator, list) else generator,
                latents,
            )
            for (clip, part), log_mel in zip(clips, self._log_mel(z), strict=True):
                span = part.rows(rows)
                made[clip].append((slice(span.start * factor, span.stop * factor), log_mel))
        return torch.stack([mixed(sounds, rows * factor, self.mel.config) for sounds in made])

    def _heard(
        self,
        wave: Tensor,
        parts: list[tuple[Part, ...]],
        prompts: list[str],
        judge: Ranker | None,
        candidates: int,
        output_type: str,
    ) -> AudioOutput:
        """The waveforms, or the best of each one's candidates, as they are returned."""
        rate, wave = self.mel.config.sampling_rate, wave.float().cpu()
        made = AudioOutput(wave, rate, parts=parts if any(len(sounds) > 1 for sounds in parts) else None)
        if judge is not None:
            each = len(wave) // len(prompts)
            scores = judge(wave.numpy(), rate, [text for text in prompts for _ in range(each)])
            made.chosen = best_of(scores, candidates)
            wave, made.scores = wave[made.chosen], scores[made.chosen]
        made.audios = wave.numpy() if output_type == "np" else wave
        return made

    def _judge(self, candidates: int, ranker: Ranker | None, output_type: str) -> Ranker | None:
        """What ranks candidates; None where there is one of each.

        Raises:
            InputError: if nothing here can rank.
        """
        if candidates < 1:
            raise InputError(f"{candidates} candidates cannot be made; give at least 1.")
        if candidates == 1:
            return None
        if output_type == "latent":
            raise InputError("candidates are ranked by how they sound, and latents were asked for; choose np or pt.")
        if ranker is not None:
            ranker.clap.to(self._execution_device)
            return ranker
        if not isinstance(self.clap, ClapModel) or self.feature_extractor is None:
            raise InputError("this model has no whole CLAP to rank candidates with; give one as the ranker.")
        return Ranker(self.clap, self.clap_tokenizer, self.feature_extractor)

    def decode(self, z: Tensor) -> Tensor:
        """Waveforms (B, samples) of scaled latents (B, C, h, w)."""
        return self._voice(self._log_mel(z))

    def _log_mel(self, z: Tensor) -> Tensor:
        return self.mel.from_x(decode(self.vae, z / self.vae.config.scaling_factor))

    def _voice(self, log_mel: Tensor) -> Tensor:
        """Waveforms (B, samples). One beyond full scale is turned down as a whole, since a file would clip it."""
        wave = voice(self.vocoder, log_mel, self.mel.to(log_mel.device), imposed_iterations(self.vocoder))
        if not torch.isfinite(wave).all():
            raise GenerationError("the waveform is not finite; try --dtype float32.")
        return wave / wave.abs().amax(-1, keepdim=True).clamp(min=1.0)

    def _length(self, seconds: float | None) -> tuple[int, int]:
        """Whole latents in time that cover the duration, and the samples that are cropped of them.

        Raises:
            InputError: if it is no duration that can be made.
        """
        seconds = self.config.default_seconds if seconds is None else seconds
        if not 0 < seconds <= MAX_SECONDS:
            raise InputError(f"a duration of {seconds} s cannot be made; give more than 0 and at most {MAX_SECONDS:g}.")
        samples = round(seconds * self.mel.config.sampling_rate)
        return -(-samples // (self.mel.config.hop_length * compression(self.vae))), samples

    def _latent_size(self, rows: int) -> tuple[int, int]:
        """(h, w) of the latent."""
        mel = self.mel.config
        size = (rows, mel.n_mels // compression(self.vae))
        return (size[1], size[0]) if mel.frequency_first else size
