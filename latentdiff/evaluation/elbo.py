"""Bits per dimension of pictures under a VAE, by its evidence lower bound.

What `latentdiff.evaluation.bits` says of denoisers, said of autoencoders, so that the two compare: the same pictures,
the same levels. The recipe ``vae`` trains L1 with a small weight of the KL; that is this bound for a Laplace decoder of
one scale b where ``weights.kl`` is b times the latent's elements over the picture's.
"""

import math

import torch
from torch import Tensor

from latentdiff.diffusion.likelihood import Likelihood
from latentdiff.models.autoencoder import Autoencoder, decode, posterior

LEAST_SCALE = 0.25
"""Of the decoder, in distances of two levels: a pixel that never varied in training may yet."""


@torch.no_grad()
def laplace_scales(vae: Autoencoder, x: Tensor, *, levels: int, generator: torch.Generator) -> Tensor:
    """The likeliest scale of each element (C, H, W) of p(x | z) on training pictures x (B, C, H, W): its mean error."""
    error = (decode(vae, _draw(vae, x, generator)[0]) - x).abs().mean(0)
    return error.double().clamp(min=LEAST_SCALE * 2 / (levels - 1))


@torch.no_grad()
def elbo(
    vae: Autoencoder, x: Tensor, scales: Tensor, *, levels: int, draws: int, generator: torch.Generator
) -> Likelihood:
    """-log p(x) <= KL(q(z | x) || N(0, I)) - E_q log p(x | z) of pictures on their levels (Kingma and Welling 2014).

    Args:
        vae: Trained for latents that are about N(0, I).
        x: (B, C, H, W), `latentdiff.evaluation.bits.on_levels`.
        scales: Of the decoder, (C, H, W).
        levels: How many values a channel of a pixel has.
        draws: Of z for each picture.

    Returns:
        The terms "KL" and "reconstruction" (B,).
    """
    errors = []
    for _ in range(draws):
        z, kl = _draw(vae, x, generator)
        errors.append(-_discretised_laplace(x, decode(vae, z).clamp(-1, 1), scales, levels).flatten(1).sum(1))
    return Likelihood({"KL": kl, "reconstruction": torch.stack(errors).mean(0)}, x[0].numel(), "discretised")


def _draw(vae: Autoencoder, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """z of q(z | x), and the KL in nats (B,)."""
    q = posterior(vae, x)
    kl = 0.5 * (q.mean.square() + q.var - 1 - q.logvar).double().flatten(1).sum(1)
    return q.mean + q.std * torch.randn(q.mean.shape, generator=generator).to(x), kl


def _discretised_laplace(x: Tensor, centre: Tensor, scales: Tensor, levels: int) -> Tensor:
    """log probability of each element under a Laplace distribution integrated over the bins of the levels.

    As `latentdiff.diffusion.likelihood.discretised_log_likelihood`: the outer bins reach to infinity.
    """
    half, x = 1 / (levels - 1), x.double()
    above = torch.where(x > 1 - half, torch.inf, (x + half - centre) / scales)
    below = torch.where(x < -1 + half, -torch.inf, (x - half - centre) / scales)
    # Symmetric; its logarithm is accurate on the left, so look from there.
    flip = below + above > 0
    high, low = torch.where(flip, -below, above), torch.where(flip, -above, below)
    log_high, log_low = _log_cdf(high), _log_cdf(low)
    return log_high + torch.log(-torch.expm1(log_low - log_high))


def _log_cdf(u: Tensor) -> Tensor:
    return torch.where(u < 0, u - math.log(2), torch.log1p(-0.5 * torch.exp(-u.abs())))
