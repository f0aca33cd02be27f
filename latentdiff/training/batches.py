"""The micro-batches of one process: how a step's items are shared out, and the loader that reads them."""

import multiprocessing
import sys
from collections.abc import Generator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from latentdiff.config import TrainConfig
from latentdiff.data.items import GlobalBatches, collate
from latentdiff.errors import InputError
from latentdiff.training.signals import live_with_run


def share_out(train: TrainConfig, processes: int) -> tuple[int, int]:
    """How many items a process takes at once, and how many times a step.

    A step has ``batch_size * gradient_accumulation`` items on however many processes, so that a run may go on
    on more or fewer of them. If they divide ``gradient_accumulation``, each micro-batch and its random draws
    are the same too.

    Raises:
        InputError: the items cannot be shared out equally.
    """
    whole = train.batch_size * train.gradient_accumulation
    each, rest = divmod(whole, processes)
    if rest:
        raise InputError(
            f"train.batch_size * train.gradient_accumulation is {whole}, which {processes} processes cannot share "
            f"equally; take a multiple of {processes}."
        )
    micro = max(size for size in range(1, min(train.batch_size, each) + 1) if each % size == 0)
    return micro, each // micro


def micro_batches(
    items: Dataset[dict[str, Any]], sampler: GlobalBatches, device: torch.device, workers: int, timeout: float
) -> Generator[dict[str, Any], None, None]:
    """What the sampler draws, on the device; close it to end its workers.

    Args:
        items: the data, indexed by `Draw`.
        sampler: the order.
        device: where tensors go.
        workers: data workers; 0 reads in this process.
        timeout: seconds after which a worker that gives nothing is an error.
    """
    loader = DataLoader(
        items,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        timeout=timeout if workers else 0,
        worker_init_fn=live_with_run,
        # Forked workers share the items' memory and are this process's children, so that the kernel ends them with it.
        # (Python 3.14 would have a server start them, whose children stay behind for ever.)
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
    )
    others = multiprocessing.active_children()
    batches = iter(loader)
    started = [child for child in multiprocessing.active_children() if child not in others]
    try:
        for batch in batches:
            yield {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    finally:
        if workers:
            batches._shutdown_workers()  # type: ignore[attr-defined]  # asks them to end, and waits a few seconds
        for child in started:
            child.kill()
