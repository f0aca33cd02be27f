"""What is made from the data once and read from the disk in training: folders of safetensors files, by a key.

Why safetensors and not tar shards: one item out of 4,096 at random is read in about 50 microseconds, out of a tar
with an index in 80, and out of a tar in order in 180 (one core, latents of 8 x 32 x 8). And what can be read in any
order needs no shuffle buffer: a resumed run, on any number of processes, sees exactly what an unbroken one does.
The files are memory-mapped, so that the memory does not grow with them.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from latentdiff.errors import InputError

BATCH = 32
"""Items that are encoded at once. Batches begin at the same items however many processes share the work, since the
sums of another batch may differ in their last bit."""
_MOST, _FILES = 2048, 64
_ENDS = ".ends"


class Cache:
    """A folder of a root, named by a hash of all that its contents depend on; ``key.json`` has it in full.

    Args:
        root: where caches are.
        kind: what it holds.
        key: what that depends on, as plain values; None stands for what cannot be known here, and fits anything.
    """

    def __init__(self, root: Path, kind: str, key: dict[str, Any]) -> None:
        self.root, self.kind = root, kind
        self.key: dict[str, Any] = json.loads(json.dumps(key, default=str))
        known = [path for path in self._others() if self._fits(path)] if None in key.values() else []
        self.folder = known[0] if len(known) == 1 else root / f"{kind}-{_digest(self.key)}"

    def begin(self, make: bool) -> None:
        """Make the folder, or require that it is there.

        Raises:
            InputError: it is not, with the key that is needed and the nearest there is.
        """
        is_there = (self.folder / "key.json").is_file()
        wait()  # until all have looked: a late one must not take for old what another has just made
        if is_there:
            return
        if not make:
            raise InputError(self._refusal())
        if process() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            put(self.folder / "key.json", lambda staging: staging.write_text(json.dumps(self.key, indent=1)))
        wait()

    def _others(self) -> Iterator[Path]:
        return (path.parent for path in sorted(self.root.glob(f"{self.kind}-*/key.json")))

    def _fits(self, folder: Path) -> bool:
        return not self._differences(folder)

    def _differences(self, folder: Path) -> list[str]:
        other = json.loads((folder / "key.json").read_text())
        names = [name for name, value in self.key.items() if value is not None and value != other.get(name)]
        return [f"{name} is {_short(other.get(name))} there and {_short(self.key[name])} here" for name in names]

    def _refusal(self) -> str:
        needed = f"this configuration needs {self.kind} with the key {_digest(self.key)}"
        others = sorted(self._others(), key=lambda folder: len(self._differences(folder)))
        if not others:
            return f"{self.root} holds no {self.kind}, and {needed}: run `latentdiff data encode` with it first."
        nearest = others[0].name.removeprefix(f"{self.kind}-")
        return (
            f"{self.root} holds {self.kind} with the key {nearest}, and {needed}: "
            f"{'; '.join(self._differences(others[0])) or 'and the data folder is not here to choose by'}. "
            "Run `latentdiff data encode` with this configuration, or give the one that they were made with."
        )


class Parts:
    """Items 0 to count - 1, some in each file: NAME-00000.safetensors, NAME-00001.safetensors, ...

    An item is a dictionary of arrays. One whose length differs between items is stored end to end.

    Args:
        folder: of a cache.
        name: of the files.
        count: of items, from which the files' sizes follow.
    """

    def __init__(self, folder: Path, name: str, count: int) -> None:
        self.folder, self.name, self.count = folder, name, count
        self.each = min(_MOST, max(1, -(-count // (_FILES * BATCH))) * BATCH)
        self._open: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        return self.count

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # a worker that is started and not forked maps the files itself

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        names = self._columns(index // self.each)
        return {name: self.read(name, index) for name in names if not name.endswith(_ENDS)}

    def read(self, name: str, index: int) -> Tensor:
        """One array of an item, in single precision if it is of real numbers."""
        number, place = divmod(index, self.each)
        columns = self._columns(number)
        rows = slice(place, place + 1)
        if ends := columns.get(name + _ENDS):
            rows = slice(int(ends[place - 1 : place][0]) if place else 0, int(ends[place : place + 1][0]))
        values = torch.from_numpy(columns[name][rows])
        values = values.float() if values.is_floating_point() else values
        return values if ends else values[0]

    def fill(self, make: Callable[[range], dict[str, Tensor | list[Tensor]]], title: str) -> None:
        """Write what is missing, shared by all processes; returns when all of it is there.

        Args:
            make: the columns of at most `BATCH` items: a tensor with a row for each, or a list of longer and shorter
                ones.
            title: of the progress bar.
        """
        numbers = range(-(-self.count // self.each))
        missing = [number for number in numbers if not self._path(number).is_file()]
        wait()  # until all have looked: the shares follow from what is missing
        mine = missing[process() :: processes()]
        for number in tqdm(mine, title, disable=process() > 0 or not mine):
            last = min(self.count, (number + 1) * self.each)
            starts = range(number * self.each, last, BATCH)
            batches = [make(range(start, min(last, start + BATCH))) for start in starts]
            tensors: dict[str, Tensor] = {}
            for name in batches[0]:
                tensors |= _column(name, [batch[name] for batch in batches])
            put(self._path(number), lambda staging, tensors=tensors: save_file(tensors, staging))  # type: ignore[misc]
        wait()

    def _path(self, number: int) -> Path:
        return self.folder / f"{self.name}-{number:05d}.safetensors"

    def _columns(self, number: int) -> dict[str, Any]:
        if number not in self._open:
            self._open[number] = columns(self._path(number))
        return self._open[number]


def columns(path: Path) -> dict[str, Any]:
    """The tensors of a memory-mapped safetensors file, to be sliced into numpy arrays.

    Raises:
        InputError: it is not there, or broken.
    """
    try:
        file = safe_open(path, "numpy")
        return {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path} cannot be read ({error}): remove it, `latentdiff data encode` makes it anew."
        ) from error


def put(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place and flush it to the disk, then move it there."""
    staging = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        write(staging)
        with staging.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)
    for left in path.parent.glob(f".{path.name}-*"):  # by one that was killed
        left.unlink(missing_ok=True)


def process() -> int:
    """The number of this process of the run."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def processes() -> int:
    """How many there are."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def wait() -> None:
    """Until all processes have come so far."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def _column(name: str, batches: list[Tensor | list[Tensor]]) -> dict[str, Tensor]:
    """A column of a file, in half precision if it is of real numbers."""
    if isinstance(batches[0], list):
        rows = [row for batch in batches for row in batch]
        ends = torch.tensor([len(row) for row in rows]).cumsum(0)
        return {name: _halved(name, torch.cat(rows)), name + _ENDS: ends}
    return {name: _halved(name, torch.cat([batch for batch in batches if isinstance(batch, Tensor)]))}


def _halved(name: str, values: Tensor) -> Tensor:
    if not values.is_floating_point():
        return values.cpu().contiguous()
    half = values.half().cpu().contiguous()
    if not half.isfinite().all():
        worst = float(values.abs().nan_to_num(float("inf")).max())
        raise InputError(f"{name}: values up to {worst:.3g} cannot be kept in half precision; are the weights sound?")
    return half


def _digest(key: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:24]}...{text[-12:]}"
