"""How fast the diffusion stage trains, in ratios measured side by side in one run.

    python benchmarks/training_speed.py

The same U-Net (starter-audio's), batch and clips, and four loops over them:
  ours      `latentdiff train`: cached latents, checks, logging, guards
  bare      plain PyTorch on the same cached tensors, latents and prompt embeddings in memory: only the arithmetic
  plain     as diffusers' text-to-image script trains: file -> x -> VAE and prompt -> tokens in each step
  loading   our batches alone, with no step on them

They take turns, so that what else the machine does meets them all, and what is counted is processor time, so that it
hardly matters. (All data is in the system's memory: there is no waiting that this would leave out.) Targets: ours at
least 0.95 of bare, at least 3 times plain, loading at least 20 times as fast as the step that it feeds. The VAE
decides about the second: by default an `AutoencoderKL` of AudioLDM's widths with weights at random, which changes
nothing about the time; ``--vae`` takes any folder.
"""

import argparse
import copy
import itertools
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from latentdiff.config import KLAutoencoderConfig, NewTextEncoder, load_config
from latentdiff.data.items import Draw, collate
from latentdiff.media.mel import resolve_mel
from latentdiff.models.autoencoder import build_autoencoder, posterior
from latentdiff.models.text import Conditioning, new_t5, new_tokenizer
from latentdiff.training.loop import Trainer
from latentdiff.training.recipes.diffusion import DiffusionTraining

ROOT = Path(__file__).parents[1]
STARTER = ROOT / "latentdiff" / "starter" / "audio"
RATE, SECONDS = 16000, 4.096


def make_parts(work: Path, clips: int) -> None:
    """Captioned clips, a frozen text encoder of the starter's size, and AudioLDM's VAE."""
    rng, time_axis = np.random.default_rng(0), np.arange(int(SECONDS * RATE)) / RATE
    (work / "clips").mkdir()
    captions = [f"a tone of {110 + 10 * i} hertz in noise, number {i}" for i in range(clips)]
    for i, caption in enumerate(captions):
        wave = 0.3 * np.sin(2 * np.pi * (110 + 10 * i) * time_axis) + 0.01 * rng.standard_normal(len(time_axis))
        soundfile.write(work / "clips" / f"{i:03d}.wav", wave, RATE)
        (work / "clips" / f"{i:03d}.txt").write_text(caption + "\n")
    tokenizer = new_tokenizer(captions, 2048)
    tokenizer.save_pretrained(work / "text")
    new_t5(NewTextEncoder(width=160, layers=3, heads=4), len(tokenizer)).save_pretrained(work / "text")
    mel = resolve_mel("starter-16k-64")
    build_autoencoder(KLAutoencoderConfig(kind="kl"), mel.channels, mel).save_pretrained(work / "vae")


