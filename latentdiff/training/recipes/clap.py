"""Stage ``clap``: a joint embedding of sounds and captions by symmetric InfoNCE."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.utils.data import Dataset
from transformers import ClapModel

from latentdiff.config import CLAPRecipe, CLAPTower
from latentdiff.data.items import WaveItems, split_usable
from latentdiff.models.clap import audio_features, embed_audio, embed_text, load_clap, new_clap
from latentdiff.models.text import tokenize
from latentdiff.training.recipe import Losses, Recipe, Step


class TwoTowers(nn.Module):
    """Both embeddings and both temperatures in one forward pass."""

    def __init__(self, clap: ClapModel) -> None:
        super().__init__()
        self.clap = clap

    def forward(self, features: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit embeddings of sounds and captions, (B, P) each, and the scales (2,) of the two directions."""
        scales = torch.stack([self.clap.logit_scale_a, self.clap.logit_scale_t]).exp().clamp(max=100.0)
        return embed_audio(self.clap, features), embed_text(self.clap, ids, mask), scales


class CLAPTraining(Recipe[CLAPRecipe]):
    """Each sound finds its caption among the global batch, and each caption its sound (CLAP, equation 2)."""

    def __init__(self, config: CLAPRecipe, device: torch.device) -> None:
        super().__init__(config, device)
        rows, held_out = split_usable(config.data)
        if isinstance(config.model, CLAPTower):
            captions = [caption for row in rows for caption in row.captions]
            self.clap, self.tokenizer, self.features = new_clap(config.model, captions)
        else:
            self.clap, self.tokenizer, self.features = load_clap(config.model)
        rate = self.features.sampling_rate
        samples = min(int(config.data.seconds * rate), self.features.nb_max_samples)
        self.waves, self.held_out = WaveItems(rows, rate, samples), WaveItems(held_out, rate, samples)
        self.networks: dict[str, nn.Module] = {"clap": TwoTowers(self.clap)}
        self.phases, self.averaged = {"clap": ("clap",)}, ("clap",)
        self.weights = {"contrastive": 1.0}

    @property
    def items(self) -> Dataset[dict[str, Any]]:
        return self.waves

    def embed(self, waves: Tensor, captions: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings of waveforms (B, S) and captions, and the scales."""
        features = audio_features(self.features, list(waves.cpu().numpy())).to(self.device)
        ids, mask = tokenize(self.tokenizer, captions)
        return self.networks["clap"](features, ids.to(self.device), mask.to(self.device))

    def losses(self, batch: dict[str, Any], step: Step) -> Iterator[tuple[str, Losses]]:
        sounds, texts, scales = self.embed(batch["media"], batch["caption"])
        if torch.distributed.is_initialized():  # negatives from every rank, with gradients
            sounds = torch.cat(all_gather(sounds))
            texts = torch.cat(all_gather(texts))
        yield "clap", {"contrastive": info_nce(sounds, texts, scales)}

    def validate(self, folder: Path) -> dict[str, float]:
        rows = self.held_out.rows[:64]
        waves = torch.stack([torch.from_numpy(self.held_out.crop(row)) for row in rows])
        sounds, texts, scales = self.embed(waves, [row.captions[0] for row in rows])
        ranks = (sounds @ texts.T).argsort(1, descending=True)
        truth = torch.arange(len(rows), device=ranks.device)[:, None]
        return {
            "contrastive": float(info_nce(sounds, texts, scales)),
            "recall_at_1": float((ranks[:, :1] == truth).any(1).float().mean()),
            "recall_at_5": float((ranks[:, :5] == truth).any(1).float().mean()),
        }

    def export(self, folder: Path) -> None:
        """``OUTPUT/clap``: model, tokenizer and audio front end in one folder."""
        for part in (self.clap, self.tokenizer, self.features):
            part.save_pretrained(folder / "clap")


def info_nce(sounds: Tensor, texts: Tensor, scales: Tensor) -> Tensor:
    """Mean of the cross-entropies sound -> caption and caption -> sound over products of embeddings (B, P)."""
    products = sounds @ texts.T
    truth = torch.arange(len(products), device=products.device)
    cross_entropy = nn.functional.cross_entropy
    return (cross_entropy(scales[0] * products, truth) + cross_entropy(scales[1] * products.T, truth)) / 2
