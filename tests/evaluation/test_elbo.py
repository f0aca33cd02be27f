"""Bits per dimension of a VAE: against the likelihood of a linear one in closed form, and the decoder's bins."""

import math

import pytest
import torch

from latentdiff.evaluation.elbo import _discretised_laplace, elbo, laplace_scales
from latentdiff.models.autoencoder import PatchAutoencoder


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_the_bins_sum_to_one_everywhere(levels: int) -> None:
    grid = torch.linspace(-1, 1, levels, dtype=torch.float64)
    for centre in (-1.0, -0.33, 0.0, 0.98, 1.0):
        for scale in (1e-3, 0.1, 5.0):
            every = _discretised_laplace(grid, torch.tensor(centre), torch.tensor(scale), levels)
            assert every.exp().sum().item() == pytest.approx(1, abs=1e-12) and every.isfinite().all()


def test_a_vae_whose_latent_says_nothing_has_the_bits_of_its_decoder() -> None:
    """Latent N(0, I) whatever x is, picture 0 whatever z is: the KL is 0, and what is left has a closed form."""
    vae = PatchAutoencoder(in_channels=1, latent_channels=2, patch_size=8, width=8, depth=1).eval()
    for parameter in vae.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.constant_(vae.encoder[-1].bias[2:], 4.0)  # against its start at -4
    levels = 17
    x = torch.randint(0, levels, (64, 1, 8, 8), generator=torch.Generator().manual_seed(0)) * 2 / (levels - 1) - 1
    x[:, :, 0] = 0.0
    generator = torch.Generator().manual_seed(1)
    scales = laplace_scales(vae, x, levels=levels, generator=generator)
    assert scales.shape == (1, 8, 8) and torch.allclose(scales[:, 1:], x.abs().mean(0).double()[:, 1:])
    assert (scales[:, 0] == 0.25 / 8).all()  # no error at all, and yet a quarter of a level
    found = elbo(vae, x, scales, levels=levels, draws=3, generator=generator)
    assert found.bits_per_dim("KL").mean == pytest.approx(0, abs=1e-6)
    edge = 1 / 16 / scales
    # P(bin) = exp(-|x| / b) sinh(h / b), P(0) = 1 - exp(-h / b), P(-1) = P(1) = exp(-(1 - h) / b) / 2
    distance = x.double().abs()
    log_p = torch.where(distance == 0, torch.log(-torch.expm1(-edge)), -distance / scales + torch.log(torch.sinh(edge)))
    log_p = torch.where(distance == 1, -(1 - 1 / 16) / scales - math.log(2), log_p)
    expected = -log_p.flatten(1).sum(1).mean().item() / (64 * math.log(2))
    assert found.bits_per_dim().mean == pytest.approx(expected, rel=1e-6)
