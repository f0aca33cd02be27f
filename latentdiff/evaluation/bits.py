"""Bits per dimension of held-out media under a finished model, from `latentdiff.diffusion.likelihood`.

For pixels (no VAE) that is about the pictures themselves. For a latent model it is about z: the encoder and the decoder
have no part in it, so it compares denoisers on one VAE, and neither VAEs nor with published bits of pixels.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from latentdiff.config import Framing
from latentdiff.data.folder import Row
from latentdiff.data.items import MediaItems, PictureItems, WaveItems
from latentdiff.diffusion.coordinates import Coordinate, Denoise, Variance, check_prediction, convert, diffuse
from latentdiff.diffusion.likelihood import (
    BIN,
    Dequantisation,
    Estimate,
    Likelihood,
    antithetic_times,
    ode_likelihood,
    prior_kl,
    vlb,
    vlb_term,
)
from latentdiff.diffusion.process import family_of, prediction_of, variance_of
from latentdiff.diffusion.samplers import few_step_sampler
from latentdiff.diffusion.schedule import DiscreteSchedule
from latentdiff.errors import InputError
from latentdiff.media.image import to_x
from latentdiff.models.autoencoder import compression, posterior
from latentdiff.models.denoiser import predict
from latentdiff.pipelines.base import LatentDiffusionPipeline
from latentdiff.pipelines.text_to_audio import TextToAudioPipeline

LEFT_OUT = (
    "-log p(x | z) of the decoder and log q(z | x) of the encoder: a VAE trained with L1 and a small KL weight has no "
    "variance that would make its decoder a density"
)


@dataclass(frozen=True)
class Bound:
    """The variational bound L_T + sum of L_t-1 + L_0 (DDPM, equation 5).

    Args:
        steps: Of the chain, evenly chosen among the training times, both ends included (improved DDPM, section 4); None
            for all, 1 for the last alone.
        first: Training time at which the chain begins. The noise of time 0 is for 8-bit pixels; for coarser ones
            (``levels``) a decoder of more noise loses little, and the chain is spared what is finer than a level.
        draws: Times t for each medium, stratified, from which the sum of L_t-1 is estimated; None, or no fewer than
            there are, evaluates each one.
        variance: Of p(z_t-1 | z_t); None takes the scheduler's, or ``fixed_large`` where it names none.
    """

    steps: int | None = None
    first: int = 0
    draws: int | None = 20
    variance: Variance | None = None


@dataclass(frozen=True)
class ODE:
    """The density under the probability-flow ODE (Song et al. 2021, equation 39), of data smoothed by the first noise.

    For pixels it is that of the pixels plus uniform noise as wide as a level. It is no bound.

    Args:
        steps: Runge-Kutta steps, of four evaluations and their gradients each.
        probes: Vectors of Hutchinson's estimate of the divergence; None for the exact trace.
    """

    steps: int = 25
    probes: int | None = 1


@dataclass(frozen=True)
class BitsPerDim:
    """Bits a dimension, with standard errors over the media.

    Args:
        total: Of all terms.
        terms: "L_T", "L_t-1" (their sum) and "L_0" of a bound; "prior", "divergence", "scale" and "bins" of the ODE.
        label: What the number is, in words.
        space: What a dimension is: a channel of a pixel, or an element of z.
        dequantisation: How pixels became a density, or not.
        left_out: What a likelihood of the media would have besides; None where nothing is missing.
        media: How many.
        dimensions: Of one medium.
    """

    total: Estimate
    terms: dict[str, Estimate]
    label: str
    space: Literal["pixels", "latents"]
    dequantisation: Dequantisation
    left_out: str | None
    media: int
    dimensions: int


def bits_per_dim(
    pipeline: LatentDiffusionPipeline,
    rows: list[Row],
    method: Bound | ODE = Bound(),
    *,
    captions: bool = True,
    framing: Framing | None = None,
    levels: int = 256,
    batch: int = 32,
    seed: int = 0,
) -> BitsPerDim:
    """-log2 p of the rows' standard crops, for each dimension.

    Args:
        pipeline: A model of a variance-preserving process, in float32.
        rows: Held-out ones.
        method: How.
        captions: Condition on each row's first caption, or else on the empty one.
        framing: How pictures are framed; None takes what the VAE carries, at the pipeline's own size.
        levels: How many values, evenly spread, a channel of a pixel can have; below 256 for coarser pictures.
        batch: Media at once.
        seed: Of all that is drawn.

    Raises:
        InputError: if there are no rows, they do not fit, or the model has no such likelihood.
    """
    if not rows:
        raise InputError("there are no held-out media to measure a likelihood on.")
    chain = _Chain.of(pipeline, method if isinstance(method, Bound) else Bound(), levels)
    media, generator = _media(pipeline, rows, framing), torch.Generator().manual_seed(seed)
    offsets, parts = antithetic_times(len(rows), generator), []
    for first in range(0, len(rows), batch):
        chosen = rows[first : first + batch]
        z_0 = _data(pipeline, media.stack(chosen), levels, generator)
        denoise = _denoise(pipeline, [row.captions[0] if captions and row.captions else "" for row in chosen])
        if isinstance(method, Bound):
            parts.append(chain.bound(denoise, z_0, offsets[first : first + batch], method.draws, generator))
        else:
            parts.append(chain.density(denoise, z_0, method, generator))
    terms = {name: torch.cat([part.terms[name] for part in parts]) for name in parts[0].terms}
    whole = Likelihood(terms, parts[0].dimensions, parts[0].dequantisation)
    return BitsPerDim(
        total=whole.bits_per_dim(),
        terms={name: whole.bits_per_dim(name) for name in terms},
        label=chain.label(method),
        space="pixels" if chain.pixels else "latents",
        dequantisation=whole.dequantisation,
        left_out=None if chain.pixels else LEFT_OUT,
        media=len(rows),
        dimensions=whole.dimensions,
    )


@dataclass(frozen=True)
class _Chain:
    """The reverse process of a model, on all or some of its training times."""

    schedule: DiscreteSchedule
    times: Tensor
    """(steps,) the training time of each step."""
    prediction: Coordinate
    variance: Variance
    pixels: bool
    levels: int

    @classmethod
    def of(cls, pipeline: LatentDiffusionPipeline, method: Bound, levels: int) -> "_Chain":
        """That of the pipeline's scheduler."""
        config, unet = pipeline.scheduler.config, pipeline.unet.config
        if few_step_sampler(config):
            raise InputError("a few-step student has no likelihood; measure that of its teacher.")
        if family_of(config) != "variance_preserving":
            kind = family_of(config)
            raise InputError(f"bits per dimension are for variance-preserving models, and this is one of {kind} kind.")
        schedule, prediction = DiscreteSchedule.from_config(config), prediction_of(config)
        check_prediction(prediction, schedule.alpha_bar)
        last, first = len(schedule.betas) - 1, method.first
        if not 0 <= first <= last:
            raise InputError(f"a bound from time {first} on cannot be: the model's times are 0 to {last}.")
        trained = last - first + 1
        steps = trained if method.steps is None else method.steps
        if not 1 <= steps <= trained:
            raise InputError(f"a bound of {steps} steps cannot be: the model has 1 to {trained}.")
        times = torch.linspace(last, first, steps, dtype=torch.float64).flip(0).round().long()
        learned: Variance | None = "learned_range" if unet.out_channels == 2 * unet.in_channels else None
        named = variance_of(config)
        own: Variance = named if named in ("fixed_large", "fixed_small") else "fixed_large"
        return cls(
            schedule if steps == last + 1 else DiscreteSchedule.from_alpha_bar(schedule.alpha_bar[times]),
            times,
            prediction,
            method.variance or learned or own,
            pipeline.vae is None,
            levels,
        )

    @torch.no_grad()
    def bound(
        self, denoise: Denoise, z_0: Tensor, offsets: Tensor, draws: int | None, generator: torch.Generator
    ) -> Likelihood:
        """The terms of the bound; L_t-1 at ``draws`` times of each medium, offsets (B,) in [0, 1) into their strata."""
        network, prediction = self._network(denoise)
        dequantisation: Literal["none", "discretised"] = "discretised" if self.pixels else "none"
        between = len(self.times) - 1
        if draws is None or draws >= between:
            return vlb(
                self.schedule, network, z_0, prediction=prediction, variance=self.variance,
                dequantisation=dequantisation, generator=generator, levels=self.levels,
            )  # fmt: skip

        def term(t: Tensor) -> Tensor:
            eps = torch.randn(z_0.shape, dtype=torch.float64, generator=generator).to(z_0.device)
            z_t = diffuse(z_0.double(), eps, self.schedule.alpha_bar[t])
            t = t.to(z_0.device)
            output = network(z_t.to(z_0.dtype), t)
            return vlb_term(self.schedule, t, output, z_t, z_0, prediction, self.variance, dequantisation, self.levels)

        strata = [(offsets + stratum) / draws * between for stratum in range(draws)]
        middle = torch.stack([term(1 + place.long().clamp(max=between - 1)) for place in strata])
        terms = {"L_T": prior_kl(z_0, self.schedule.alpha_bar[-1:]), "L_t-1": middle.sum(0) * between / draws}
        return Likelihood(
            terms | {"L_0": term(torch.zeros(len(z_0), dtype=torch.long))}, z_0[0].numel(), dequantisation
        )

    def _network(self, denoise: Denoise) -> tuple[Denoise, Coordinate]:
        """The network on the chain's own indices, and what it predicts.

        Of pixels it is z_0, clipped to their range as in the code of DDPM and improved DDPM.
        """

        def at_chosen(z_t: Tensor, t: Tensor) -> Tensor:
            output = denoise(z_t, self.times.to(t.device)[t])
            return output if self.variance == "learned_range" else output[:, : z_t.shape[1]]

        def clipped(z_t: Tensor, t: Tensor) -> Tensor:
            output, z_t = at_chosen(z_t, t).double(), z_t.double()
            prediction, rest = output[:, : z_t.shape[1]], output[:, z_t.shape[1] :]
            z_0 = convert(prediction, z_t, self.schedule.alpha_bar.to(t.device)[t], self.prediction, "sample")
            return torch.cat([z_0.clamp(-1, 1), rest], dim=1)

        return (clipped, "sample") if self.pixels else (at_chosen, self.prediction)

    def density(self, denoise: Denoise, z_0: Tensor, method: ODE, generator: torch.Generator) -> Likelihood:
        """The terms of the ODE."""
        return ode_likelihood(
            self.schedule,
            lambda z_t, t: denoise(z_t, t)[:, : z_t.shape[1]],
            z_0,
            prediction=self.prediction,
            dequantisation="uniform" if self.pixels else "none",
            steps=method.steps,
            probes=method.probes,
            generator=generator,
            levels=self.levels,
        )

    def label(self, method: Bound | ODE) -> str:
        """What the number is, in words."""
        bound = isinstance(method, Bound)
        if self.pixels:
            decoder = "discretised decoder" if bound else "uniform dequantisation"
            what = f"of pixels with {self.levels} levels, {decoder}"
        else:
            what = "in latent space (a density of z, which may be negative)"
        how = f"upper bound of {len(self.times)} steps" if bound else "probability-flow ODE, no bound"
        return f"bits/dim {what}, {how}"


