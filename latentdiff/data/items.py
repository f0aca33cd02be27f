"""Training items and their order: pure functions of (seed, step), so a resumed run sees the same data.

An item is drawn by a `Draw`: which row, and the seed of everything random about it (its crop, its wording).
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from latentdiff.config import DataConfig, Framing
from latentdiff.data.folder import Row
from latentdiff.data.order import Order
from latentdiff.data.scan import usable_rows
from latentdiff.errors import InputError
from latentdiff.media.audio import audio_seconds, read_audio
from latentdiff.media.image import read_image


class Draw(NamedTuple):
    """One item of one batch."""

    row: int
    seed: int


def split_rows(rows: list[Row], held_out: float) -> tuple[list[Row], list[Row]]:
    """Training and held-out rows, by a hash of the file name: one split for every recipe, seed and order.

    Raises:
        InputError: if there are fewer than two rows.
    """
    if len(rows) < 2:
        raise InputError(f"{len(rows)} captioned file(s) are too few to train on; at least 2 are needed.")
    ranked = sorted(rows, key=lambda row: (hashlib.sha256(row.path.name.encode()).digest(), row.path))
    count = min(max(1, round(held_out * len(rows))), len(rows) - 1)
    return sorted(ranked[count:], key=lambda row: row.path), sorted(ranked[:count], key=lambda row: row.path)


def split_usable(data: DataConfig, captioned: bool = True) -> tuple[list[Row], list[Row]]:
    """The rows to train on and the held-out ones, every file looked at: a part of the folder, or another folder.

    Args:
        data: What is asked of the folder.
        captioned: Each file needs a caption; without, none is read.

    Raises:
        InputError: as `usable_rows`, and if there are too few.
    """
    rows = usable_rows(data, captioned=captioned)
    if isinstance(data.held_out, Path):
        return rows, usable_rows(data, data.held_out, captioned)
    return split_rows(rows, data.held_out)


class GlobalBatches(Sampler[list[Draw]]):
    """The batches of one process: its share of each global batch, from a given step on, without end.

    Every epoch is a permutation seeded by (seed, epoch) and batches run over epoch borders, so that the
    global order does not depend on the number of processes.

    Args:
        items: number of rows.
        batch: global batch size, a multiple of ``micro`` * ``processes``.
        micro: items a yielded batch.
        seed: the run's seed.
        start: first step, 0 for a new run.
        rank: this process.
        processes: number of processes.
    """

    def __init__(self, items: int, batch: int, micro: int, seed: int, start: int, rank: int, processes: int) -> None:
        self.items, self.batch, self.micro, self.seed = items, batch, micro, seed
        self.start, self.rank, self.processes = start, rank, processes
        self._epoch = -1

    def __iter__(self) -> Iterator[list[Draw]]:
        step = self.start
        while True:
            positions = range(step * self.batch, (step + 1) * self.batch)
            for first in range(self.rank * self.micro, self.batch, self.micro * self.processes):
                yield [self._draw(position) for position in positions[first : first + self.micro]]
            step += 1

    def _draw(self, position: int) -> Draw:
        epoch, place = divmod(position, self.items)
        if self._epoch != epoch:
            self._epoch, self._order = epoch, Order(self.items, [self.seed, epoch])
        return Draw(self._order[place], _mix(self.seed, position))


def _mix(seed: int, position: int) -> int:
    return int(np.random.SeedSequence([seed, position]).generate_state(1)[0])


@dataclass(frozen=True)
class MediaItems(Dataset[dict[str, Any]], ABC):
    """Crops of captioned files of one kind.

    An item is ``media`` (a tensor of one shape for all), ``caption`` str, ``row`` int. Which part of a larger
    file it shows is drawn at random; an unreadable file raises, it is never replaced.
    """

    rows: Sequence[Row]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        row = self.rows[draw.row]
        rng = np.random.default_rng(draw.seed)
        media = self.crop(row, float(rng.random()))
        caption = row.captions[int(rng.integers(len(row.captions)))] if row.captions else ""
        return {"media": torch.from_numpy(media), "caption": caption, "row": draw.row}

    def stack(self, rows: Sequence[Row]) -> Tensor:
        """The standard crops of some rows as a batch, for all that must not depend on chance."""
        return torch.from_numpy(np.stack([self.crop(row, self.places(row)[0]) for row in rows]))

    @property
    @abstractmethod
    def facts(self) -> list[Any]:
        """What a crop depends on beside its file, as plain values."""

    @abstractmethod
    def crop(self, row: Row, place: float) -> np.ndarray:
        """One media of a file, from ``place`` (0 to 1) of what there is to choose from."""

    @abstractmethod
    def places(self, row: Row) -> list[float]:
        """The places of the crops that show all of a file that matters, the standard one first."""


@dataclass(frozen=True)
class WaveItems(MediaItems):
    """Crops of recordings, (samples,) float32; a shorter file ends in silence."""

    sampling_rate: int
    samples: int

    @property
    def facts(self) -> list[Any]:
        return [self.sampling_rate, self.samples]

    def crop(self, row: Row, place: float = 0.0) -> np.ndarray:
        """``samples`` samples of a file."""
        seconds = self.samples / self.sampling_rate
        start = place * max(0.0, audio_seconds(row.path) - seconds)
        wave, _ = read_audio(row.path, self.sampling_rate, start, seconds)
        return np.pad(wave[: self.samples], (0, max(0, self.samples - len(wave))))

    def places(self, row: Row) -> list[float]:
        """Evenly spread, so that the windows cover a file but for a quarter window; at most 16."""
        seconds, window = audio_seconds(row.path), self.samples / self.sampling_rate
        count = min(16, max(1, int(np.ceil(seconds / window - 0.25))))
        return [i / max(1, count - 1) for i in range(count)]


@dataclass(frozen=True)
class PictureItems(MediaItems):
    """Pictures as a framing has them, (C, H, W) uint8."""

    framing: Framing

    @property
    def facts(self) -> list[Any]:
        return [self.framing.model_dump(mode="json")]

    def crop(self, row: Row, place: float = 0.5) -> np.ndarray:
        """All of a picture, or the part of its longer side."""
        return read_image(row.path, self.framing, place).transpose(2, 0, 1).copy()

    def places(self, row: Row) -> list[float]:
        """The middle."""
        return [0.5]


SEQUENCES = {"tokens": "length", "tokens_1": "length_1"}
"""Token sequences (N, D) of an item, and under what name their length N stands."""


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Stacks tensors and lists the rest; token sequences are padded with zeros to the longest."""
    batch: dict[str, Any] = {}
    for key in items[0]:
        values = [item[key] for item in items]
        if key in SEQUENCES:
            batch[key] = torch.nn.utils.rnn.pad_sequence(values, batch_first=True)
        else:
            batch[key] = torch.stack(values) if isinstance(values[0], torch.Tensor) else values
    return batch
