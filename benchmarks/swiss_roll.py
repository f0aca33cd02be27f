"""Claim C12: a chain of small steps turns noise into the swiss roll, where one step does not.

    python benchmarks/swiss_roll.py

The data of Sohl-Dickstein et al. 2015 (figure 1, T = 40) in the plane, scaled to unit variance. Points are no media, so
this is not the ordinary trainer but `latentdiff.diffusion` alone: a small multi-layer perceptron says eps and its
variance, `VLB` trains it in chains of T cosine steps, and `vlb` bounds the log-likelihood of 2,000 held-out points.
The figure is the gain over the best Gaussian, in bits a point, mean and spread (standard deviation) over the seeds.
Beside it stands how far samples lie from the roll (mean distance to the nearest of 20,000 points), against that of
held-out points; both in units of the data's standard deviation.
"""

import argparse
import math
import statistics

import numpy as np
import torch
from sklearn.datasets import make_swiss_roll
from torch import Tensor, nn

from latentdiff.diffusion.coordinates import reverse_step
from latentdiff.diffusion.likelihood import vlb
from latentdiff.diffusion.objectives import VLB
from latentdiff.diffusion.schedule import DiscreteSchedule

HELD_OUT = 2000


def swiss_roll(points: int, seed: int) -> Tensor:
    """Points (N, 2) with noise of 0.5, centred and scaled by the roll's own constants."""
    roll = make_swiss_roll(points, noise=0.5, random_state=seed)[0][:, [0, 2]]
    return torch.from_numpy((roll - [2.0, 0.0]) / 6.8).float()


class Perceptron(nn.Module):
    """(z_t (B, 2), t (B,)) -> eps and the variance's place in its range (B, 4)."""

    def __init__(self, steps: int, width: int = 128) -> None:
        super().__init__()
        self.time = nn.Embedding(steps, width)
        self.first = nn.Linear(2, width)
        self.rest = nn.Sequential(
            nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 4)
        )

    def forward(self, z_t: Tensor, t: Tensor) -> Tensor:
        return self.rest(self.first(z_t) + self.time(t))


def train(steps: int, seed: int, updates: int) -> tuple[Perceptron, VLB]:
    """A chain of so many steps, on fresh points at every update."""
    torch.manual_seed(seed)
    objective = VLB(DiscreteSchedule.named("cosine", steps), "epsilon", "learned_range", "none")
    network, generator = Perceptron(steps), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    data = swiss_roll(100_000, seed)
    for _ in range(updates):
        z_0 = data[torch.randint(len(data), (512,), generator=generator)]
        eps = torch.randn(z_0.shape, generator=generator)
        loss = objective.loss(network, z_0, objective.draw_times(len(z_0), generator), eps).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rate.step()
    return network.eval(), objective


@torch.no_grad()
def samples(network: Perceptron, objective: VLB, count: int, seed: int) -> Tensor:
    """The whole chain backwards, noise left out at its last step."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, 2, generator=generator)
    for step in reversed(range(len(objective.schedule.betas))):
        t = torch.full((count,), step)
        mean, log_variance = reverse_step(
            objective.schedule, t, network(z, t), z.double(), objective.prediction, objective.variance
        )
        noise = torch.randn(z.shape, generator=generator) if step else 0.0
        z = (mean + (log_variance / 2).exp() * noise).float()
    return z


def distance(points: Tensor) -> float:
    """From the roll, on average."""
    return float(torch.cdist(points, swiss_roll(20_000, seed=99)).min(dim=1).values.mean())


def gaussian_bits(points: Tensor) -> float:
    """-log2 of the best Gaussian's density, a point."""
    covariance = np.cov(points.T.double().numpy())
    return 0.5 * math.log2(np.linalg.det(2 * math.pi * math.e * covariance))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chains", type=int, nargs="+", default=[1, 10, 40])
    parser.add_argument("--updates", type=int, default=4000)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    held_out = swiss_roll(HELD_OUT, seed=1234)
    null = gaussian_bits(held_out)
    print(f"best Gaussian {null:.3f} bits a point; held-out points lie {distance(held_out):.4f} from the roll")
    for steps in arguments.chains:
        gains, distances = [], []
        for seed in range(arguments.seeds):
            network, objective = train(steps, seed, arguments.updates)
            settings = {"prediction": objective.prediction, "variance": objective.variance, "dequantisation": "none"}
            with torch.no_grad():
                bound = vlb(
                    objective.schedule, network, held_out, generator=torch.Generator().manual_seed(seed), **settings
                )
            gains.append(null - bound.nats().mean / math.log(2))
            distances.append(distance(samples(network, objective, HELD_OUT, seed)))
        spread = [statistics.stdev(values) if len(values) > 1 else math.nan for values in (gains, distances)]
        print(
            f"T = {steps:4d}  gain {statistics.mean(gains):7.3f} +- {spread[0]:.3f} bits a point  "
            f"distance {statistics.mean(distances):.4f} +- {spread[1]:.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