def _denoise(pipeline: LatentDiffusionPipeline, captions: list[str]) -> Denoise:
    tau = pipeline.encode_prompt(captions)
    return lambda z_t, t: predict(pipeline.unet, z_t, t, tau)


def _media(pipeline: LatentDiffusionPipeline, rows: list[Row], framing: Framing | None) -> MediaItems:
    """The rows as the pipeline's own kind and size of media."""
    if isinstance(pipeline, TextToAudioPipeline):
        mel, factor = pipeline.mel.config, compression(pipeline.vae)
        frames = int(pipeline.config.default_seconds * mel.sampling_rate) // mel.hop_length // factor * factor
        return WaveItems(rows, mel.sampling_rate, frames * mel.hop_length)
    channels = (pipeline.unet if pipeline.vae is None else pipeline.vae).config.in_channels
    if framing is None:
        carried = getattr(pipeline.vae.config, "image", None) if pipeline.vae is not None else None
        size = pipeline.config.default_height, pipeline.config.default_width
        framing = Framing.model_validate({"channels": channels, **(carried or {}), "size": size})
    if framing.channels != channels:
        raise InputError(f"the pictures are framed with {framing.channels} channels, and the model has {channels}.")
    return PictureItems(rows, framing)


@torch.no_grad()
def _data(pipeline: LatentDiffusionPipeline, media: Tensor, levels: int, generator: torch.Generator) -> Tensor:
    """z_0 (B, C, h, w) of media: pixels on their levels, or a draw from q(z | x), as in training."""
    media = media.to(pipeline.device)
    if isinstance(pipeline, TextToAudioPipeline):
        mel = pipeline.mel.to(media.device)
        x = mel.to_x(mel(mel.prepare(media))[:, : media.shape[1] // mel.config.hop_length])
    else:
        x = to_x(media)
    if pipeline.vae is None:
        return on_levels(x, levels)
    q = posterior(pipeline.vae, x)
    noise = torch.randn(q.mean.shape, generator=generator).to(x)
    z_0: Tensor = (q.mean + q.std * noise) * pipeline.vae.config.scaling_factor
    return z_0


def on_levels(x: Tensor, levels: int) -> Tensor:
    """8-bit pixels in [-1, 1] as the exact values of so many levels."""
    if not 2 <= levels <= 256:
        raise InputError(f"levels is {levels}; a channel of a pixel has from 2 to 256.")
    exact = ((x + 1) * (levels - 1) / 2).round() * 2 / (levels - 1) - 1
    if levels < 256 and (exact - x).abs().max() > 0.51 * BIN:
        raise InputError(f"the pictures have other values than {levels} evenly spread ones; levels is more than that.")
    return exact
