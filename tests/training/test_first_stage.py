"""What the diffusion stage stands on: how much each channel of the latent shows."""

from types import SimpleNamespace
from typing import Any

import torch

from latentdiff.config import Framing
from latentdiff.models.autoencoder import PatchAutoencoder
from latentdiff.training.first_stage import PictureStage


def test_channels_weigh_what_the_decoder_makes_of_them() -> None:
    """A decoder that is still linear moves x by the length of each channel's patch, wherever z is."""
    torch.manual_seed(0)
    vae = PatchAutoencoder(in_channels=3, latent_channels=6, width=8, depth=1, scaling_factor=0.5)
    vae.solve_linear(torch.randn(64, 3, 32, 32).cumsum(2).cumsum(3) / 8)
    latents: Any = SimpleNamespace(mean=torch.randn(200, 6, 4, 4))
    stage = PictureStage(vae, "here", Framing(size=32), torch.device("cpu"))
    lengths = vae.synthesis.weight.detach().square().sum((1, 2, 3)).sqrt()
    weights = stage.channel_weights(latents)
    assert torch.allclose(weights, lengths / lengths.mean(), rtol=1e-4)
    assert weights[0] > 3 * weights[-1]  # the first component is the largest
