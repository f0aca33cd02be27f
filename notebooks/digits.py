"""What notebooks 03 and 04 share: handwritten digits, models of one network and one budget, and how they are judged.

Everything goes through the ordinary trainer, pipelines and metrics of the package; here stands only what is held equal.
"""

import contextlib
import functools
import io
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from claims import FULL, HERE, RUNS
from torch import Tensor

from latentdiff import TextToImagePipeline
from latentdiff.config import Framing, load_config
from latentdiff.data.digits import write_digits
from latentdiff.data.folder import Row, read_folder
from latentdiff.data.items import PictureItems
from latentdiff.diffusion.schedule import DiscreteSchedule
from latentdiff.evaluation.bits import Bound, bits_per_dim
from latentdiff.evaluation.distributions import frechet_distance
from latentdiff.training.loop import Trainer
from latentdiff.training.recipes import RECIPES

SEEDS = (0, 1, 2) if FULL else (0,)
"""Of every training; 0, 1 and 2 for a spread."""
STEPS = 1600 if FULL else 2
"""Of training, each with 32 pictures: 36 times all 1,438."""
SAMPLES = 359 if FULL else 80
"""Pictures that a model makes for a Frechet distance."""
PAPERS = HERE.parent / "configs" / "papers"

NETWORK = {
    "unet.block_out_channels": [16, 32], "unet.layers_per_block": 1, "unet.attention": [False, False],
    "unet.norm_num_groups": 8, "unet.dropout": 0.0,
}  # fmt: skip
"""That of configs/papers/ddpm_digits.yaml (2.5 million parameters) made small (0.16 million) for two cores."""
BUDGET = {
    "train.max_steps": STEPS, "train.batch_size": 32, "train.ema_decay": 0.99, "optimizer.lr": 2e-3,
    "optimizer.schedule": "cosine", "optimizer.warmup_steps": 50, "optimizer.weight_decay": 0.0,
}  # fmt: skip
LOOP = {
    "train.validate_every": STEPS, "train.checkpoint_every": STEPS, "train.overfit_check_steps": 0,
    "train.trackers": [], "train.keep_checkpoints": 1, "train.mixed_precision": "no",
}  # fmt: skip


def data(split: str) -> Path:
    """The folder of ``train`` or ``held_out``, written when it is first asked for."""
    folder = RUNS.parent / "digits"
    if not (folder / "train").is_dir():
        write_digits(folder, seed=0)
    return folder / split


def train(name: str, seed: int, config: Path, **changes: Any) -> Path:
    """A run's folder, trained by the ordinary trainer unless it is there; dots in keys are written as ``__``."""
    output = RUNS / "digits" / f"{name}-{seed}"
    if not any((output / part).is_dir() for part in ("pipeline", "vae", "judge")):
        places = {"data.path": data("train"), "data.held_out": data("held_out"), "output": output, "seed": seed}
        given = {**LOOP, **places, **{key.replace("__", "."): value for key, value in changes.items()}}
        output.mkdir(parents=True, exist_ok=True)
        with (output / "log.txt").open("a") as log, contextlib.redirect_stderr(log), contextlib.redirect_stdout(log):
            settled = load_config(config, [f"{key}={_yaml(value)}" for key, value in given.items()])
            Trainer(settled, RECIPES[settled.stage]).run()
    return output


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool | list) else str(value)


def denoiser(name: str, seed: int, config: str = "ddpm_digits", **changes: Any) -> TextToImagePipeline:
    """A model of the digits' pixels: one of configs/papers with the one network and budget."""
    given = {**NETWORK, **BUDGET, **changes}
    return quiet(train(name, seed, PAPERS / f"{config}.yaml", **given) / "pipeline")


def quiet(folder: Path) -> TextToImagePipeline:
    """A saved pipeline, without progress bars, whose sampler clips z_0 to the range of pixels, as in DDPM's code."""
    with contextlib.redirect_stderr(io.StringIO()):
        pipe = TextToImagePipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    if "clip_sample" in pipe.scheduler.config:
        pipe.scheduler.register_to_config(clip_sample=True)
    return pipe


def autoencoder(name: str, seed: int, latents: int, kl: float) -> Path:
    """The folder of a VAE with so many numbers a picture of 64 pixels; ``kl`` as `latentdiff.evaluation.elbo` says."""
    given = {
        **BUDGET, "data.size": 8, "data.channels": 1, "train.max_steps": 2 * STEPS, "train.validate_every": 2 * STEPS,
        "train.checkpoint_every": 2 * STEPS, "autoencoder.patch_size": 8, "autoencoder.latent_channels": latents,
        "autoencoder.width": 32, "autoencoder.depth": 1, "weights.kl": kl,
    }  # fmt: skip
    return train(name, seed, HERE.parent / "configs" / "image" / "vae.yaml", **given) / "vae"


