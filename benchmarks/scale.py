"""What one item of a batch costs, and how much memory a run holds, as the cached data set grows.

    python benchmarks/scale.py --items 1000 10000 100000 1000000

Synthetic latents (4 x 4 x 4), captions and rows are written as `latentdiff data encode` writes them, one after the
other so that nothing is in memory; then batches are drawn as training draws them, in an order that is no order on the
disk. Each size is read in a process of its own. Memory is what belongs to the process (RssAnon) and, beside it, what
it has mapped of the files (RssFile), which the system takes back when it needs room.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from latentdiff.data.cache import Parts
from latentdiff.data.folder import Row
from latentdiff.data.items import GlobalBatches, collate
from latentdiff.data.latents import LatentItems
from latentdiff.data.stored_rows import StoredRows, store_rows

BATCH = 32


def write(folder: Path, count: int) -> None:
    """Rows with two captions each, and their latents."""
    rows = [Row(folder / f"{i}.wav", (f"sound number {i}", f"the {i}th sound")) for i in range(count)]
    store_rows(folder / "rows.safetensors", rows, folder)

    def made(items: range) -> dict[str, torch.Tensor | list[torch.Tensor]]:
        z = torch.randn(len(items), 4, 4, 4)
        return {"mean": z, "deviation": z.abs(), "row": torch.tensor(list(items))}

    Parts(folder, "latents", count).fill(made, f"{count} items")


def read(folder: Path, count: int, batches: int, answer: multiprocessing.Queue) -> None:
    """Processor seconds an item of the median batch, those until the first one, and the memory's growth meanwhile."""
    before = memory()
    start = time.process_time()
    items = LatentItems(StoredRows(folder / "rows.safetensors", folder), Parts(folder, "latents", count))
    order = drawn(items)
    next(order)
    first, times = time.process_time() - start, []
    for _ in range(batches):
        start = time.process_time()
        next(order)
        times.append((time.process_time() - start) / BATCH)
    after = memory()
    answer.put((sorted(times)[batches // 2], first, *(after[kind] - before[kind] for kind in before)))


def drawn(items: LatentItems) -> Iterator[dict]:
    """Batches as a process without workers draws them."""
    for batch in GlobalBatches(len(items), BATCH, BATCH, seed=0, start=0, rank=0, processes=1):
        yield collate([items[draw] for draw in batch])


def memory() -> dict[str, float]:
    """Megabytes of this process, its own and of mapped files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {kind: int(lines[kind].split()[0]) / 1e3 for kind in ("RssAnon", "RssFile")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--batches", type=int, default=1000)
    options = parser.parse_args()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["latentdiff.data.latents"])
    for count in options.items:
        with tempfile.TemporaryDirectory() as work:
            writer = context.Process(target=write, args=(Path(work), count))
            writer.start()
            writer.join()
            answer = context.Queue()
            reader = context.Process(target=read, args=(Path(work), count, options.batches, answer))
            reader.start()
            item, first, anonymous, mapped = answer.get()
            reader.join()
        print(
            f"{count:8d} items: {1e6 * item:6.1f} us an item (median of {options.batches} batches of {BATCH}), "
            f"first batch {first:.2f} s, memory +{anonymous:.1f} MB and {mapped:.1f} MB mapped"
        )


if __name__ == "__main__":
    main()
