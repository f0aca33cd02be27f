"""Media that a pipeline makes for an evaluation: files as a user gets them, kept so that a stopped run goes on."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tqdm import tqdm

from latentdiff import __version__
from latentdiff.errors import InputError
from latentdiff.evaluation.sets import MediaSet, answering, content_hash
from latentdiff.media.audio import write_audio
from latentdiff.media.image import write_png
from latentdiff.pipelines.base import GenerationError

BATCH = 8
"""Media made at once. Fixed, so that a run that goes on makes the same."""


@dataclass(frozen=True)
class Making:
    """How media are made; None leaves a choice to the model.

    Args:
        seed: of the first; each next takes the next.
        steps: denoising steps.
        guidance: guidance scale.
        seconds: of a sound.
        sampler: name of the sampler in use.
        model: what the user called it.
        weights: hash of its files.
    """

    seed: int
    steps: int
    guidance: float
    seconds: float | None
    sampler: str
    model: str
    weights: str

    @property
    def recipe(self) -> dict[str, Any]:
        """What goes into every file beside prompt and seed."""
        return {**asdict(self), "latentdiff": __version__}


def pipeline_hash(folder: Path) -> str:
    """SHA-256 over the weights and configurations of a pipeline's folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".json", ".safetensors"):
            digest.update(f"{path.relative_to(folder).as_posix()}\n{content_hash(path)}\n".encode())
    return digest.hexdigest()


def generate(pipe: Any, real: MediaSet, making: Making, place: Path, state: PartialState) -> MediaSet:
    """One medium for each real one, from its caption.

    Args:
        pipe: one of our pipelines, on its device.
        real: what is asked for.
        making: how.
        place: where a folder for exactly this is made; what it holds already stays.
        state: of the processes, each of which makes its share.

    Returns:
        The set.

    Raises:
        InputError: if the model makes what is not finite.
    """
    facts = json.dumps([making.recipe, real.captions], sort_keys=True)
    folder = place / hashlib.sha256(facts.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    suffix = ".wav" if real.kind == "audio" else ".png"
    files = [folder / f"{number:05d}{suffix}" for number in range(len(real))]
    batches = [range(first, min(first + BATCH, len(real))) for first in range(0, len(real), BATCH)]
    mine = range(state.process_index, len(batches), state.num_processes)
    for number in tqdm(mine, "generating", unit="batch", disable=None if state.is_main_process else True):
        if not all(files[i].is_file() for i in batches[number]):
            _make(pipe, real, making, batches[number], files)
    state.wait_for_everyone()
    rows = answering(files, real, list(range(len(real))))
    return MediaSet("the generated media", real.kind, rows, real.seconds, real.framing)


def _make(pipe: Any, real: MediaSet, making: Making, numbers: range, files: list[Path]) -> None:
    seeds = [making.seed + number for number in numbers]
    options: dict[str, Any] = {"audio_length_in_s": making.seconds} if real.kind == "audio" else {}
    try:
        out = pipe(
            [real.captions[number] for number in numbers],
            num_inference_steps=making.steps,
            guidance_scale=making.guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],  # on the CPU: alike on any device
            **options,
        )
    except GenerationError as error:
        raise InputError(f"the evaluation stopped: {error}") from error
    made = out.audios if real.kind == "audio" else out.images
    for number, seed, one in zip(numbers, seeds, made, strict=True):
        recipe = {"prompt": real.captions[number], **making.recipe, "seed": seed}
        if real.kind == "audio":
            write_audio(files[number], one, out.sampling_rate, recipe, overwrite=True)
        else:
            write_png(files[number], one, recipe, overwrite=True)
