"""Quality against steps and guidance, its interval and rescaling: the curves of a bundled model's defaults.

    python benchmarks/starter_curves.py starter-audio --data data/soundbank-test
    python benchmarks/starter_curves.py starter-image --data data/emoji

Of the same prompts and seeds at every setting: how often the judge hears (top 1) or sees (top 5) what was asked for,
and the kernel distance (KID) of the judge's features to those of real media; as many other real media have the floor,
which is zero but for chance, so that either may lie below zero. Prompts and seeds are others than those of the model
cards' figures, but for their rows about guidance. Sounds are judged by their mels, before the vocoder, which no setting
here touches.
Points are kept in a JSON file as they come, so that a run that is stopped goes on; the figure beside it is drawn of it.
What a curve does not vary is the model's default when its file began: remove the file to begin from today's.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import torch
from starter_audio import real_waves
from starter_image import Drawings, asked, draw
from torch import Tensor

from latentdiff import TextToAudioPipeline, TextToImagePipeline
from latentdiff.data.folder import read_folder
from latentdiff.data.soundbank import prompts
from latentdiff.diffusion.samplers import make_scheduler, name_of
from latentdiff.evaluation.bootstrap import Bootstrap
from latentdiff.evaluation.distributions import kid
from latentdiff.evaluation.evidence import Case, Evidence
from latentdiff.evaluation.judging import accuracy, load_bundled_judge, load_bundled_picture_judge, top_accuracy
from latentdiff.models.autoencoder import decode

SAMPLERS = ("ddim", "euler", "heun", "dpmsolver++", "dpmsolver++-karras", "unipc")
EVALUATIONS = (5, 10, 20)
SEED = 5000  # of the first medium, and of the floor
SCALES = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
INTERVALS = ((0.0, 1.0), (0.0, 0.5), (0.0, 0.8), (0.2, 1.0), (0.2, 0.8))
CURVES = ("steps", "guidance", "interval", "rescale")
RESCALES = (0.0, 0.3, 0.5, 0.7, 1.0)


class Setting(NamedTuple):
    """One way to sample."""

    sampler: str
    steps: int
    guidance: float
    interval: tuple[float, float]
    rescale: float

    @property
    def evaluations(self) -> int:
        """How often the network is run for the prompt; Heun does it twice a step, but for the last."""
        return 2 * self.steps - 1 if self.sampler == "heun" else self.steps


class Sounds:
    """Prompts of single sources in held-out wordings, and real clips of one source."""

    def __init__(self, model: str, data: Path, count: int) -> None:
        self.pipe, self.judge = TextToAudioPipeline.from_pretrained(model), load_bundled_judge()
        asked_for = prompts(count, seed=11, held_out=True)
        self.texts, self.truth = [text for text, _ in asked_for], [label for _, label in asked_for]
        rows = [row for row in read_folder(data) if len(set(row.labels)) == 1]
        with torch.no_grad():
            parts = real_waves(rows).split(32)
            real = torch.cat([self.judge.features(self.judge.log_mel(wave)[:, :256]) for wave in parts])
        self.real, self.others = real[: 4 * count], real[4 * count :]

    @torch.no_grad()
    def features(self, options: dict[str, Any]) -> Tensor:
        parts = []
        for start in range(0, len(self.texts), 25):
            texts = self.texts[start : start + 25]
            generators = [torch.Generator().manual_seed(SEED + start + i) for i in range(len(texts))]
            z = self.pipe(texts, generator=generators, output_type="latent", **options).audios
            x = decode(self.pipe.vae, z / self.pipe.vae.config.scaling_factor)
            parts.append(self.judge.features(self.pipe.mel.from_x(x)))
        return torch.cat(parts)

    @torch.no_grad()
    def right(self, features: Tensor) -> float:
        labels = self.judge.config.labels
        heard = self.judge.head(features).argmax(1).tolist()
        return accuracy([labels[i] for i in heard], self.truth)


class Pictures:
    """Names in one of their wordings, and a third of the training pictures."""

    def __init__(self, model: str, data: Path, count: int) -> None:
        self.pipe, self.judge = TextToImagePipeline.from_pretrained(model), load_bundled_picture_judge()
        drawings = Drawings(data)
        rows, self.texts = asked(drawings.train, count, seed=11)
        self.truth = drawings.of(rows, "name")
        with torch.no_grad():
            self.real = self.judge.features(drawings.pixels(drawings.train[::3]))
            self.others = self.judge.features(drawings.pixels(drawings.train[1::3]))

    @torch.no_grad()
    def features(self, options: dict[str, Any]) -> Tensor:
        return self.judge.features(draw(self.pipe, self.texts, SEED, **options))

    @torch.no_grad()
    def right(self, features: Tensor) -> float:
        labels = self.judge.config.labels["name"]
        best = self.judge.classify(features)["name"].topk(5, dim=1).indices.tolist()
        return top_accuracy([[labels[i] for i in line] for line in best], self.truth, 5)


def kernel_distance(made: Tensor, real: Tensor) -> float:
    """The package's KID of features (N, D) and (M, D), without its interval."""
    reference = Evidence(real.double())
    return kid(Case(Evidence(made.double()), reference, reference), Bootstrap(replicates=1))[""].value


