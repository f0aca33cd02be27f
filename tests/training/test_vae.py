"""A finished VAE goes on learning: all of it, or its decoder alone, and then its latents are what they were."""

from pathlib import Path

import pytest
import torch

from latentdiff.errors import InputError
from latentdiff.models.autoencoder import encoder_modules
from latentdiff.models.loading import load_autoencoder
from latentdiff.training.recipes.vae import VAETraining
from tests.training.conftest import debug_config, train


def go_on(first: Path, tones: Path, output: Path, *overrides: str) -> Path:
    """The debug recipe from a finished VAE, which brings the sizes."""
    return train(debug_config("vae", tones, output, "autoencoder=null", f"init={first}", *overrides))


@pytest.mark.parametrize("source", ["patch", "kl"])
def test_a_decoder_learns_alone(source: str, stages: dict[str, Path], tones: Path, tmp_path: Path) -> None:
    first = stages["vae"] / "vae"
    if source == "kl":
        sizes = "autoencoder={kind: kl, block_out_channels: [16, 32], norm_num_groups: 8, latent_channels: 4}"
        first = train(debug_config("vae", tones, tmp_path / "kl", sizes)) / "vae"
    out = go_on(first, tones, tmp_path / "more", "train_encoder=false")
    before, after = load_autoencoder(str(first)), load_autoencoder(str(out / "vae"))
    assert after.config.scaling_factor == before.config.scaling_factor
    for one, other in zip(encoder_modules(before), encoder_modules(after), strict=True):
        for name, weight in one.state_dict().items():
            assert torch.equal(weight, other.state_dict()[name]), name
    z = torch.randn(1, before.config.latent_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert not torch.equal(before.decode(z).sample, after.decode(z).sample)


def test_all_of_it_learns_from_where_it_was(stages: dict[str, Path], tones: Path, tmp_path: Path) -> None:
    """After three small steps it is all but where it was; a new one begins from PCA, far away."""
    first = stages["vae"] / "vae"
    out = go_on(first, tones, tmp_path / "more", "train.max_steps=3", "optimizer.lr=1e-5")
    before, after = load_autoencoder(str(first)).state_dict(), load_autoencoder(str(out / "vae")).state_dict()
    moved = [float((before[name] - after[name]).abs().max()) for name in before]
    assert 0 < max(moved) < 1e-3


def test_a_vae_of_other_media_is_refused(stages: dict[str, Path], tones: Path, tmp_path: Path) -> None:
    finished = f"init={stages['vae'] / 'vae'}"
    config = debug_config("vae", tones, tmp_path / "out", "autoencoder=null", finished, "mel=audioldm-16k-64")
    with pytest.raises(InputError, match="do not speak the same mel"):
        VAETraining(config, torch.device("cpu"))


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["train_encoder=false"], "name it by init"),
        (["autoencoder=null"], "autoencoder is null, which only init can stand for"),
        (["init=runs/vae/vae"], "autoencoder comes from init, runs/vae/vae; leave it out"),
    ],
)
def test_keys_that_do_not_go_together(overrides: list[str], complaint: str, tones: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=complaint):
        debug_config("vae", tones, tmp_path / "out", *overrides)
