"""Discriminators of HiFi-GAN (Kong et al. 2020, section 2.3) and PatchGAN (Isola et al. 2017); training only.

Each returns, for every sub-discriminator, its score map and the feature maps below it.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.functional import avg_pool1d, leaky_relu, pad
from torch.nn.utils.parametrizations import weight_norm

Verdict = tuple[Tensor, list[Tensor]]
"""Score map and feature maps of one sub-discriminator."""

_SLOPE = 0.1


class PeriodDiscriminator(nn.Module):
    """Sees the waveform (B, S) folded to (B, 1, S / period, period)."""

    def __init__(self, period: int, width: int) -> None:
        super().__init__()
        self.period = period
        channels = [1, width, 4 * width, 16 * width, 32 * width]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (5, 1), (3, 1), padding=(2, 0)))
            for a, b in zip(channels[:-1], channels[1:], strict=True)
        )
        self.layers.append(weight_norm(nn.Conv2d(channels[-1], channels[-1], (5, 1), padding=(2, 0))))
        self.score = weight_norm(nn.Conv2d(channels[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, wave: Tensor) -> Verdict:
        """(B, S) -> score map and features."""
        wave = pad(wave[:, None], (0, -wave.shape[-1] % self.period), mode="reflect")
        return _run(self.layers, self.score, wave.unflatten(-1, (-1, self.period)))


class ScaleDiscriminator(nn.Module):
    """Sees the waveform (B, S) averaged over ``pool`` samples."""

    def __init__(self, pool: int, width: int) -> None:
        super().__init__()
        self.pool = pool
        w = width
        plan = [
            (1, 4 * w, 15, 1, 1),
            (4 * w, 4 * w, 41, 2, 4),
            (4 * w, 8 * w, 41, 2, 16),
            (8 * w, 16 * w, 41, 4, 16),
            (16 * w, 32 * w, 41, 4, 16),
            (32 * w, 32 * w, 41, 1, 16),
            (32 * w, 32 * w, 5, 1, 1),
        ]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv1d(a, b, kernel, stride, padding=kernel // 2, groups=math.gcd(groups, a)))
            for a, b, kernel, stride, groups in plan
        )
        self.score = weight_norm(nn.Conv1d(32 * w, 1, 3, padding=1))

    def forward(self, wave: Tensor) -> Verdict:
        """(B, S) -> score map and features."""
        wave = wave[:, None]
        if self.pool > 1:
            wave = avg_pool1d(wave, 2 * self.pool, self.pool, padding=self.pool)
        return _run(self.layers, self.score, wave)


class WaveDiscriminator(nn.Module):
    """Multi-period (2, 3, 5, 7, 11) and multi-scale (1, 2, 4) discriminators together."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.parts = nn.ModuleList([PeriodDiscriminator(period, width) for period in (2, 3, 5, 7, 11)])
        self.parts.extend(ScaleDiscriminator(pool, width) for pool in (1, 2, 4))

    def forward(self, wave: Tensor) -> list[Verdict]:
        """(B, S) -> one verdict a sub-discriminator."""
        return [part(wave) for part in self.parts]


class PatchDiscriminator(nn.Module):
    """PatchGAN on x (B, C, H, W): one score a patch."""

    def __init__(self, channels: int, width: int = 64, depth: int = 3) -> None:
        super().__init__()
        widths = [channels, *(width * 2**level for level in range(depth))]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, 4, 2, padding=1)) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.score = weight_norm(nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, x: Tensor) -> list[Verdict]:
        """(B, C, H, W) -> a list of one verdict."""
        return [_run(self.layers, self.score, x)]


def _run(layers: nn.ModuleList, score: nn.Module, h: Tensor) -> Verdict:
    features = []
    for layer in layers:
        h = leaky_relu(layer(h), _SLOPE)
        features.append(h)
    return score(h), features


@contextmanager
def frozen(discriminator: nn.Module) -> Iterator[nn.Module]:
    """The discriminator as a fixed function: gradients go through it to the generator, but none stay in it."""
    parameters = [p for p in discriminator.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield discriminator
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def lsgan_discriminator_loss(real: list[Verdict], fake: list[Verdict]) -> Tensor:
    """HiFi-GAN equation 1: (D(x) - 1)^2 + D(G(s))^2, mean over each map, summed over sub-discriminators."""
    pairs = zip(real, fake, strict=True)
    terms = ((r[0] - 1).square().mean() + f[0].square().mean() for r, f in pairs)
    return sum(terms, start=real[0][0].new_zeros(()))


def lsgan_generator_loss(fake: list[Verdict]) -> Tensor:
    """HiFi-GAN equation 2: (D(G(s)) - 1)^2."""
    return sum(((f[0] - 1).square().mean() for f in fake), start=fake[0][0].new_zeros(()))


def hinge_discriminator_loss(real: list[Verdict], fake: list[Verdict]) -> Tensor:
    """max(0, 1 - D(x)) + max(0, 1 + D(G)), halved, as latent diffusion's first stages have it."""
    pairs = zip(real, fake, strict=True)
    terms = (0.5 * ((1 - r[0]).relu().mean() + (1 + f[0]).relu().mean()) for r, f in pairs)
    return sum(terms, start=real[0][0].new_zeros(()))


def feature_matching_loss(real: list[Verdict], fake: list[Verdict]) -> Tensor:
    """HiFi-GAN equation 4: L1 between the feature maps, mean over each map, summed over all."""
    total = real[0][0].new_zeros(())
    for (_, features_real), (_, features_fake) in zip(real, fake, strict=True):
        for a, b in zip(features_real, features_fake, strict=True):
            total = total + (a.detach() - b).abs().mean()
    return total
