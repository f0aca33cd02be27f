"""Bits per dimension of a pipeline: against an entropy in closed form, on real digits, and what is refused."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from PIL import Image
from torch import Tensor

from latentdiff import InputError, TextToAudioPipeline, TextToImagePipeline
from latentdiff.data.folder import Row
from latentdiff.diffusion import likelihood
from latentdiff.diffusion.likelihood import BIN
from latentdiff.diffusion.samplers import make_scheduler
from latentdiff.evaluation.bits import ODE, Bound, bits_per_dim
from tests.conftest import Digits

SIDE, COUNT = 4, 200
DIMENSIONS = SIDE * SIDE


class OptimalUNet(UNet2DConditionModel):
    """The denoiser of pictures of a known density that no network can beat, which a function of (z_t, alpha_bar) is."""

    best: Callable[[Tensor, Tensor], Tensor]
    alpha_bar: Callable[[Tensor], Tensor]

    def forward(self, sample: Tensor, timestep: Tensor, **told: Any) -> UNet2DConditionOutput:
        eps = self.best(sample.flatten(1).double(), self.alpha_bar(timestep)[:, None].double())
        return UNet2DConditionOutput(sample=eps.reshape(sample.shape).to(sample))


class Known(NamedTuple):
    """Pictures of a known density, the best denoiser of them, and their entropy in bits a dimension."""

    pipe: Any
    rows: list[Row]
    entropy: float


def known(
    x: Tensor, size: tuple[int, int], best: Callable[[Tensor, Tensor], Tensor], nats: float, folder: Path, small: Path
) -> Known:
    """Of samples x (N, D) in (-1, 1), which become pictures of 256 values, and their differential entropy."""
    assert x.abs().max() < 1
    rows = []
    for number, picture in enumerate(((x + 1) / BIN).round().reshape(-1, *size).numpy().astype(np.uint8)):
        rows.append(Row(folder / f"{number}.png", (f"picture {number}",)))
        Image.fromarray(picture).save(rows[-1].path)
    pipe = TextToImagePipeline.from_pretrained(small)
    unet = OptimalUNet.from_config({**pipe.unet.config, "in_channels": 1, "out_channels": 1})
    scheduler: Any = make_scheduler("dpmsolver++", {"prediction_type": "epsilon"})
    schedule = likelihood.DiscreteSchedule.from_config(scheduler.config)
    unet.best = best
    unet.alpha_bar = lambda t: torch.sigmoid(-schedule.gamma(t.double()))
    parts = {"vae": None, "unet": unet, "scheduler": scheduler}
    sized = TextToImagePipeline(**{**pipe.components, **parts}, default_height=size[0], default_width=size[1])
    dimensions = x.shape[1]
    return Known(sized, rows, (nats - dimensions * math.log(BIN)) / (dimensions * math.log(2)))


@pytest.fixture(scope="module")
def gaussian(tiny_image_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Known:
    """N(0, C) with C full, of samples with exactly that covariance: eps = sigma (alpha_bar C + sigma^2 I)^-1 z_t."""
    generator = torch.Generator().manual_seed(0)
    mix = 0.05 * torch.randn(DIMENSIONS, DIMENSIONS, generator=generator, dtype=torch.float64)
    covariance = mix @ mix.T + 0.1**2 * torch.eye(DIMENSIONS, dtype=torch.float64)
    raw = torch.randn(COUNT, DIMENSIONS, generator=generator, dtype=torch.float64)
    raw = raw - raw.mean(0)
    white = raw @ torch.linalg.inv(torch.linalg.cholesky(raw.T @ raw / COUNT)).T
    values, vectors = torch.linalg.eigh(covariance)

    def best(z_t: Tensor, a: Tensor) -> Tensor:
        return (1 - a).sqrt() * ((z_t @ vectors) / (a * values + 1 - a)) @ vectors.T

    x = white @ torch.linalg.cholesky(covariance).T
    entropy = float(0.5 * torch.logdet(2 * math.pi * math.e * covariance))
    return known(x, (SIDE, SIDE), best, entropy, tmp_path_factory.mktemp("gaussian"), tiny_image_pipeline)


@pytest.fixture(scope="module")
def mixture(tiny_image_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Known:
    """Three peaks in the plane, as pictures of two pixels; the samples are spread evenly over them (Sobol)."""
    centres = torch.tensor([[0.4, 0.1], [-0.3, 0.3], [0.0, -0.4]], dtype=torch.float64)
    shares, width = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), 0.1
    uniform = torch.quasirandom.SobolEngine(2, scramble=True, seed=0).draw(COUNT, dtype=torch.float64)
    peak = torch.repeat_interleave(torch.arange(3), (shares * COUNT).long())
    peak = peak[torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))]
    x = centres[peak] + width * math.sqrt(2) * torch.erfinv(2 * uniform.clamp(1e-4, 1 - 1e-4) - 1)

    def best(z_t: Tensor, a: Tensor) -> Tensor:
        offsets = z_t[:, None] - a[..., None].sqrt() * centres
        variance = a * width**2 + 1 - a
        share = torch.softmax(shares.log() - offsets.square().sum(-1) / (2 * variance), dim=1)
        return (1 - a).sqrt() * (share[..., None] * offsets).sum(1) / variance

    axis = torch.linspace(-1, 1, 801, dtype=torch.float64)
    density = (torch.cartesian_prod(axis, axis)[:, None] - centres).square().sum(-1) / (2 * width**2)
    log_p = torch.logsumexp(shares.log() - density, dim=1) - math.log(2 * math.pi * width**2)
    entropy = -float((log_p.exp() * log_p).sum() * (axis[1] - axis[0]) ** 2)
    return known(x, (1, 2), best, entropy, tmp_path_factory.mktemp("mixture"), tiny_image_pipeline)


@pytest.mark.parametrize("method", [Bound(draws=100), ODE(steps=20, probes=4)], ids=["bound", "ode"])
def test_a_gaussians_bits_are_its_entropy(method: Bound | ODE, gaussian: Known) -> None:
    found = bits_per_dim(gaussian.pipe, gaussian.rows, method)
    assert found.media == COUNT and found.dimensions == DIMENSIONS and found.left_out is None
    assert found.total.mean == pytest.approx(sum(term.mean for term in found.terms.values()))
    assert found.total.mean == pytest.approx(gaussian.entropy, rel=0.01)


def test_a_mixtures_bits_are_its_entropy(mixture: Known) -> None:
    """By the ODE. The bound of two dimensions would need thousands of pictures: tests/diffusion has it."""
    found = bits_per_dim(mixture.pipe, mixture.rows, ODE(steps=20, probes=4))
    assert found.media == COUNT and found.dimensions == 2
    assert found.total.mean == pytest.approx(mixture.entropy, rel=0.01)


def test_a_chain_may_begin_later(gaussian: Known) -> None:
    """Of 8-bit pixels the noise of time 10 hides the last bit, and the bound is looser; of coarse ones it is not."""
    ends = [bits_per_dim(gaussian.pipe, gaussian.rows, Bound(first=first, draws=100)).total.mean for first in (0, 10)]
    assert gaussian.entropy * 0.99 < ends[0] < ends[1]


def test_a_wrong_weight_shows(gaussian: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    kl, divergence = likelihood.gaussian_kl, likelihood._divergence
    monkeypatch.setattr(likelihood, "gaussian_kl", lambda *given: 1.1 * kl(*given))
    monkeypatch.setattr(likelihood, "_divergence", lambda *given: 1.1 * divergence(*given))
    for method in (Bound(draws=100), ODE(steps=20, probes=4)):
        assert abs(bits_per_dim(gaussian.pipe, gaussian.rows, method).total.mean / gaussian.entropy - 1) > 0.02


def test_more_steps_tighten_the_bound_of_a_trained_model(digits: Digits) -> None:
    """VDM's claim: with one network, ever finer chains between the same two ends."""
    pipe = TextToImagePipeline.from_pretrained(digits.pipeline)
    chains = [Bound(steps, draws=12, variance="fixed_small") for steps in (2, 4, 16, 1000)]
    found = [bits_per_dim(pipe, digits.held_out, chain, levels=17).total for chain in chains]
    for coarse, fine in zip(found, found[1:], strict=False):
        assert coarse.mean - fine.mean > 3 * math.hypot(coarse.standard_error, fine.standard_error), found
    assert 1.0 < found[-1].mean < math.log2(17)


