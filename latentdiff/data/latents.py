"""The latent cache: every training crop through the VAE once, mean and deviation kept, not one sample.

The file name is a hash of all that the latents depend on, so a stale cache is never read.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from latentdiff.data.folder import Row
from latentdiff.data.items import Draw, MediaItems

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]
"""A batch of media -> posterior mean and deviation of z, (B, C, h, w) each."""


@dataclass(frozen=True)
class LatentItems(Dataset[dict[str, Any]]):
    """Cached latents with captions.

    An item is ``mean`` and ``deviation`` (C, h, w), ``caption`` str, ``row`` int (of ``rows``).
    """

    rows: list[Row]
    owner: Tensor
    """(items,) the row of each item: a long recording gives several windows."""
    mean: Tensor
    deviation: Tensor

    def __len__(self) -> int:
        return len(self.owner)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        row = int(self.owner[draw.row])
        captions = self.rows[row].captions
        caption = captions[int(np.random.default_rng(draw.seed).integers(len(captions)))]
        return {
            "mean": self.mean[draw.row],
            "deviation": self.deviation[draw.row],
            "caption": caption,
            "row": row,
        }


def encode_rows(
    media: MediaItems, encode: Encode, folder: Path, key: dict[str, Any], device: torch.device
) -> LatentItems:
    """Latents of all crops of all files, from the cache in ``folder`` if it holds exactly these.

    Args:
        media: the files and how they are cropped.
        encode: the VAE, seen as a function.
        folder: where the cache lives.
        key: what else the latents depend on (the VAE's weights, the mel).
        device: where ``encode`` runs.
    """
    files = [(row.path.name, row.path.stat().st_size, row.path.stat().st_mtime_ns) for row in media.rows]
    facts = json.dumps([key, *media.facts, files], sort_keys=True, default=str)
    path = folder / f"latents-{hashlib.sha256(facts.encode()).hexdigest()[:16]}.safetensors"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        staging = path.with_suffix(f".{os.getpid()}.tmp")
        save_file(_encode_all(media, encode, device), staging)
        os.replace(staging, path)
    tensors = load_file(path)
    return LatentItems(media.rows, tensors["owner"], tensors["mean"].float(), tensors["deviation"].float())


@torch.no_grad()
def _encode_all(media: MediaItems, encode: Encode, device: torch.device) -> dict[str, Tensor]:
    crops = [(row, place) for row in range(len(media.rows)) for place in media.places(media.rows[row])]
    means, deviations = [], []
    for start in tqdm(range(0, len(crops), 32), desc="encoding"):
        part = crops[start : start + 32]
        batch = np.stack([media.crop(media.rows[row], place) for row, place in part])
        mean, deviation = encode(torch.from_numpy(batch).to(device))
        means.append(mean.half().cpu())
        deviations.append(deviation.half().cpu())
    owner = torch.tensor([row for row, _ in crops])
    return {"owner": owner, "mean": torch.cat(means), "deviation": torch.cat(deviations)}