class Rivals:
    """The other loops, each on its own copy of the trainer's network."""

    def __init__(self, trainer: Trainer, batch: int) -> None:
        self.recipe, self.batch, self.max_norm = trainer.recipe, batch, trainer.config.train.max_grad_norm
        assert isinstance(self.recipe, DiffusionTraining)
        self.alphas = self.recipe.scheduler().alphas_cumprod
        self.loading = trainer._batches()
        latents = self.recipe.latents
        self.mean, self.deviation = latents.mean[:], latents.deviation[:]
        self.read = self.recipe.listener.read([latents.rows[int(row)].captions[0] for row in latents.owner[:]])
        self.bare_step = self._step(fused=True)
        self.plain_step = self._step(fused=False)  # as the script constructs AdamW
        stage = self.recipe.first_stage
        items = stage.modality.items(latents.rows, stage.factor)
        draws = [Draw(i % len(latents.rows), i) for i in range(100 * batch)]
        order = [draws[first : first + batch] for first in range(0, len(draws), batch)]
        self.files = itertools.cycle(DataLoader(items, batch_sampler=order, collate_fn=collate))

    def _step(self, fused: bool) -> Callable[[Tensor, Conditioning], None]:
        """One optimisation step on latents and embedded captions."""
        network = copy.deepcopy(self.recipe.networks["denoiser"]).train()
        parameters = [p for p in network.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=fused or None)

        def step(z_0: Tensor, read: Conditioning) -> None:
            eps, t = torch.randn_like(z_0), torch.randint(0, len(self.alphas), (len(z_0),))
            alpha_bar = self.alphas[t].view(-1, 1, 1, 1)
            prediction = network(alpha_bar.sqrt() * z_0 + (1 - alpha_bar).sqrt() * eps, t, read, [])
            torch.nn.functional.mse_loss(prediction, eps).backward()
            torch.nn.utils.clip_grad_norm_(parameters, self.max_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    def bare(self) -> None:
        index = torch.randint(0, len(self.mean), (self.batch,))
        assert self.read.tokens is not None and self.read.mask is not None
        z_0 = self.mean[index] + self.deviation[index] * torch.randn_like(self.mean[index])
        self.bare_step(z_0, Conditioning(self.read.tokens[index], self.read.mask[index]))

    def plain(self) -> None:
        batch, stage = next(self.files), self.recipe.first_stage
        with torch.no_grad():
            z_0 = posterior(stage.vae, stage.modality.to_x(batch["media"])).sample() * stage.vae.config.scaling_factor
        self.plain_step(z_0, self.recipe.listener.read(batch["caption"]))

    def load(self) -> None:
        next(self.loading)


def take_turns(trainer: Trainer, rivals: Rivals, rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds of each step: the trainer's own loop runs, and after every few of its steps the others do."""
    times: dict[str, list[float]] = defaultdict(list)
    step, began = trainer._train_step, [0.0]
    turns = {"bare": (rivals.bare, steps), "plain": (rivals.plain, max(1, steps // 5)), "loading": (rivals.load, steps)}

    def timed(batches: Iterator[dict[str, Any]]) -> dict[str, Tensor]:
        now = time.process_time()  # since the last call: a step and all that the loop does around it
        if trainer.step % (steps + 1):
            times["ours"].append(now - began[0])
        else:  # others have had the machine in between, or it is the first
            for name, (act, count) in turns.items():
                for _ in range(count):
                    start = time.process_time()
                    act()
                    times[name].append(time.process_time() - start)
        began[0] = time.process_time()
        return step(batches)

    trainer._train_step = timed
    trainer._train()
    return {name: values[len(values) // rounds :] for name, values in times.items()}  # the first round warms up


def gemm_rate(size: int = 2048) -> float:
    """Floating-point operations a second of a large float32 matrix product."""
    a, times = torch.randn(size, size), []
    for _ in range(6):
        start = time.process_time()
        a @ a
        times.append(time.process_time() - start)
    return 2 * size**3 / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=6, help="the first one warms up")
    parser.add_argument("--steps", type=int, default=10, help="of ours and bare a round; a fifth of it of plain")
    parser.add_argument("--vae", default=None, help="a folder; by default AudioLDM's sizes, weights at random")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_parts(work, options.clips)
        config = load_config(ROOT / "configs" / "audio" / "diffusion.yaml", [
            f"data.path={work / 'clips'}", f"data.seconds={SECONDS}", f"output={work / 'run'}",
            f"vae={options.vae or work / 'vae'}", f"vocoder={STARTER / 'vocoder'}", f"text_encoder={work / 'text'}",
            f"train.batch_size={options.batch}", f"train.max_steps={options.rounds * (options.steps + 1) + 1}",
            "train.ema_decay=0", "train.mixed_precision=no", "train.log_every=20", "train.trackers=[]",
            "train.checkpoint_every=100000", "train.validate_every=100000",
        ])  # fmt: skip
        trainer = Trainer(config, DiffusionTraining)
        trainer._validate = trainer._save = lambda: None  # both come at the last step
        rivals = Rivals(trainer, options.batch)
        times = take_turns(trainer, rivals, options.rounds, options.steps)
        with FlopCounterMode(display=False) as counter:
            rivals.bare()
        rate = gemm_rate()
    middle = {name: statistics.median(values) for name, values in times.items()}
    for name, seconds in middle.items():
        print(f"{name:8s} {1000 * seconds:9.2f} ms a step of {options.batch}, median of {len(times[name])}")
    print(f"ours against bare      {middle['bare'] / middle['ours']:6.2f}   (target 0.95)")
    print(f"ours against plain     {middle['plain'] / middle['ours']:6.2f}   (target 3)")
    print(f"loading against step   {middle['ours'] / middle['loading']:6.1f}   (target 20)")
    print(
        f"share of the GEMM rate {counter.get_total_flops() / middle['ours'] / rate:6.2f}   ({rate / 1e9:.0f} GFLOP/s)"
    )


if __name__ == "__main__":
    main()
