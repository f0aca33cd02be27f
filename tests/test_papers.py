"""The published systems in configs/papers, built without memory: as many parameters as their papers and code have.

A row is a file, one of the parts it says, how many parameters that has, and who says so. What a part needs to know
that stands in no file of ours (the width of a published text encoder) is in the row.
"""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

from latentdiff.config import (
    ConsistencyRecipe,
    DiffusionRecipe,
    ImageData,
    NewTextEncoder,
    PlainUNetConfig,
    VAERecipe,
    VocoderRecipe,
    load_config,
)
from latentdiff.media.mel import resolve_mel
from latentdiff.models.autoencoder import build_autoencoder
from latentdiff.models.denoiser import new_denoiser
from latentdiff.models.text import new_t5
from latentdiff.models.vocoder import new_vocoder
from latentdiff.training.objective import new_objective

PAPERS = Path(__file__).parents[1] / "configs" / "papers"


class Published(NamedTuple):
    file: str
    component: str
    millions: float
    source: str
    channels: int | None = None
    """Of z, where the autoencoder is another file's."""
    tokens_width: int | tuple[int, int] | None = None
    """Of a published text encoder, or of GPT-2 and a text encoder."""
    pooled_width: int | None = None


OURS = {"ddpm_digits", "vdm_digits", "vae_one_step_digits", "sohl_dickstein_swissroll"}
"""Published objectives with a network of our own, which no paper has counted."""
PUBLISHED = [
    # The paper says 181: see test_audioldm_s_and_its_paper.
    Published("audioldm_s", "unet", 185.0, "AudioLDM's code (extra_film_use_concat)", channels=8, pooled_width=512),
    Published("audioldm_m", "unet", 416, "AudioLDM's released checkpoints", channels=8, pooled_width=512),
    Published("audioldm_l", "unet", 739, "AudioLDM, table 1", channels=8, pooled_width=512),
    Published("audioldm2", "unet", 346, "AudioLDM2, its AudioCaps table", channels=8, tokens_width=(768, 1024)),
    Published("audioldm2_large", "unet", 712, "AudioLDM2, its AudioCaps table", channels=8, tokens_width=(768, 1024)),
    Published("auffusion", "unet", 859.5, "Stable Diffusion 1's, counted", channels=4, tokens_width=768),
    Published("stable_diffusion_v1", "unet", 859.5, "its checkpoints, counted", channels=4, tokens_width=768),
    Published("tango", "unet", 866, "Tango, table 1", channels=8, tokens_width=1024),
    Published("hifigan_v1", "generator", 13.92, "HiFi-GAN, table 1"),
    Published("hifigan_v2", "generator", 0.92, "HiFi-GAN, table 1"),
    Published("hifigan_v3", "generator", 1.46, "HiFi-GAN, table 1"),
    Published("ddpm_cifar10", "unet", 35.7, "DDPM, appendix B"),
    Published("improved_ddpm_cifar10", "unet", 52.5, "its UNetModel at the README's flags, counted"),
    Published("consistency_cifar10", "unet", 56.1, "Song et al. 2023, its NCSN++ counted"),
    Published("vdm_cifar10", "unet", 30.578, "its ScoreUNet at configs/cifar10.py, counted"),
    Published("mnist_x0", "unet", 1.707, "the UNet2DModel of the course's notebook"),
    Published("ldm_kl_f8", "autoencoder", 83.65, "the checkpoint kl-f8, counted"),
    Published("ldm_text2img", "unet", 872.3, "the checkpoint txt2img-f8-large, counted", channels=4),
    Published("ldm_text2img", "text_encoder", 542.9, "diffusers' LDMBertModel at its defaults without lm_head"),
]


def build(row: Published) -> nn.Module:
    """The part of the row, as its stage builds it, on the meta device."""
    config = load_config(PAPERS / f"{row.file}.yaml")
    match config, row.component:
        case DiffusionRecipe(), "unet":
            pixels = config.data.channels if isinstance(config.data, ImageData) and config.vae is None else None
            own = config.text_encoder.width if isinstance(config.text_encoder, NewTextEncoder) else None
            channels = row.channels or pixels
            assert channels is not None
            each = new_objective(config).output_channels
            with torch.device("meta"):
                return new_denoiser(config.unet, channels, row.tokens_width or own, row.pooled_width, True, each)
        case ConsistencyRecipe(unet=PlainUNetConfig() as sizes, data=ImageData(channels=channels)), "unet":
            with torch.device("meta"):
                return new_denoiser(sizes, channels, tokens_width=None, pooled_width=None)
        case DiffusionRecipe(text_encoder=NewTextEncoder() as sizes), "text_encoder":
            with torch.device("meta"):
                return new_t5(sizes, sizes.vocabulary)
        case VAERecipe(), "autoencoder":
            pictures = isinstance(config.data, ImageData)
            mel = None if config.mel is None else resolve_mel(config.mel)
            with torch.device("meta"):
                return build_autoencoder(config.autoencoder, config.data.channels if pictures else 1, mel)
        case VocoderRecipe(), "generator":
            with torch.device("meta"):
                return new_vocoder(config.generator, resolve_mel(config.mel))
    raise AssertionError(f"{row.file} has no {row.component}")


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row.file}-{row.component}")
def test_parameters_of_published_systems(row: Published) -> None:
    built = sum(parameter.numel() for parameter in build(row).parameters()) / 1e6
    assert built == pytest.approx(row.millions, rel=0.01), f"{row.source} has {row.millions} M"


def test_every_file_is_in_the_table() -> None:
    assert {path.stem for path in PAPERS.glob("*.yaml")} == {row.file for row in PUBLISHED} | OURS


def test_audioldm_s_and_its_paper() -> None:
    """The paper's 181 M is this U-Net with CLAP added to the embedding of t; its code sets the two side by side.

    M and L have the paper's 416 M and 739 M with the two side by side.
    """
    config = load_config(PAPERS / "audioldm_s.yaml")
    assert isinstance(config, DiffusionRecipe)
    with torch.device("meta"):
        added = new_denoiser(config.unet, 8, tokens_width=None, pooled_width=512, pooled_apart=False)
    assert sum(parameter.numel() for parameter in added.parameters()) / 1e6 == pytest.approx(181, rel=0.01)
