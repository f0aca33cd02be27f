"""Check a folder of captioned media before training: every caption and every sample or pixel of every file.

A fault leaves the file out; a note is worth knowing and leaves it in. Nothing is repaired or replaced.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from latentdiff.config import DataConfig, ImageData
from latentdiff.data.folder import Fault, Row
from latentdiff.data.shards import list_data
from latentdiff.errors import InputError
from latentdiff.media.audio import AudioFacts, inspect_audio
from latentdiff.media.files import BrokenMediaError
from latentdiff.media.image import ImageFacts, inspect_image

logger = logging.getLogger(__name__)

SILENT_PEAK = 1e-3  # -60 dB of full scale
CLIPPED_SHARE = 1e-3  # of all samples at full scale; a normalised clip has a handful
INSPECT: dict[str, Callable[[Path], AudioFacts | ImageFacts]] = {"audio": inspect_audio, "image": inspect_image}


@dataclass
class ScanReport:
    """What a folder holds. `rows` are the files to train on; each fault keeps one file or caption out.

    Args:
        folder: The folder scanned.
        captions_from: Where the captions come from, metadata column or .txt files.
        kind: "audio" or "image".
        rows: The files without fault, with their captions.
        seconds: Total duration of those files.
        sampling_rates: Sampling rate in Hz to number of files.
        channels: Channel count to number of files.
        sizes: "width x height" of pictures to number of files.
        modes: Pillow's mode of pictures to number of files.
        faults: What is wrong.
        notes: What is unusual in the files kept: silence, clipping, many channels, many frames.
    """

    folder: Path
    captions_from: str
    kind: str = "audio"
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    sampling_rates: Counter[int] = field(default_factory=Counter)
    channels: Counter[int] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)
    notes: list[Fault] = field(default_factory=list)

    @property
    def bad_fraction(self) -> float:
        """Share of faults among all files and faults."""
        return len(self.faults) / max(1, len(self.rows) + len(self.faults))

    def raise_if_bad(self, max_bad_fraction: float) -> None:
        """Refuse a folder with too many faults, or with nothing left to train on.

        Args:
            max_bad_fraction: Largest `bad_fraction` that is accepted; 0 accepts no fault at all.

        Raises:
            InputError: The share is larger, or no file is usable.
        """
        if self.rows and self.bad_fraction <= max_bad_fraction:
            return
        kinds = ", ".join(f"{reason}: {count}" for reason, count in _counts(self.faults))
        raise InputError(
            f"{self.folder} has {len(self.faults)} faults and {len(self.rows)} usable files; the share of "
            f"faults accepted is {max_bad_fraction:g} ({kinds}). The first: {self.faults[0]}."
        )

    def render(self) -> str:
        """Return the report as plain text: the figures, then faults and notes by reason, one a line."""
        captions = [caption for row in self.rows for caption in row.captions]
        words = [len(caption.split()) for caption in captions]
        lines = [
            f"Folder           {self.folder}",
            f"Captions from    {self.captions_from}",
            f"Usable files     {len(self.rows)}",
        ]
        if self.kind == "image":
            most = ", ".join(f"{size}: {count}" for size, count in self.sizes.most_common(8)) or "-"
            others = f", {len(self.sizes) - 8} other sizes" if len(self.sizes) > 8 else ""
            lines += [f"Pixels           {most}{others}", f"Modes            {_histogram(self.modes)}"]
        else:
            lines += [
                f"Duration         {self.seconds:.1f} s in all",
                f"Sampling rates   {_histogram(self.sampling_rates, ' Hz')}",
                f"Channels         {_histogram(self.channels)}",
            ]
        if captions:
            length = f"{min(words)} to {max(words)} words, mean {sum(words) / len(words):.1f}"
            lines.append(f"Captions         {len(captions)}, {len(set(captions))} different, {length}")
        lines += self._section(f"Faults: {len(self.faults)}, left out", self.faults)
        lines += self._section(f"Notes: {len(self.notes)}, kept", self.notes)
        return "\n".join(lines) + "\n"

    def _section(self, title: str, findings: list[Fault]) -> list[str]:
        lines = ["", title]
        for reason, count in _counts(findings):
            lines.append(f"  {reason}: {count}")
            for finding in (finding for finding in findings if finding.reason == reason):
                inside = finding.path != self.folder and finding.path.is_relative_to(self.folder)
                name = str(finding.path.relative_to(self.folder) if inside else finding.path)
                row = f"row {finding.row}" if finding.row is not None else ""
                lines.append(f"    {name:30s} {row:8s} {finding.detail}".rstrip())
        return lines


def scan_folder(folder: str | Path, caption_key: str | None = None, captioned: bool = True) -> ScanReport:
    """Read all captions and decode all files of a folder of sounds or of pictures.

    Args:
        folder: Folder as `read_folder` takes it.
        caption_key: Metadata column with the caption; None takes "text", else "caption".
        captioned: Each file needs a caption; without, none is read, as `list_folder` says.

    Raises:
        InputError: There is no such folder; every other fault is in the report.
    """
    listing = list_data(folder, caption_key, captioned)
    report = ScanReport(Path(folder), listing.captions_from, listing.kind)
    report.faults = listing.faults + listing.unlisted
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding runs outside the interpreter lock
        verdicts = pool.map(partial(_inspect, INSPECT[listing.kind]), (row.path for row in listing.rows))
        shown = tqdm(verdicts, "scan", len(listing.rows), unit="file", disable=None)  # only on a terminal
        for row, verdict in zip(listing.rows, shown, strict=True):
            line = listing.lines.get(row.path)
            if isinstance(verdict, BrokenMediaError):
                report.faults.append(Fault(row.path, line, verdict.reason, verdict.detail))
                continue
            report.rows.append(row)
            report.notes += [Fault(row.path, line, *note) for note in _notes(verdict)]
            if isinstance(verdict, ImageFacts):
                report.sizes[f"{verdict.width} x {verdict.height}"] += 1
                report.modes[verdict.mode] += 1
            else:
                report.seconds += verdict.seconds
                report.sampling_rates[verdict.sampling_rate] += 1
                report.channels[verdict.channels] += 1
    return report


def usable_rows(data: DataConfig, folder: Path | None = None, captioned: bool = True) -> list[Row]:
    """The rows to train on, after every caption and every file has been looked at.

    What is wrong is logged by file, row and reason. Files that the metadata does not name are no fault here:
    a list may be a part of a folder.

    Args:
        data: What is asked of the folder.
        folder: Another folder than ``data.path``, of which the same is asked.
        captioned: Each file needs a caption; without, none is read, as `list_folder` says.

    Raises:
        InputError: The folder holds the other kind of media, more than ``data.max_bad_fraction`` of it is faulty,
            or nothing is usable.
    """
    folder = folder or data.path
    report = scan_folder(folder, data.caption_key, captioned)
    kind = "image" if isinstance(data, ImageData) else "audio"
    if report.rows and report.kind != kind:
        raise InputError(f"{folder} holds {report.kind} files, and data.kind is {kind}; name another folder or kind.")
    unlisted = list_data(folder, data.caption_key, captioned).unlisted
    report.faults = [fault for fault in report.faults if fault not in unlisted]
    for fault in report.faults:
        logger.warning("left out of training: %s", fault)
    report.raise_if_bad(data.max_bad_fraction)
    return report.rows


def _inspect(
    inspect: Callable[[Path], AudioFacts | ImageFacts], path: Path
) -> AudioFacts | ImageFacts | BrokenMediaError:
    try:
        return inspect(path)
    except BrokenMediaError as error:
        return error


def _notes(facts: AudioFacts | ImageFacts) -> Iterator[tuple[str, str]]:
    if isinstance(facts, ImageFacts):
        if facts.frames > 1:
            yield "several frames", f"{facts.frames} of them; the first is used"
        if facts.mode.startswith("I;16"):
            yield "16 bits", "rounded to 8"
        if facts.mode == "CMYK":
            yield "for print", "CMYK, converted to RGB without a colour profile"
        return
    if facts.peak < SILENT_PEAK:
        yield "silent", f"no sample above {facts.peak:.2g} of full scale"
    if facts.clipped > CLIPPED_SHARE:
        yield "clipped", f"{100 * facts.clipped:.1f} % of the samples at full scale"
    if facts.channels > 2:
        yield "mixed down", f"{facts.channels} channels, read as their mean"


def _counts(findings: list[Fault]) -> list[tuple[str, int]]:
    return Counter(finding.reason for finding in findings).most_common()


def _histogram(counts: Counter[Any], unit: str = "") -> str:
    return ", ".join(f"{value}{unit}: {count}" for value, count in sorted(counts.items())) or "-"
