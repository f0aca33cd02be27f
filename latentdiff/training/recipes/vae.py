"""Stage ``vae``: an autoencoder of x, by reconstruction, KL and an optional adversarial term."""

import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from latentdiff.config import AutoencoderConfig, VAERecipe
from latentdiff.data.folder import Row
from latentdiff.data.items import MediaItems, split_usable
from latentdiff.models.autoencoder import (
    Autoencoder,
    PatchAutoencoder,
    compression,
    decode,
    encoder_modules,
    posterior,
)
from latentdiff.models.discriminators import PatchDiscriminator, frozen, hinge_discriminator_loss
from latentdiff.models.loading import load_autoencoder
from latentdiff.training.modality import modality_of
from latentdiff.training.recipe import Losses, Recipe, Step

logger = logging.getLogger(__name__)


class RoundTrip(nn.Module):
    """x -> posterior -> z -> x in one forward pass, which is what data-parallel wrappers need."""

    def __init__(self, vae: Autoencoder) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction, posterior mean and log variance; ``generator`` None takes the mean for z."""
        q = posterior(self.vae, x)
        z = q.mode()
        if generator is not None:
            z = z + q.std * torch.randn(z.shape, generator=generator).to(z)
        return decode(self.vae, z), q.mean, q.logvar


class VAETraining(Recipe[VAERecipe]):
    """max E[log p(x | z)] - beta KL(q(z | x) | N(0, I)), with L1 as -log p (latent diffusion, section 3.1)."""

    def __init__(self, config: VAERecipe, device: torch.device) -> None:
        super().__init__(config, device)
        rows, held_out = split_usable(config.data)
        self.modality = modality_of(config, device)
        self.vae = self._begun(config.init, config.autoencoder)
        self.media = self.modality.items(rows, compression(self.vae))
        self.held_out = self.modality.items(held_out, compression(self.vae))
        if config.init is None and isinstance(self.vae, PatchAutoencoder):
            kept = self.vae.solve_linear(self.statistics_x)
            logger.info("linear start: %.1f %% of the patches' variance in the latent", 100 * kept)
        self.networks = {"vae": RoundTrip(self.vae)}
        self.phases, self.averaged = {"vae": ("vae",)}, ("vae",)
        self.weights = {name: w for name, w in config.weights.model_dump().items() if w}
        if config.weights.adversarial:
            self.networks["discriminator"] = PatchDiscriminator(self.modality.channels, config.discriminator_width)
            self.phases = {"discriminator": ("discriminator",), **self.phases}
            self.weights["discriminator"] = 1.0

    def _begun(self, init: str | None, sizes: AutoencoderConfig | None) -> Autoencoder:
        """A new VAE, or the finished one to go on from, with its encoder as it is if that is not to learn.

        Raises:
            InputError: if the finished one is of other media.
        """
        if init is None:
            assert sizes is not None  # the configuration was checked
            return self.modality.new_autoencoder(sizes)
        vae = load_autoencoder(init)
        self.modality.require_own(vae, init)
        for part in () if self.config.train_encoder else encoder_modules(vae):
            part.requires_grad_(False)
        return vae

    @property
    def items(self) -> Dataset[dict[str, Any]]:
        return self.media

    def x_of(self, items: MediaItems, rows: Sequence[Row]) -> Tensor:
        """x (B, C, H, W) of rows, always the same one."""
        parts = (items.stack(rows[i : i + 32]) for i in range(0, len(rows), 32))
        return torch.cat([self.modality.to_x(part.to(self.device)) for part in parts])

    @cached_property
    def statistics_x(self) -> Tensor:
        """x of evenly spaced training files, for PCA and the latent's scale."""
        rows = self.media.rows
        chosen = [rows[i * len(rows) // self.config.statistics_items] for i in range(self.config.statistics_items)]
        return self.x_of(self.media, list(dict.fromkeys(chosen)))  # a small folder has fewer files than that

    def losses(self, batch: dict[str, Any], step: Step) -> Iterator[tuple[str, Losses]]:
        x = self.modality.to_x(batch["media"])
        reconstruction, mean, log_variance = self.networks["vae"](x, step.generator)
        terms = {
            "reconstruction": (reconstruction - x).abs().mean(),
            "kl": 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean(),
        }
        if "adversarial" in self.weights and step.number >= self.config.adversarial_start:
            judge = self.networks["discriminator"]
            yield (
                "discriminator",
                {"discriminator": hinge_discriminator_loss(judge(x), judge(reconstruction.detach()))},
            )
            with frozen(judge):
                terms["adversarial"] = -judge(reconstruction)[0][0].mean()
        yield "vae", terms

    def validate(self, folder: Path) -> dict[str, float]:
        x = self.x_of(self.held_out, self.held_out.rows[:64])
        reconstruction, mean, _ = self.networks["vae"](x, None)
        return {
            "reconstruction": float((reconstruction - x).abs().mean()),
            **self.modality.compare(folder, x, reconstruction),
            "latent_std": float(mean.std()),
        }

    def export(self, folder: Path) -> None:
        """``OUTPUT/vae``, with the latent's scale measured on the training data where the encoder has learnt."""
        if self.config.train_encoder:
            with torch.no_grad():
                latents = torch.cat([posterior(self.vae, part).mode() for part in self.statistics_x.split(32)])
            self.vae.register_to_config(scaling_factor=float(1 / latents.std()))
        self.vae.save_pretrained(folder / "vae")

    def check(self) -> list[str]:
        x = self.statistics_x
        warnings = []
        if float(x.std()) < 1e-3:
            warnings.append(
                f"x has a standard deviation of {float(x.std()):.2g}: are the recordings silent, or the pictures empty?"
            )
        if not np.isfinite(float(x.sum())):
            warnings.append("x is not finite on the training data.")
        return warnings