def test_the_right_caption_makes_a_digit_likelier_and_its_estimate_is_sound(digits: Digits) -> None:
    pipe = TextToImagePipeline.from_pretrained(digits.pipeline)
    every = bits_per_dim(pipe, digits.held_out, Bound(20, draws=None), levels=17)
    some = bits_per_dim(pipe, digits.held_out, Bound(20, draws=6), levels=17)
    error = math.hypot(every.terms["L_t-1"].standard_error, some.terms["L_t-1"].standard_error)
    assert abs(every.total.mean - some.total.mean) < 4 * error and every.terms["L_T"] == some.terms["L_T"]
    assert bits_per_dim(pipe, digits.held_out, Bound(20, draws=6), levels=17) == some
    deaf = bits_per_dim(pipe, digits.held_out, Bound(20, draws=6), levels=17, captions=False)
    assert deaf.total.mean > some.total.mean
    assert some.label == "bits/dim of pixels with 17 levels, discretised decoder, upper bound of 20 steps"


def test_of_latents_it_says_what_is_left_out(tiny_image_pipeline: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    soundfile.write(tmp_path / "hum.wav", np.sin(np.arange(16000) / 20).astype(np.float32), 16000)
    kinds: list[tuple[Any, str, int]] = [
        (TextToImagePipeline.from_pretrained(tiny_image_pipeline), "red.png", 4 * 4 * 4),
        (TextToAudioPipeline.from_pretrained(tiny_pipeline), "hum.wav", 4 * 7 * 8),
    ]
    for pipe, name, dimensions in kinds:
        for method, terms in ((Bound(10), ["L_T", "L_t-1", "L_0"]), (ODE(2), ["prior", "divergence", "scale"])):
            found = bits_per_dim(pipe, [Row(tmp_path / name, ("a thing",))], method)
            assert found.space == "latents" and found.dimensions == dimensions and found.dequantisation == "none"
            assert "in latent space" in found.label and "decoder" in str(found.left_out)
            assert set(found.terms) == set(terms) and math.isfinite(found.total.mean)


def test_what_has_no_likelihood_is_refused(digits: Digits) -> None:
    pipe = TextToImagePipeline.from_pretrained(digits.pipeline)
    rows = digits.held_out
    with pytest.raises(InputError, match="no held-out media"):
        bits_per_dim(pipe, [])
    with pytest.raises(InputError, match="other values than 5 evenly spread"):
        bits_per_dim(pipe, rows, levels=5)
    with pytest.raises(InputError, match="levels is 300"):
        bits_per_dim(pipe, rows, levels=300)
    with pytest.raises(InputError, match="bound of 1001 steps cannot be: the model has 1 to 1000"):
        bits_per_dim(pipe, rows, Bound(1001))
    with pytest.raises(InputError, match="bound from time 1000 on cannot be: the model's times are 0 to 999"):
        bits_per_dim(pipe, rows, Bound(first=1000))
    pipe.scheduler = make_scheduler("lcm", {**pipe.scheduler.config, "timestep_scaling": 10.0})
    with pytest.raises(InputError, match="few-step student has no likelihood"):
        bits_per_dim(pipe, rows)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(InputError, match="one of flow kind"):
        bits_per_dim(pipe, rows)
