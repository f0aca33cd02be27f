"""Autoencoders: the linear start against an SVD of our own, shapes, save and load."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from latentdiff.config import KLAutoencoderConfig, PatchAutoencoderConfig
from latentdiff.media.mel import PRESETS, MelConfig
from latentdiff.models.autoencoder import PatchAutoencoder, build_autoencoder, compression

MEL = PRESETS["starter-16k-64"]
KL = KLAutoencoderConfig(
    kind="kl", block_out_channels=(8, 16, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4
)


def correlated_x(channels: int = 1, count: int = 12, size: int = 32) -> Tensor:
    """Smooth pictures with an offset and a slope: PCA finds something, and the mean patch is not flat."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, channels, size // 4, size // 4, generator=generator)
    x = torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear")
    ripple = torch.sin(torch.arange(size) * 2 * torch.pi / 8)
    return x + 0.1 * torch.randn(x.shape, generator=generator) + 0.7 + 0.3 * ripple


def patches_of(x: Tensor, p: int) -> np.ndarray:
    """(patches, C * p * p), by slicing."""
    rows = []
    for picture in x.double().numpy():
        for top in range(0, picture.shape[1], p):
            for left in range(0, picture.shape[2], p):
                rows.append(picture[:, top : top + p, left : left + p].reshape(-1))
    return np.stack(rows)


def linear_only(**sizes: Any) -> PatchAutoencoder:
    torch.manual_seed(0)
    return PatchAutoencoder(width=8, depth=1, **sizes)


@pytest.mark.parametrize(("channels", "p", "latent"), [(1, 8, 8), (1, 8, 3), (1, 4, 5), (2, 8, 6)])
def test_solve_linear_is_pca(channels: int, p: int, latent: int) -> None:
    x = correlated_x(channels)
    vae = linear_only(in_channels=channels, latent_channels=latent, patch_size=p)
    kept = vae.solve_linear(x)

    patches = patches_of(x, p)
    mean = patches.mean(0)
    _, singular, directions = np.linalg.svd(patches - mean, full_matrices=False)
    eigenvalues = singular**2 / len(patches)
    assert kept == pytest.approx(eigenvalues[:latent].sum() / eigenvalues.sum(), rel=1e-6)

    # The decoder adds one mean a channel, and not the mean patch: that is documented in solve_linear.
    flat = np.repeat(mean.reshape(channels, -1).mean(1), p * p)
    expected = (patches - mean) @ directions[:latent].T @ directions[:latent] + flat
    with torch.no_grad():
        made = patches_of(vae(x).sample, p)
    assert np.abs(made - expected).max() < 1e-4

    error = float(((made - patches) ** 2).mean())
    rest = eigenvalues[latent:].sum() + ((mean - flat) ** 2).sum()
    assert error == pytest.approx(rest / patches.shape[1], rel=1e-4)


def test_solve_linear_whitens_the_latent() -> None:
    x = correlated_x()
    vae = linear_only(latent_channels=4, patch_size=8)
    vae.solve_linear(x)
    with torch.no_grad():
        posterior = vae.encode(x).latent_dist
    z = posterior.mode().transpose(0, 1).flatten(1).double()
    assert z.mean(1).abs().max() < 1e-5
    assert (torch.cov(z, correction=0) - torch.eye(4)).abs().max() < 1e-4
    assert torch.allclose(posterior.logvar, torch.tensor(-4.0))


def test_solve_linear_on_constant_x_stays_finite() -> None:
    """Silence: no direction has any variance."""
    vae = linear_only(latent_channels=4, patch_size=8)
    vae.solve_linear(torch.full((2, 1, 16, 16), -1.3))
    with torch.no_grad():
        made = vae(torch.full((2, 1, 16, 16), -1.3)).sample
    assert torch.allclose(made, torch.tensor(-1.3), atol=1e-4)


def test_branches_begin_at_zero_and_learn() -> None:
    vae = linear_only(latent_channels=4, patch_size=8)
    x = correlated_x()
    vae.solve_linear(x)
    z = vae.encode(x).latent_dist.mode()
    assert torch.equal(vae.decoder(z), torch.zeros_like(x))
    (vae.decode(z).sample - x).square().mean().backward()
    for branch in (vae.encoder, vae.decoder):
        last = [layer for layer in branch if isinstance(layer, torch.nn.Conv2d)][-1]
        assert last.weight.grad is not None and float(last.weight.grad.abs().max()) > 0


@pytest.mark.parametrize("p", [4, 8, 16])
def test_shapes_of_ours(p: int) -> None:
    vae = linear_only(in_channels=3, latent_channels=5, patch_size=p)
    x = torch.randn(2, 3, 4 * p, 2 * p)
    posterior = vae.encode(x).latent_dist
    assert posterior.mode().shape == posterior.std.shape == (2, 5, 4, 2)
    assert vae.decode(posterior.sample()).sample.shape == x.shape
    assert vae.encode(x, return_dict=False)[0].mode().shape == (2, 5, 4, 2)
    assert vae.decode(posterior.mode(), return_dict=False)[0].shape == x.shape
    assert compression(vae) == p


def test_ours_saved_and_loaded_is_bit_identical(tmp_path: Path) -> None:
    vae = build_autoencoder(PatchAutoencoderConfig(latent_channels=4, width=8, depth=1), 1, MEL)
    x = correlated_x()
    vae.solve_linear(x)
    for parameter in vae.parameters():  # the branches too
        torch.nn.init.normal_(parameter, std=0.05)
    vae.register_to_config(scaling_factor=0.75)
    vae.save_pretrained(tmp_path)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").is_file()
    again = PatchAutoencoder.from_pretrained(tmp_path)
    assert again.config.scaling_factor == 0.75
    assert MelConfig.from_dict(again.config.mel) == MEL
    with torch.no_grad():
        first, second = vae.encode(x).latent_dist, again.encode(x).latent_dist
        assert torch.equal(first.parameters, second.parameters)
        assert torch.equal(vae.decode(first.mode()).sample, again.decode(first.mode()).sample)


def test_kl_carries_the_mel_and_loads_in_plain_diffusers(tmp_path: Path) -> None:
    vae = build_autoencoder(KL, 1, MEL)
    assert isinstance(vae, diffusers.AutoencoderKL)
    assert compression(vae) == 4
    vae.save_pretrained(tmp_path)
    plain = diffusers.AutoencoderKL.from_pretrained(tmp_path)
    assert MelConfig.from_dict(plain.config.mel) == MEL
    assert plain.config.latent_channels == 4
    x = torch.randn(1, 1, 16, 8)
    with torch.no_grad():
        z = vae.encode(x).latent_dist.mode()
        assert z.shape == (1, 4, 4, 2)
        assert torch.equal(z, plain.encode(x).latent_dist.mode())
        assert torch.equal(vae.decode(z).sample, plain.decode(z).sample)


def test_an_autoencoder_of_pictures_has_no_mel() -> None:
    assert build_autoencoder(PatchAutoencoderConfig(width=8, depth=1), 3, None).config.mel is None
    assert build_autoencoder(KL, 3, None).config.in_channels == 3
