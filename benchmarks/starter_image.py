"""The figures of starter-image's model card: what a judge sees, composition, memory, round trips and speed.

    latentdiff data emoji data/emoji --size 64
    python benchmarks/starter_image.py --data data/emoji --grids latentdiff/starter/image

The judge learnt from real pictures only and shares nothing with the generator. Prints one JSON object; each section
can be run alone with --only.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentdiff import TextToImagePipeline
from latentdiff.config import Framing
from latentdiff.data.folder import Row, read_folder
from latentdiff.data.items import PictureItems, split_rows
from latentdiff.evaluation.judging import load_bundled_picture_judge, rank_names, top_accuracy
from latentdiff.media import image
from latentdiff.models.autoencoder import decode, posterior
from latentdiff.models.judge import PictureJudge
from latentdiff.training.recipes.judge import augment_pictures

GRID_ATTRIBUTES = ("base", "gender", "skin_tone")


class Drawings:
    """The emoji folder: training pictures and held-out combinations."""

    def __init__(self, folder: Path) -> None:
        self.train, self.held_out = (list(read_folder(folder / split)) for split in ("train", "held_out"))
        self.attributes = {row.path: dict(row.attributes) for row in [*self.train, *self.held_out]}

    def pixels(self, rows: list[Row]) -> Tensor:
        """uint8 (B, 3, 64, 64)."""
        return PictureItems(rows, Framing()).stack(rows)

    def of(self, rows: list[Row], attribute: str) -> list[str]:
        return [self.attributes[row.path][attribute] for row in rows]


def draw(pipe: TextToImagePipeline, prompts: list[str], seed: int, **options: Any) -> Tensor:
    """uint8 pictures of the prompts, picture i from the seed ``seed + i``."""
    parts = []
    for start in range(0, len(prompts), 50):
        part = prompts[start : start + 50]
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
        parts.append(pipe(part, generator=generators, output_type="pt", **options).images)
    return image.from_x(torch.cat(parts) * 2 - 1)  # the pipeline's tensors are in [0, 1]


def asked(rows: list[Row], count: int, seed: int) -> tuple[list[Row], list[str]]:
    """``count`` rows without repetition, each with one of its wordings."""
    rng = np.random.default_rng(seed)
    chosen = [rows[i] for i in rng.permutation(len(rows))[:count]]
    return chosen, [row.captions[int(rng.integers(len(row.captions)))] for row in chosen]


def judge_itself(judge: PictureJudge, drawings: Drawings) -> dict[str, float]:
    """Names on freshly augmented training pictures (each name has one picture), attributes on unseen combinations."""
    fresh = augment_pictures(drawings.pixels(drawings.train), torch.Generator().manual_seed(12345))
    names = rank_names(judge, fresh)["name"]
    truth = drawings.of(drawings.train, "name")
    seen = rank_names(judge, drawings.pixels(drawings.held_out))
    return {
        "name_top1_augmented": top_accuracy(names, truth, 1),
        "name_top5_augmented": top_accuracy(names, truth, 5),
        **{f"{a}_held_out": top_accuracy(seen[a], drawings.of(drawings.held_out, a), 1) for a in GRID_ATTRIBUTES},
    }


def generation(pipe: TextToImagePipeline, judge: PictureJudge, drawings: Drawings, count: int) -> dict[str, Any]:
    """Over all names, each asked for once in one of its wordings; and the same pictures under shuffled names."""
    rows, prompts = asked(drawings.train, count, seed=7)
    made = draw(pipe, prompts, seed=1000)
    ranked, truth = rank_names(judge, made)["name"], drawings.of(rows, "name")
    order = np.random.default_rng(0).permutation(len(truth))
    return {
        "top5": top_accuracy(ranked, truth, 5),
        "top1": top_accuracy(ranked, truth, 1),
        "top5_shuffled": top_accuracy(ranked, [truth[i] for i in order], 5),
        "nearest_training_picture": nearness(made, rows, drawings),
    }


def nearness(made: Tensor, rows: list[Row], drawings: Drawings) -> dict[str, float]:
    """PSNR of each picture to the nearest training picture, in dB, and how often that one is what was asked for."""
    train = drawings.pixels(drawings.train).flatten(1).float()
    error = torch.cdist(made.flatten(1).float(), train).square() / train.shape[1]
    best, index = error.min(1)
    psnr = 10 * torch.log10(255.0**2 / best.clamp(min=1e-3))
    low, middle, high = np.percentile(psnr.numpy(), [10, 50, 90])
    paths = [drawings.train[i].path for i in index.tolist()]
    own = sum(path == row.path for path, row in zip(paths, rows, strict=True)) / len(rows)
    return {"psnr_10": float(low), "psnr_50": float(middle), "psnr_90": float(high), "is_the_one_asked_for": own}


def composition(pipe: TextToImagePipeline, judge: PictureJudge, drawings: Drawings) -> dict[str, Any]:
    """Each attribute on the held-out combinations, and on as many seen ones of the same grid."""
    grid = [row for row in drawings.train if "gender" in drawings.attributes[row.path]]
    toned = [row for row in grid if drawings.attributes[row.path].get("skin_tone", "default") != "default"]
    held_rows, held_prompts = asked(drawings.held_out, len(drawings.held_out), seed=8)
    seen_rows, seen_prompts = asked(toned, len(held_rows), seed=9)
    figures: dict[str, Any] = {"combinations": len(held_rows)}
    for name, rows, prompts, seed in (
        ("held_out", held_rows, held_prompts, 20000),
        ("seen", seen_rows, seen_prompts, 30000),
    ):
        made = draw(pipe, prompts, seed)
        ranked = rank_names(judge, made)
        figures[name] = {a: top_accuracy(ranked[a], drawings.of(rows, a), 1) for a in GRID_ATTRIBUTES}
        figures[name]["nearest_training_picture"] = nearness(made, rows, drawings)
    figures["ratio"] = {a: figures["held_out"][a] / figures["seen"][a] for a in GRID_ATTRIBUTES}
    real = drawings.pixels(drawings.held_out)
    figures["real_held_out"] = {"nearest_training_picture": nearness(real, drawings.held_out, drawings)}
    return figures


def guidance(pipe: TextToImagePipeline, judge: PictureJudge, drawings: Drawings) -> dict[str, float]:
    rows, prompts = asked(drawings.train, 150, seed=11)
    truth = drawings.of(rows, "name")
    return {
        str(scale): top_accuracy(rank_names(judge, draw(pipe, prompts, 5000, guidance_scale=scale))["name"], truth, 5)
        for scale in (1.0, 1.5, 2.0, 3.0, 5.0)
    }


@torch.no_grad()
def round_trip(pipe: TextToImagePipeline, drawings: Drawings, grid: Path | None) -> dict[str, float]:
    """Mean PSNR of the VAE on names that its training never saw, and on the held-out combinations."""
    figures = {}
    for name, rows in (("names", split_rows(drawings.train, 0.02)[1]), ("combinations", drawings.held_out)):
        real = drawings.pixels(rows)
        made = image.from_x(decode(pipe.vae, posterior(pipe.vae, image.to_x(real)).mode()))
        error = (made.float() - real.float()).square().flatten(1).mean(1)
        figures[f"psnr_{name}"] = float((10 * torch.log10(255.0**2 / error)).mean())
        if name == "names" and grid is not None:
            pairs = torch.stack([real[:32], made[:32]], dim=1).flatten(0, 1)
            sheet(pairs, grid / "reconstructions.png", columns=16)
    return figures


def sheet(pixels: Tensor, path: Path, columns: int) -> None:
    pictures = image.to_pictures(pixels)
    whole = image.Sheet(len(pictures), columns, pictures[0].size)
    for picture in pictures:
        whole.add(picture)
    image.write_png(path, whole.picture, overwrite=True)


def samples(pipe: TextToImagePipeline, drawings: Drawings, grid: Path) -> dict[str, list[str]]:
    """Two grids: over all names, and held-out combinations; the prompts row by row."""
    _, prompts = asked(drawings.train, 64, seed=31)
    sheet(draw(pipe, prompts, 40000), grid / "samples.png", columns=16)
    _, unseen = asked(drawings.held_out, 32, seed=32)
    sheet(draw(pipe, unseen, 41000), grid / "held-out-samples.png", columns=16)
    return {"samples": prompts, "held_out_samples": unseen}


def speed(pipe: TextToImagePipeline) -> dict[str, float]:
    """One picture at default settings, warm, best and median of 7."""
    times = []
    for _ in range(8):
        start = time.perf_counter()
        pipe("woman astronaut", generator=torch.Generator().manual_seed(0))
        times.append(time.perf_counter() - start)
    return {
        "seconds_best": min(times[1:]),
        "seconds_median": float(np.median(times[1:])),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="what `latentdiff data emoji` wrote")
    parser.add_argument("--judge", help="a judge's folder instead of the bundled one")
    parser.add_argument("--model", default="starter-image")
    parser.add_argument("--count", type=int, default=500, help="generated pictures")
    parser.add_argument("--grids", type=Path, help="folder for grids of reconstructions and samples")
    parser.add_argument("--only", nargs="*", help="judge generation composition guidance round_trip samples speed")
    options = parser.parse_args()
    judge = PictureJudge.from_pretrained(options.judge).eval() if options.judge else load_bundled_picture_judge()
    pipe = TextToImagePipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    drawings = Drawings(options.data)
    sections = {
        "judge": lambda: judge_itself(judge, drawings),
        "generation": lambda: generation(pipe, judge, drawings, options.count),
        "composition": lambda: composition(pipe, judge, drawings),
        "guidance": lambda: guidance(pipe, judge, drawings),
        "round_trip": lambda: round_trip(pipe, drawings, options.grids),
        "speed": lambda: speed(pipe),
    }
    if options.grids:
        sections["samples"] = lambda: samples(pipe, drawings, options.grids)
    report = {name: section() for name, section in sections.items() if not options.only or name in options.only}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
