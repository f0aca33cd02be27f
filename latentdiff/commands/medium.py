"""What the verb ``generate`` does differently for sounds and for pictures; heavy imports when files are written."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentdiff.commands.outputs import plan_grid
from latentdiff.errors import InputError

if TYPE_CHECKING:
    from latentdiff.commands.request import Request
    from latentdiff.media.image import Sheet
    from latentdiff.pipelines.ranking import Ranker

BATCH_CLIPS, BATCH_SECONDS = 8, 80.0
"""Clips taken through the model at once: as many as fit both bounds, so that long clips go one by one."""
BATCH_PICTURES, BATCH_PIXELS = 16, 2**20


class Medium(ABC):
    """Sounds or pictures at the command line, for one request.

    Attributes:
        request: what was asked for.
        suffixes: of the files that can be written; the first is taken where none is said.
        foreign: options that are of the other medium, by their names in `Request`.
        called: the plural.
    """

    suffixes: tuple[str, ...]
    foreign: tuple[str, ...]
    called: str

    def __init__(self, request: Request) -> None:
        self.request = request
        self.refuse_foreign()

    def refuse_foreign(self) -> None:
        """Refuse options of the other medium.

        Raises:
            InputError: naming the first.
        """
        for name in self.foreign:
            if getattr(self.request, name):
                raise InputError(f"--{name} is not for {self.called}, and {self.request.model} makes {self.called}.")

    def plan(self, files: list[Path]) -> None:  # noqa: B027 (sounds need nothing)
        """Choose the names of further files than these, before any work is done."""

    @abstractmethod
    def batch(self, pipe: Any) -> int:
        """How many go through the model at once."""

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """The pipeline's arguments for the size, by their Python names."""

    @abstractmethod
    def media(self, out: Any) -> Sequence[Any]:
        """What the pipeline returned, one by one."""

    @abstractmethod
    def size(self, out: Any, one: Any) -> tuple[str, dict[str, Any]]:
        """How long or large one is, in words and in the recipe's keys."""

    @abstractmethod
    def write(self, file: Path, out: Any, one: Any, recipe: dict[str, Any]) -> None:
        """One file, with its recipe inside."""

    @abstractmethod
    def read(self, file: Path) -> dict[str, Any] | None:
        """The recipe inside a file."""

    def facts(self, out: Any, place: int) -> dict[str, Any]:
        """What the recipe says of one alone, beside its prompt, seed and size."""
        return {}

    def finish(self, recipe: dict[str, Any]) -> Path | None:
        """Write what comes after all files; returns it."""
        return None


class Sounds(Medium):
    """Waveforms: WAV, FLAC or OGG, and on request a spectrogram of each."""

    suffixes, foreign, called = (".wav", ".flac", ".ogg"), ("size",), "sounds"

    def batch(self, pipe: Any) -> int:
        seconds = self.request.duration or BATCH_SECONDS / BATCH_CLIPS
        return max(1, min(BATCH_CLIPS, int(BATCH_SECONDS / seconds)))

    def arguments(self) -> dict[str, Any]:
        arguments: dict[str, Any] = {"audio_length_in_s": self.request.duration}
        if self.request.candidates is not None:
            arguments |= {"candidates": self.request.candidates, "ranker": self.ranker}
        return arguments

    @cached_property
    def ranker(self) -> Ranker | None:
        """The CLAP that was asked for; None is the model's own."""
        from latentdiff.pipelines.ranking import Ranker

        return Ranker.from_pretrained(self.request.ranker) if self.request.ranker is not None else None

    def facts(self, out: Any, place: int) -> dict[str, Any]:
        from latentdiff.pipelines.composition import told

        facts: dict[str, Any] = {}
        if self.request.candidates is not None:
            facts["score"] = round(float(out.scores[place]), 4)
        if out.parts is not None and len(out.parts[place]) > 1:
            facts["made of"] = told(out.parts[place])
        return facts

    def media(self, out: Any) -> Sequence[Any]:
        return list(out.audios)

    def size(self, out: Any, one: Any) -> tuple[str, dict[str, Any]]:
        seconds = len(one) / out.sampling_rate
        asked = self.request.duration
        return f"{seconds:.2f} s", {"duration": asked if asked is not None else seconds}

    def write(self, file: Path, out: Any, one: Any, recipe: dict[str, Any]) -> None:
        from latentdiff.media.audio import save_spectrogram, write_audio

        write_audio(file, one, out.sampling_rate, recipe, overwrite=self.request.replaces)
        if self.request.plot:
            save_spectrogram(file.with_suffix(".png"), one, out.sampling_rate)

    def read(self, file: Path) -> dict[str, Any] | None:
        from latentdiff.media.audio import read_recipe

        return read_recipe(file)


class Pictures(Medium):
    """PNG files, and one of them all where each prompt has several."""

    suffixes, foreign, called = (".png",), ("duration", "plot", "candidates", "ranker"), "pictures"
    sheet: Sheet | None = None
    grid: Path | None = None

    def plan(self, files: list[Path]) -> None:
        request = self.request
        if request.num > 1 and not request.resume:
            self.grid = plan_grid(request.output, request.prompts, request.overwrite, files)

    def batch(self, pipe: Any) -> int:
        width, height = self.request.size or (pipe.config.default_width, pipe.config.default_height)
        return max(1, min(BATCH_PICTURES, BATCH_PIXELS // (width * height)))

    def arguments(self) -> dict[str, Any]:
        width, height = self.request.size or (None, None)
        return {"height": height, "width": width}

    def media(self, out: Any) -> Sequence[Any]:
        return list(out.images)

    def size(self, out: Any, one: Any) -> tuple[str, dict[str, Any]]:
        return f"{one.width} x {one.height}", {"width": one.width, "height": one.height}

    def write(self, file: Path, out: Any, one: Any, recipe: dict[str, Any]) -> None:
        from latentdiff.media.image import Sheet, write_png

        write_png(file, one, recipe, overwrite=self.request.replaces)
        if self.grid is not None:
            prompts, num = len(self.request.prompts), self.request.num
            columns = math.ceil(math.sqrt(num)) if prompts == 1 else num  # several prompts: a row each
            self.sheet = self.sheet or Sheet(prompts * num, columns, one.size)
            self.sheet.add(one)

    def read(self, file: Path) -> dict[str, Any] | None:
        from latentdiff.media.image import read_png_recipe

        return read_png_recipe(file)

    def finish(self, recipe: dict[str, Any]) -> Path | None:
        from latentdiff.media.image import write_png

        if self.grid is not None and self.sheet is not None:
            write_png(self.grid, self.sheet.picture, recipe, overwrite=self.request.overwrite)
        return self.grid


MEDIA: dict[str, type[Medium]] = {"audio": Sounds, "image": Pictures}
