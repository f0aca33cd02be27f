"""What the diffusion stage reads instead of media and prompts, in one folder: rows, latents, prompts.

``latents`` of the configuration names a folder that `latentdiff data encode` has filled; without it the training
fills its own. Either way nothing that depends on something else than the configuration says is read.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from latentdiff.config import DataConfig
from latentdiff.data.cache import Cache, process, wait
from latentdiff.data.items import MediaItems, split_usable
from latentdiff.data.latents import Encode, LatentItems, Prompts, encode_prompts, encode_rows, encode_sounds
from latentdiff.data.shards import is_there, list_data, root_of
from latentdiff.data.stored_rows import StoredRows, store_rows

SPLITS = ("train", "held_out")


class Caches:
    """The caches of a run.

    Args:
        data: of the run.
        root: the folder.
        captioned: whether the media need captions.
        make: whether what is missing may be made here.
    """

    def __init__(self, data: DataConfig, root: Path, captioned: bool, make: bool) -> None:
        self.source, self.root, self.captioned, self.make = data, root, captioned, make
        self.data = data_facts(data, captioned, required=make)

    def rows(self) -> list[StoredRows]:
        """Those to train on and the held-out ones; every file is looked at when they are first asked for.

        Raises:
            InputError: as `split_usable`, or `Cache.begin`.
        """
        cache, data = Cache(self.root, "rows", self.data), self.source
        cache.begin(self.make)
        other = data.held_out if isinstance(data.held_out, Path) else data.path
        folders, paths = (root_of(data.path), root_of(other)), [cache.folder / f"{name}.safetensors" for name in SPLITS]
        if process() == 0 and not all(path.is_file() for path in paths):
            for path, rows, folder in zip(paths, split_usable(data, self.captioned), folders, strict=True):
                store_rows(path, rows, folder)
        wait()
        return [StoredRows(path, folder) for path, folder in zip(paths, folders, strict=True)]

    def latents(
        self, split: str, rows: StoredRows, media: MediaItems, encode: Encode, key: dict[str, Any], device: torch.device
    ) -> LatentItems:
        """Latents of the media of a split's rows; ``key`` is what they depend on beside the files and their crops."""
        files = {name: self.data[name] for name in ("files", "held_out")}
        cache = Cache(self.root, "latents", {**files, "media": media.facts, **key})
        cache.begin(self.make)
        return encode_rows(rows, media, encode, cache.folder, split, device)

    def prompts(
        self,
        rows: StoredRows,
        sources: dict[str, str],
        embed: Callable[[list[str]], dict[str, Any]] | None,
        sounds: MediaItems | None,
        hear: Callable[[Any], torch.Tensor],
    ) -> Prompts:
        """Embeddings of the captions of the training rows, and of the sounds if they are to be heard.

        ``sources`` says by name what identifies each part that makes them.
        """
        if embed is None:
            return Prompts()
        cache = Cache(self.root, "prompts", {**self.data, **sources, "sounds": sounds is not None})
        cache.begin(self.make)
        captions = encode_prompts(rows, cache.folder, embed)
        return Prompts(captions, encode_sounds(sounds, cache.folder, hear) if sounds is not None else None)


def data_facts(data: DataConfig, captioned: bool, required: bool) -> dict[str, Any]:
    """The files (names, sizes, times) and what is said of them as hashes.

    Unless it is required, the folder may be elsewhere: then they are None, and all that is asked of a cache is that
    there be no choice.

    Raises:
        InputError: as `list_data`.
    """
    folders = [data.path, *([data.held_out] if isinstance(data.held_out, Path) else [])]
    facts = {"held_out": "folder" if isinstance(data.held_out, Path) else data.held_out}
    if not required and not all(is_there(folder) for folder in folders):
        return {**facts, "files": None, "captions": None}
    files, captions, count = hashlib.sha256(), hashlib.sha256(), 0
    for folder in folders:
        for row in list_data(folder, data.caption_key, captioned).rows:
            about, name = row.path.stat(), row.path.relative_to(root_of(folder)).as_posix()
            files.update(f"{name}\n{about.st_size}\n{about.st_mtime_ns}\n".encode())
            captions.update(f"{name}\n{row.captions}\n{row.labels}\n{row.attributes}\n".encode())
            count += 1
    return {**facts, "files": f"{count}:{files.hexdigest()}", "captions": captions.hexdigest()}
