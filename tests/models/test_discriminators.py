"""Discriminators: shapes, losses on verdicts made by hand, gradients on silence."""

import math

import pytest
import torch
from torch import Tensor

from latentdiff.models.discriminators import (
    PatchDiscriminator,
    PeriodDiscriminator,
    ScaleDiscriminator,
    Verdict,
    WaveDiscriminator,
    feature_matching_loss,
    hinge_discriminator_loss,
    lsgan_discriminator_loss,
    lsgan_generator_loss,
)


def verdict(*scores: float, features: tuple[float, ...] = ()) -> Verdict:
    return torch.tensor([scores]), [torch.full((2, 3), value) for value in features]


def parts_of(verdicts: list[Verdict]) -> list[Tensor]:
    return [tensor for score, features in verdicts for tensor in (score, *features)]


@pytest.mark.parametrize("samples", [4096, 4097, 8192])
def test_wave_discriminator_shapes(samples: int) -> None:
    """Five periods of five feature maps, three scales of seven, one score map each."""
    verdicts = WaveDiscriminator(width=1)(torch.randn(2, samples))
    assert [len(features) for _, features in verdicts] == [5] * 5 + [7] * 3
    for period, (score, features) in zip((2, 3, 5, 7, 11), verdicts[:5], strict=True):
        assert score.shape[:2] == (2, 1) and score.shape[-1] == period
        assert features[0].shape[1] == 1 and features[-1].shape[1] == 32
        folded = math.ceil(samples / period)
        assert features[0].shape[2] == math.ceil(folded / 3)
    lengths = [features[0].shape[-1] for _, features in verdicts[5:]]
    assert lengths == [samples, samples // 2 + 1, samples // 4 + 1]


def test_period_discriminator_sees_equal_phases_together() -> None:
    """A change at one phase of the period stays in that column."""
    torch.manual_seed(0)
    judge = PeriodDiscriminator(period=5, width=2)
    wave = torch.randn(1, 1000)
    other = wave.clone()
    other[:, 2::5] += 1.0
    difference = (judge(wave)[0] - judge(other)[0]).abs().amax((0, 1, 2))
    assert (difference > 0).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 6, 8])
def test_any_width_can_be_built(width: int) -> None:
    score, _ = ScaleDiscriminator(pool=1, width=width)(torch.randn(1, 2048))
    assert score.shape[:2] == (1, 1)


def test_width_32_is_hifigans_period_discriminator() -> None:
    """Kong et al. 2020: 32, 128, 512, 1024, 1024 channels."""
    judge = PeriodDiscriminator(period=2, width=32)
    assert [layer.out_channels for layer in judge.layers] == [32, 128, 512, 1024, 1024]


@pytest.mark.parametrize("channels", [1, 3])
def test_patch_discriminator_shapes(channels: int) -> None:
    ((score, features),) = PatchDiscriminator(channels, width=4)(torch.randn(2, channels, 32, 16))
    assert score.shape == (2, 1, 4, 2)
    assert [tuple(f.shape[1:]) for f in features] == [(4, 16, 8), (8, 8, 4), (16, 4, 2)]


def test_losses_on_verdicts_made_by_hand() -> None:
    real = [verdict(1.0, 0.0), verdict(3.0)]
    fake = [verdict(0.5, -0.5), verdict(-2.0)]
    # (0 + 1) / 2 + (0.25 + 0.25) / 2, and 4 + 4
    assert float(lsgan_discriminator_loss(real, fake)) == pytest.approx(0.75 + 8.0)
    # (0.25 + 2.25) / 2, and 9
    assert float(lsgan_generator_loss(fake)) == pytest.approx(1.25 + 9.0)
    # half of: (0 + 1) / 2 + (1.5 + 0.5) / 2, and 0 + 0
    assert float(hinge_discriminator_loss(real, fake)) == pytest.approx(0.75)


def test_losses_are_zero_where_they_should_be() -> None:
    assert float(lsgan_discriminator_loss([verdict(1.0)], [verdict(0.0)])) == 0
    assert float(lsgan_generator_loss([verdict(1.0, 1.0)])) == 0
    assert float(hinge_discriminator_loss([verdict(1.0, 7.0)], [verdict(-1.0, -7.0)])) == 0


def test_feature_matching() -> None:
    real = [verdict(0.0, features=(1.0, 2.0)), verdict(0.0, features=(3.0,))]
    fake = [verdict(9.0, features=(1.5, 2.0)), verdict(9.0, features=(1.0,))]
    assert float(feature_matching_loss(real, real)) == 0
    assert float(feature_matching_loss(real, fake)) == pytest.approx(0.5 + 0.0 + 2.0)


def test_feature_matching_is_zero_on_equal_waves_and_reaches_only_the_made_one() -> None:
    torch.manual_seed(0)
    judge = WaveDiscriminator(width=1)
    wave = torch.randn(1, 2048)
    assert feature_matching_loss(judge(wave), judge(wave.clone())).item() == 0
    real, made = wave.clone().requires_grad_(), torch.randn(1, 2048, requires_grad=True)
    feature_matching_loss(judge(real), judge(made)).backward()
    assert real.grad is None
    assert made.grad is not None and float(made.grad.abs().max()) > 0


def test_verdicts_of_different_judges_are_refused() -> None:
    with pytest.raises(ValueError):
        lsgan_discriminator_loss([verdict(1.0)], [verdict(1.0), verdict(1.0)])


@pytest.mark.parametrize("silent", ["real", "made", "both"])
def test_gradients_are_finite_on_silence(silent: str) -> None:
    torch.manual_seed(0)
    judge = WaveDiscriminator(width=1)
    real = torch.zeros(1, 2048) if silent in ("real", "both") else torch.randn(1, 2048)
    made = torch.zeros(1, 2048) if silent in ("made", "both") else torch.randn(1, 2048)
    made.requires_grad_()
    first, second = judge(real), judge(made)
    loss = lsgan_discriminator_loss(first, second) + feature_matching_loss(first, second)
    (loss + lsgan_generator_loss(second)).backward()
    for tensor in (made, *judge.parameters()):
        assert tensor.grad is not None and torch.isfinite(tensor.grad).all()
    assert all(torch.isfinite(t).all() for t in parts_of(first) + parts_of(second))
