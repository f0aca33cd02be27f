"""The report of an evaluation: one JSON, and one HTML page that needs nothing else, with sounds and pictures inside."""

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from latentdiff.errors import InputError
from latentdiff.evaluation.run import FORMAT, Found
from latentdiff.evaluation.sets import MediaSet
from latentdiff.media.audio import encode_audio, read_audio, spectrogram_png
from latentdiff.media.files import write_whole

COMPARED = {
    "extractor_hash": "weights of the extractor",
    "sampling_rate": "sampling rate",
    "resampler": "resampler",
    "test_list": "test list",
    "reference_list": "reference",
    "caption_rule": "caption rule",
    "count": "count",
}
"""What must be equal for two figures to be compared, and what it is called."""


def read_report(file: Path) -> dict[str, Any]:
    """A report that was written before.

    Raises:
        InputError: if it is none.
    """
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the report {file}: {error}.") from None
    if not isinstance(report, dict) or report.get("format") != FORMAT or "figures" not in report:
        raise InputError(f"{file} is no report of this version of latentdiff evaluate; run that evaluation again.")
    return report


def write_json(report: dict[str, Any], file: Path) -> None:
    """The report, whole or not at all."""
    write_whole(file, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())


def difference(figure: dict[str, Any], other: dict[str, Any]) -> str:
    """What keeps two figures of one name from being compared; empty if nothing does."""
    return ", ".join(name for key, name in COMPARED.items() if figure[key] != other[key])


def samples_of(found: Found, real: MediaSet, reference: MediaSet, shown: int, output: Path) -> list[dict[str, Any]]:
    """Some of the media, evenly over the set, with the real one each answers and the nearest reference item."""
    made = found.made
    samples = []
    for number in np.unique(np.linspace(0, len(made) - 1, min(shown, len(made))).astype(int)).tolist():
        near, distance = found.nearest[number]
        samples.append(
            {
                "prompt": made.captions[number],
                "file": _relative(made.rows[number].path, output),
                "real": None if found.pairs is None else _relative(real.rows[found.pairs[number]].path, output),
                "nearest": _relative(reference.rows[near].path, output),
                "distance": distance,
            }
        )
    return samples


def _relative(path: Path, output: Path) -> str:
    return path.relative_to(output).as_posix() if path.is_relative_to(output) else path.as_posix()


def _find(name: str, folder: Path) -> Path:
    return folder / name if (folder / name).is_file() else Path(name)


@dataclass
class Page:
    """The HTML page of a report.

    Args:
        report: its plain values.
        folder: the report's own; files inside it are named relative to it.
        against: another report and its folder, shown beside this one.
    """

    report: dict[str, Any]
    folder: Path
    against: tuple[dict[str, Any], Path] | None = None

    def write(self, file: Path) -> None:
        """The page, whole or not at all."""
        # Prompts and file names come from elsewhere, so everything is escaped.
        template = jinja2.Template(Path(__file__).with_name("report.html").read_text(encoding="utf-8"), autoescape=True)
        other = self.against[0]["subject"]["name"] if self.against else ""
        samples = self._samples()
        html = template.render(
            title=f"{self.report['subject']['name']}{f' and {other}' if other else ''}",
            facts=self._facts(),
            rows=[self._row(figure) for figure in self.report["figures"]],
            other=other,
            level=f"{100 * self.report['bootstrap']['level']:g}",
            left_out=self.report["left_out"],
            heading="Sounds" if self.report["data"]["kind"] == "audio" else "Pictures",
            samples=samples,
            columns=max([len(sample["media"]) for sample in samples], default=1),
        )
        write_whole(file, html.encode())

    def _facts(self) -> list[tuple[str, str]]:
        facts = [(name, _words(self.report[name])) for name in ("subject", "made", "data", "reference", "bootstrap")]
        seen: dict[str, str] = {}
        for figure in self.report["figures"]:
            if figure["extractor"]:
                rate = f", {figure['sampling_rate']} Hz, {figure['resampler']}" if figure["sampling_rate"] else ""
                seen[f"extractor {figure['extractor']}"] = f"weights {figure['extractor_hash'][:16]}{rate}"
        return [*facts, *seen.items(), ("latentdiff", self.report["latentdiff"])]

    def _row(self, figure: dict[str, Any]) -> dict[str, Any]:
        floor = figure["floor"]
        row = {
            "name": figure["name"],
            "value": number(figure["value"]),
            "interval": interval(figure),
            "floor": number(floor["value"]) if floor else "",
            "floor_interval": interval(floor) if floor else "",
            "better": {"floor": "near the floor"}.get(figure["better"], figure["better"]),
            "count": figure["count"],
            "extractor": figure["extractor"] or "",
        }
        if self.against:
            same = [
                one
                for one in self.against[0]["figures"]
                if (one["name"], one["extractor"]) == (figure["name"], figure["extractor"])
            ]
            row |= {"other": "", "other_interval": "not measured"}
            if same:
                apart = difference(figure, same[0])
                row |= {"other": number(same[0]["value"])}
                row |= {"other_interval": f"not comparable: {apart} differ" if apart else interval(same[0])}
        return row

    def _samples(self) -> list[dict[str, Any]]:
        theirs = {one["prompt"]: one for one in self.against[0]["samples"]} if self.against else {}
        samples = []
        for sample in self.report["samples"]:
            named = [("generated", _find(sample["file"], self.folder))]
            if self.against and (other := theirs.get(sample["prompt"])):
                named.append((self.against[0]["subject"]["name"], _find(other["file"], self.against[1])))
            if sample["real"]:
                named.append(("real", _find(sample["real"], self.folder)))
            near = f"nearest reference item, at {number(sample['distance'])}"
            named.append((near, _find(sample["nearest"], self.folder)))
            media = [self._media(label, path) for label, path in named if path.is_file()]
            samples.append({"prompt": sample["prompt"] or sample["file"], "media": media})
        return samples

    def _media(self, label: str, path: Path) -> dict[str, str]:
        label = f"{label}: {path.name}"
        if self.report["data"]["kind"] == "audio":
            wave, rate = read_audio(path, duration_s=self.report["subject"].get("seconds"))
            picture = _uri("image/png", spectrogram_png(wave, rate, size=(4.6, 2.0), dpi=90))
            return {"label": label, "picture": picture, "audio": _uri("audio/flac", encode_audio(wave, rate, ".flac"))}
        buffer = io.BytesIO()
        with Image.open(path) as image:
            image.thumbnail((512, 512))
            image.convert("RGBA").save(buffer, "PNG")
        return {"label": label, "picture": _uri("image/png", buffer.getvalue()), "audio": ""}


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _words(facts: dict[str, Any]) -> str:
    """Plain values in one line."""
    parts = []
    for key, value in facts.items():
        if isinstance(value, dict):
            value = "; ".join(f"{name}: {count}" for name, count in value.items())
        elif isinstance(value, list):
            value = " to ".join(str(one) for one in value)
        parts.append(f"{key.replace('_', ' ')}: {value}")
    return ", ".join(part for part in parts)


def number(value: float) -> str:
    """Four digits that matter."""
    return f"{value:.4g}"


def interval(figure: dict[str, Any]) -> str:
    """[low, high]."""
    low, high = figure["interval"]
    return f"[{number(low)}, {number(high)}]"
