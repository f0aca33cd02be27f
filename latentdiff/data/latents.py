"""The latent cache: every training crop through the VAE once, mean and deviation kept, not one sample.

Beside it lie the embeddings of the captions (and of the sounds, by CLAP) where what makes them does not learn.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset

from latentdiff.data.cache import Parts, columns, process, put, wait
from latentdiff.data.items import SEQUENCES, Draw, MediaItems
from latentdiff.data.stored_rows import StoredRows

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]
"""A batch of media -> posterior mean and deviation of z, (B, C, h, w) each."""


class Column:
    """One array of all items, read where it is indexed.

    Args:
        parts: the items.
        name: of the array.
    """

    def __init__(self, parts: Parts, name: str) -> None:
        self._parts, self._name = parts, name

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def shape(self) -> torch.Size:
        """(items, ...)."""
        return torch.Size([len(self), *self[0].shape])

    def __getitem__(self, index: int | slice | Iterable[int]) -> Tensor:
        if isinstance(index, int):
            return self._parts.read(self._name, range(len(self))[index])
        numbers = range(*index.indices(len(self))) if isinstance(index, slice) else map(int, index)
        return torch.stack([self[number] for number in numbers])


@dataclass(frozen=True)
class Prompts:
    """Embeddings by what does not learn, each of them in one of these."""

    captions: Parts | None = None
    """``tokens`` (N, D), ``tokens_1`` (M, E) and ``pooled`` (P,), or some of them, of each different caption; of the
    empty one last."""
    sounds: Parts | None = None
    """``heard`` (P,) of the standard crop of each row."""

    def empty(self) -> dict[str, Tensor]:
        """The same of the empty caption, which guidance needs."""
        return self.captions[len(self.captions) - 1] if self.captions else {}

    def of(self, caption: int, row: int) -> dict[str, Tensor]:
        """Token sequences with their lengths and ``pooled`` (P,), or some of them."""
        told = self.captions[caption] if self.captions else {}
        if self.sounds:
            told["pooled"] = self.sounds.read("heard", row)
        lengths = {length: torch.tensor(len(told[name])) for name, length in SEQUENCES.items() if name in told}
        return told | lengths


@dataclass(frozen=True)
class LatentItems(Dataset[dict[str, Any]]):
    """Cached latents with captions.

    An item is ``mean`` and ``deviation`` (C, h, w), ``caption`` str, ``row`` int (of ``rows``), and what the prompts
    have about them.
    """

    rows: StoredRows
    parts: Parts
    prompts: Prompts = field(default_factory=Prompts)

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        latent = self.parts[draw.row]
        row = int(latent["row"])
        captions = self.rows.captions_of(row)
        caption = int(captions[int(np.random.default_rng(draw.seed).integers(len(captions)))])
        return {**latent, **self.prompts.of(caption, row), "caption": self.rows.caption(caption), "row": row}

    @property
    def owner(self) -> Column:
        """(items,) the row of each item: a long recording gives several windows."""
        return Column(self.parts, "row")

    @property
    def mean(self) -> Column:
        """(items, C, h, w)."""
        return Column(self.parts, "mean")

    @property
    def deviation(self) -> Column:
        """(items, C, h, w)."""
        return Column(self.parts, "deviation")


def encode_rows(
    rows: StoredRows, media: MediaItems, encode: Encode, folder: Path, name: str, device: torch.device
) -> LatentItems:
    """Latents of all crops of all files: those that a folder of a cache has, and what is missing there.

    Args:
        rows: the files.
        media: the same, and how they are cropped.
        encode: the VAE, seen as a function.
        folder: of the cache.
        name: of these rows' files in it.
        device: where ``encode`` runs.
    """
    plan = folder / f"{name}-plan.safetensors"
    if process() == 0 and not plan.is_file():
        crops = [(number, place) for number, row in enumerate(rows) for place in media.places(row)]
        owner, places = (torch.tensor(column) for column in zip(*crops, strict=True))
        put(plan, lambda staging: save_file({"owner": owner, "place": places.double()}, staging))
    wait()
    planned = columns(plan)
    parts = Parts(folder, name, planned["owner"].get_shape()[0])

    @torch.no_grad()
    def encoded(items: range) -> dict[str, Tensor | list[Tensor]]:
        part = slice(items.start, items.stop)
        owner, places = (planned[column][part].tolist() for column in ("owner", "place"))
        batch = np.stack(list(readers.map(lambda row, place: media.crop(rows[row], place), owner, places)))
        mean, deviation = encode(torch.from_numpy(batch).to(device))
        return {"mean": mean, "deviation": deviation, "row": torch.tensor(owner)}

    with ThreadPoolExecutor() as readers:  # decoding runs outside the interpreter lock
        parts.fill(encoded, "latents")
    return LatentItems(rows, parts)


def encode_prompts(rows: StoredRows, folder: Path, embed: Callable[[list[str]], dict[str, Any]]) -> Parts:
    """The embeddings of each different caption of the rows, and of the empty one last, as `encode_rows`."""

    def embedded(items: range) -> dict[str, Any]:
        return embed([rows.caption(number) if number < rows.captions else "" for number in items])

    parts = Parts(folder, "captions", rows.captions + 1)
    parts.fill(embedded, "captions")
    return parts


def encode_sounds(media: MediaItems, folder: Path, embed: Callable[[list[np.ndarray]], Tensor]) -> Parts:
    """The embedding (P,) of the standard crop of each row, as `encode_rows`."""
    parts = Parts(folder, "sounds", len(media.rows))
    parts.fill(lambda items: {"heard": embed([media.crop(media.rows[i], 0.0) for i in items])}, "sounds")
    return parts