def floors(media: Sounds | Pictures) -> list[float]:
    """The distance of every group of other real media, drawn by chance, that is as large as the prompts are many."""
    count, others = len(media.texts), len(media.others)
    if others < count:
        raise SystemExit(
            f"{others} further media are too few for a floor of {count}: give more --data, or a lower --count"
        )
    order = torch.randperm(others, generator=torch.Generator().manual_seed(SEED))
    return [kernel_distance(group, media.real) for group in media.others[order].split(count) if len(group) == count]


def settings(default: Setting) -> Iterator[tuple[str, Setting]]:
    """What is tried, by the curve that it belongs to."""
    for sampler in SAMPLERS:
        for evaluations in EVALUATIONS:
            steps = (evaluations + 1) // 2 if sampler == "heun" else evaluations
            yield "steps", default._replace(sampler=sampler, steps=steps)
    for scale in SCALES:
        yield "guidance", default._replace(guidance=scale, interval=(0.0, 1.0))
    for scale in sorted({default.guidance, 4.0}):
        for interval in sorted({*INTERVALS, default.interval}):
            yield "interval", default._replace(guidance=scale, interval=interval)
        for rescale in RESCALES:
            yield "rescale", default._replace(guidance=scale, rescale=rescale)


def measure(media: Sounds | Pictures, default: Setting, file: Path) -> dict[str, Any]:
    """The report, with all points, those that the file has already included."""
    process = media.pipe.scheduler.config
    points: list[dict[str, Any]] = json.loads(file.read_text())["points"] if file.is_file() else []
    report = {
        "model": file.stem,
        "prompts": len(media.texts),
        "default": default._asdict(),
        "floors": floors(media),
        "points": points,
    }
    known = {json.dumps([p[key] for key in Setting._fields]): p for p in points}
    for curve, setting in settings(default):
        key = json.dumps(list(setting))
        if key not in known:
            media.pipe.scheduler = make_scheduler(setting.sampler, process)
            options = {
                "num_inference_steps": setting.steps,
                "guidance_scale": setting.guidance,
                "guidance_interval": setting.interval,
                "guidance_rescale": setting.rescale,
            }
            made = media.features(options)
            known[key] = {
                **setting._asdict(),
                "evaluations": setting.evaluations,
                "right": media.right(made),
                "kid": kernel_distance(made, media.real),
                "curves": [],
            }
            points.append(known[key])
        if curve not in known[key]["curves"]:
            known[key]["curves"].append(curve)
            print({k: v for k, v in known[key].items() if k != "curves"}, flush=True)
        file.write_text(json.dumps(report, indent=1) + "\n")
    return report


