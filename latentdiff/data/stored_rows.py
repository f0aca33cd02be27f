"""Rows on the disk: names and captions of millions of files without an object for each in memory."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from latentdiff.data.cache import columns, put
from latentdiff.data.folder import Row


class StoredRows(Sequence[Row]):
    """The rows that `store_rows` wrote, each made when it is asked for.

    Args:
        path: the file.
        folder: what the files' names are relative to.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self.path, self.folder = path, folder
        self._map()

    def _map(self) -> None:
        self._columns = columns(self.path)
        self._count = self._columns["name.ends"].get_shape()[0]
        self.captions = int(self._columns["text.ends"].get_shape()[0])
        """How many different ones there are."""

    def __getstate__(self) -> tuple[Path, Path]:
        return self.path, self.folder

    def __setstate__(self, state: tuple[Path, Path]) -> None:
        self.path, self.folder = state
        self._map()

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]  # IndexError, and what is counted from the end
        captions = tuple(self.caption(number) for number in self.captions_of(index))
        labels, attributes = json.loads(bytes(self._part("about", index)))
        path = self.folder / bytes(self._part("name", index)).decode()
        return Row(path, captions, tuple(labels), tuple((name, text) for name, text in attributes))

    def captions_of(self, row: int) -> np.ndarray:
        """The numbers of a row's captions."""
        return self._part("said", row)

    def caption(self, number: int) -> str:
        """A caption by its number."""
        return bytes(self._part("text", int(number))).decode()

    def all_captions(self) -> Iterator[str]:
        """Those of all rows, one row after the other."""
        for row in range(len(self)):
            for number in self.captions_of(row):
                yield self.caption(number)

    def _part(self, name: str, index: int) -> np.ndarray:
        ends = self._columns[f"{name}.ends"]
        start, end = int(ends[index - 1]) if index else 0, int(ends[index])
        part: np.ndarray = self._columns[name][start:end] if start < end else np.empty(0, np.uint8)
        return part


def store_rows(path: Path, rows: Sequence[Row], folder: Path) -> None:
    """Write rows of a folder; each different caption once, so that it is also encoded once."""
    numbers: dict[str, int] = {}
    said = [[numbers.setdefault(text, len(numbers)) for text in row.captions] for row in rows]
    names = [row.path.relative_to(folder).as_posix() for row in rows]
    tensors = {**_end_to_end("name", names), **_end_to_end("text", list(numbers))}
    tensors |= _end_to_end("about", [json.dumps([row.labels, row.attributes]) for row in rows])
    tensors["said"] = torch.tensor([number for numbers in said for number in numbers], dtype=torch.int64)
    tensors["said.ends"] = torch.tensor([len(numbers) for numbers in said]).cumsum(0)
    put(path, lambda staging: save_file(tensors, staging))


def _end_to_end(name: str, texts: list[str]) -> dict[str, Tensor]:
    data = [text.encode() for text in texts]
    joined = torch.from_numpy(np.frombuffer(bytearray(b"".join(data)), dtype=np.uint8))
    return {name: joined, f"{name}.ends": torch.tensor([len(part) for part in data], dtype=torch.int64).cumsum(0)}