def student(name: str, seed: int, teacher: Path, method: str) -> TextToImagePipeline:
    """A few-step student of a denoiser, which learns half as long again."""
    given = {
        **BUDGET, "data.size": 8, "data.channels": 1, "teacher": teacher, "method": method, "optimizer.lr": 5e-4,
        "train.max_steps": STEPS // 2, "train.validate_every": STEPS // 2, "train.checkpoint_every": STEPS // 2,
    }  # fmt: skip
    return quiet(train(name, seed, HERE.parent / "configs" / "image" / "consistency.yaml", **given) / "pipeline")


def rows(split: str) -> list[Row]:
    """Those of ``train`` or ``held_out``; a few in a fast run."""
    return read_folder(data(split))[: None if FULL else 100]


@functools.cache
def real(split: str) -> Tensor:
    """Pictures (N, 1, 8, 8), 0 to 255."""
    return PictureItems(rows(split), Framing(size=(8, 8), channels=1)).stack(rows(split))


@torch.no_grad()
def made(pipe: TextToImagePipeline, steps: int, seed: int = 1) -> Tensor:
    """Pictures (N, 1, 8, 8), 0 to 255, of a model."""
    generator = torch.Generator().manual_seed(seed)
    found = pipe(num_images_per_prompt=SAMPLES, num_inference_steps=steps, generator=generator, output_type="pt")
    return (found.images * 255).round().to(torch.uint8)


@functools.cache
def classifier() -> Any:
    """What looks at digits: a perceptron of scikit-learn's with 64 and 32 hidden units, taught by the train split."""
    from sklearn.neural_network import MLPClassifier

    names = [row.labels[0] for row in rows("train")]
    looks = MLPClassifier((64, 32), alpha=1e-3, max_iter=60 if FULL else 3, random_state=0)
    return looks.fit(real("train").flatten(1).numpy() / 255, names)


def features(pictures: Tensor) -> Tensor:
    """(N, 32), the classifier's last hidden layer."""
    h = pictures.flatten(1).double() / 255
    for weight, bias in list(zip(classifier().coefs_, classifier().intercepts_, strict=True))[:-1]:
        h = (h @ torch.from_numpy(weight) + torch.from_numpy(bias)).relu()
    return h


def distance(pictures: Tensor) -> float:
    """Frechet distance to the held-out digits."""
    return frechet_distance(features(pictures), features(real("held_out")))


def floor() -> float:
    """The same of as many real ones of the train split."""
    order = torch.randperm(len(real("train")), generator=torch.Generator().manual_seed(0))
    return distance(real("train")[order[:SAMPLES]])


def certainty(pictures: Tensor) -> float:
    """Mean probability of the class that the classifier finds likeliest."""
    return float(classifier().predict_proba(pictures.flatten(1).numpy() / 255).max(1).mean())


def kept(name: str, measure: Callable[..., Any], *given: Any) -> Any:
    """What a measurement gave, from a file where it was made before: a stopped notebook goes on where it was."""
    path = RUNS / "digits" / "measured" / f"{name}.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(measure(*given)), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def first_time(pipe: TextToImagePipeline) -> int:
    """Where a chain for 17 levels of grey may begin: the noise is a fifth of the distance of two levels."""
    alpha_bar = DiscreteSchedule.from_config(pipe.scheduler.config).alpha_bar
    return int(((1 - alpha_bar) / alpha_bar > 0.025**2).nonzero()[0])


def bits(pipe: TextToImagePipeline, bound: Bound, count: int | None = None) -> tuple[float, float]:
    """Bits a dimension of (so many) held-out digits with 17 levels of grey, and their standard error."""
    chosen = rows("held_out")[:count]
    return tuple(bits_per_dim(pipe, chosen, bound, levels=17, captions=False, batch=len(chosen)).total)


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over the seeds, in words."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def sheet(axes: Any, pictures: Tensor, title: str, side: int = 6) -> None:
    """Some pictures in a square."""
    whole = pictures[: side * side, 0].reshape(side, side, 8, 8).permute(0, 2, 1, 3).reshape(8 * side, 8 * side)
    axes.imshow(whole, cmap="gray", vmin=0, vmax=255)
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()
