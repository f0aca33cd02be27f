"""Features of a set, block by block, each block kept on disk: an interrupted run goes on, several processes share."""

import hashlib
import json
import os
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from latentdiff.evaluation.evidence import Evidence
from latentdiff.evaluation.extractors import Extractor
from latentdiff.evaluation.sets import MediaSet, content_hash

BLOCK = 16
"""Media a file of the cache."""
_FORMAT = 1
"""Of the cache; to be raised when the same weights give other features."""


@torch.no_grad()
def extract(media: MediaSet, extractor: Extractor, cache: Path, state: PartialState) -> Evidence:
    """What an extractor finds in a set.

    Args:
        media: the set.
        extractor: of its kind.
        cache: folder that all processes see; what it holds already is not computed again.
        state: of the processes, each of which computes its share of the blocks.
    """
    cache.mkdir(parents=True, exist_ok=True)
    blocks = [range(first, min(first + BLOCK, len(media))) for first in range(0, len(media), BLOCK)]
    files = [cache / f"{_key(media, block, extractor)}.safetensors" for block in blocks]
    mine = range(state.process_index, len(blocks), state.num_processes)
    for number in tqdm(mine, f"{extractor.name}: {media.name}", unit="block", disable=_quiet(state)):
        if _load(files[number]) is None:
            features, logits = extractor(list(media.read(blocks[number], extractor.sampling_rate)))
            _save(files[number], {"features": features, **{f"logits.{name}": part for name, part in logits.items()}})
    state.wait_for_everyone()
    parts = [part for file in files if (part := _load(file)) is not None]
    whole = {name: torch.cat([part[name] for part in parts]).double() for name in parts[0]}
    text = extractor.embed_text(media.captions).double().cpu() if extractor.reads_text and all(media.captions) else None
    logits = {name.removeprefix("logits."): part for name, part in whole.items() if name != "features"}
    return Evidence(whole["features"], logits, extractor.classes, text, media.truths)


def _quiet(state: PartialState) -> bool | None:
    return None if state.is_main_process else True  # None: shown on a terminal only


def _key(media: MediaSet, block: range, extractor: Extractor) -> str:
    framing = media.framing.model_dump(mode="json") if media.framing else None
    files = [content_hash(media.rows[number].path) for number in block]
    facts = [_FORMAT, extractor.identity, extractor.sampling_rate, media.seconds, framing, files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _load(file: Path) -> dict[str, Tensor] | None:
    """The tensors of a block; None where there is none, or a broken one."""
    try:
        return load_file(file)
    except (OSError, SafetensorError):
        return None


def _save(file: Path, tensors: dict[str, Tensor]) -> None:
    staging = file.with_suffix(f".{os.getpid()}.tmp")
    save_file({name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()}, staging)
    os.replace(staging, file)