def plot(report: dict[str, Any], default: Setting, file: Path) -> None:
    """Two rows, what the judge knows and the kernel distance, with its floor in grey; a column for each curve."""
    points = report["points"]
    figure, axes = plt.subplots(2, 4, figsize=(17, 7), sharey="row", layout="constrained")
    for row, (value, title) in enumerate((("right", "share that the judge knows"), ("kid", "KID to real media"))):
        of = {curve: [p for p in points if curve in p["curves"]] for curve in CURVES}
        for sampler in SAMPLERS:
            line = sorted((p["evaluations"], p[value]) for p in of["steps"] if p["sampler"] == sampler)
            axes[row, 0].plot(*zip(*line, strict=True), marker="o", label=sampler)
        line = sorted((p["guidance"], p[value]) for p in of["guidance"])
        axes[row, 1].plot(*zip(*line, strict=True), marker="o", color="black")
        for scale in sorted({p["guidance"] for p in of["interval"]}):
            heights = {tuple(p["interval"]): p[value] for p in of["interval"] if p["guidance"] == scale}
            names = [f"{low:g}-{high:g}" for low, high in sorted(heights)]
            axes[row, 2].plot(names, [heights[part] for part in sorted(heights)], "o", label=f"guidance {scale:g}")
        for scale in sorted({p["guidance"] for p in of["rescale"]}):
            line = sorted((p["rescale"], p[value]) for p in of["rescale"] if p["guidance"] == scale)
            axes[row, 3].plot(*zip(*line, strict=True), marker="o", label=f"guidance {scale:g}")
        axes[row, 0].set(xticks=EVALUATIONS, ylabel=title)
        if value == "right":
            axes[row, 0].set_ylim(min(0.9, *(p["right"] for p in points)) - 0.02, 1.02)
        else:
            for axis in axes[row]:
                axis.axhspan(min(report["floors"]), max(report["floors"]), color="0.85", zorder=0)
            highest = max(p["kid"] for p in points if p["curves"] != ["steps"])  # Heun's first lie far above
            axes[row, 0].set_ylim(min(*report["floors"], *(p["kid"] for p in points)) - 0.02, 1.1 * highest)
        for axis in (axes[row, 0], *axes[row, 2:]):
            axis.legend(fontsize=8)
    axes[1, 0].set(xlabel="evaluations of the network for the prompt")
    axes[1, 1].set(xlabel="guidance scale")
    axes[1, 2].set(xlabel="guided part of the steps")
    axes[1, 3].set(xlabel="guidance rescaled")
    said = f"{default.sampler}, {default.steps} steps, guidance {default.guidance:g} rescaled by {default.rescale:g}"
    figure.suptitle(f"{file.stem}: {report['prompts']} prompts; what an axis does not vary is {said}")
    figure.savefig(file, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["starter-audio", "starter-image"])
    parser.add_argument("--weights", help="a pipeline's folder instead of the bundled one")
    parser.add_argument("--data", type=Path, required=True, help="renders of another seed, or the emoji's folder")
    parser.add_argument("--count", type=int, default=150, help="prompts")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "curves")
    options = parser.parse_args()
    kind: Any = Sounds if options.model == "starter-audio" else Pictures
    media = kind(options.weights or options.model, options.data, options.count)
    media.pipe.set_progress_bar_config(disable=True)
    own = media.pipe.config
    default = Setting(
        name_of(media.pipe.scheduler),
        own.default_steps,
        own.default_guidance,
        tuple(own.default_guidance_interval or (0.0, 1.0)),
        own.default_guidance_rescale,
    )
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / f"{options.model}.json"
    if file.is_file():
        begun = json.loads(file.read_text())["default"]
        default = Setting(**begun | {"interval": tuple(begun["interval"])})
    plot(measure(media, default, file), default, options.output / f"{options.model}.png")


if __name__ == "__main__":
    main()
