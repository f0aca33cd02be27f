"""The denoiser: which conditioning it hears, and that all of it can learn."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latentdiff.config import PlainUNetConfig, TwoStreamUNetConfig, UNetConfig
from latentdiff.errors import InputError
from latentdiff.models.denoiser import FourierUNet, new_denoiser, predict
from latentdiff.models.text import Conditioning

SIZES = UNetConfig(block_out_channels=(8, 16), attention=(False, True), attention_heads=2, norm_num_groups=4)
CHANNELS, WIDTH, POOLED = 4, 12, 6
KINDS = ["tokens", "pooled", "both"]


def build(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return new_denoiser(
        SIZES,
        CHANNELS,
        tokens_width=WIDTH if kind != "pooled" else None,
        pooled_width=POOLED if kind != "tokens" else None,
    )


def tau(kind: str, seed: int = 0, length: int = 5) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(2, length, WIDTH, generator=generator)
    pooled = torch.nn.functional.normalize(torch.randn(2, POOLED, generator=generator), dim=-1)
    return Conditioning(
        tokens=tokens if kind != "pooled" else None,
        mask=torch.ones(2, length, dtype=torch.int64) if kind != "pooled" else None,
        pooled=pooled if kind != "tokens" else None,
    )


def latents() -> tuple[Tensor, Tensor]:
    return torch.randn(2, CHANNELS, 8, 4, generator=torch.Generator().manual_seed(7)), torch.tensor([10, 900])


@pytest.mark.parametrize("kind", KINDS)
def test_every_conditioning_is_heard(kind: str) -> None:
    unet = build(kind).eval()
    z_t, t = latents()
    with torch.no_grad():
        first = unet(z_t, t, **tau(kind).unet_arguments()).sample
        again = unet(z_t, t, **tau(kind).unet_arguments()).sample
        other = unet(z_t, t, **tau(kind, seed=1).unet_arguments()).sample
    assert first.shape == z_t.shape
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient(kind: str) -> None:
    unet = build(kind)
    z_t, t = latents()
    condition = tau(kind)
    for part in (condition.tokens, condition.pooled):
        if part is not None:
            part.requires_grad_()
    unet(z_t, t, **condition.unet_arguments()).sample.square().sum().backward()
    for name, parameter in unet.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert float(parameter.grad.abs().max()) > 0, name
    for part in (condition.tokens, condition.pooled):  # so that a text encoder can learn too
        assert part is None or (part.grad is not None and float(part.grad.abs().max()) > 0)


@pytest.mark.parametrize("last", [False, True])
def test_both_streams_are_heard_each_in_its_place(last: bool) -> None:
    sizes = TwoStreamUNetConfig(
        kind="two_stream", block_out_channels=(8, 16), attention=(False, True), layers_per_block=1, attention_heads=2,
        last_self_attention=last, norm_num_groups=4,
    )  # fmt: skip
    torch.manual_seed(0)
    unet = new_denoiser(sizes, CHANNELS, tokens_width=(6, WIDTH), pooled_width=None).eval()
    first, second = (torch.randn(2, 3, width, requires_grad=True) for width in (6, WIDTH))
    z_t, t = latents()
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    predict(unet, z_t, t, Conditioning(first, None, None, second, mask)).square().sum().backward()
    assert first.grad is not None and second.grad is not None
    assert first.grad.abs().amax((0, 2)).min() > 0 and second.grad[1].abs().amax(1).min() > 0
    assert second.grad[0, 2].abs().max() == 0 < second.grad[0, 1].abs().max()
    assert all(parameter.grad is not None for parameter in unet.parameters())


def test_masked_tokens_are_not_heard() -> None:
    unet = build("tokens").eval()
    z_t, t = latents()
    short = tau("tokens", length=3)
    assert short.tokens is not None and short.mask is not None
    junk = torch.full((2, 4, WIDTH), 50.0)
    padded = Conditioning(
        tokens=torch.cat([short.tokens, junk], 1),
        mask=torch.cat([short.mask, torch.zeros(2, 4, dtype=torch.int64)], 1),
    )
    unmasked = Conditioning(tokens=padded.tokens, mask=torch.ones(2, 7, dtype=torch.int64))
    with torch.no_grad():
        expected = unet(z_t, t, **short.unet_arguments()).sample
        made = unet(z_t, t, **padded.unet_arguments()).sample
        heard = unet(z_t, t, **unmasked.unet_arguments()).sample
    assert (made - expected).abs().max() < 1e-5
    assert (heard - expected).abs().max() > 1e-3


def test_one_row_does_not_hear_the_other() -> None:
    unet = build("both").eval()
    z_t, t = latents()
    both = tau("both")
    with torch.no_grad():
        together = unet(z_t, t, **both.unet_arguments()).sample
        alone = unet(z_t[1:], t[1:], **both.rows(slice(1, 2)).unet_arguments()).sample
    assert (together[1:] - alone).abs().max() < 1e-5


def test_levels_and_attention_go_together() -> None:
    unet = build("tokens")
    assert unet.config.down_block_types == ("DownBlock2D", "CrossAttnDownBlock2D")
    assert unet.config.up_block_types == ("CrossAttnUpBlock2D", "UpBlock2D")


def test_levels_have_their_own_number_of_layers() -> None:
    unet = new_denoiser(SIZES.model_copy(update={"layers_per_block": (3, 1)}), CHANNELS, WIDTH, None)
    assert [len(block.resnets) for block in unet.down_blocks] == [3, 1]
    assert [len(block.resnets) for block in unet.up_blocks] == [2, 4]


@pytest.mark.parametrize(("key", "one"), [("attention", True), ("attention_heads", 2), ("layers_per_block", 2)])
def test_lists_of_different_length_are_refused(key: str, one: bool | int) -> None:
    sizes = SIZES.model_copy(update={key: (one,)})
    with pytest.raises(InputError, match=rf"unet\.{key} has 1 .*unet\.block_out_channels 2"):
        new_denoiser(sizes, CHANNELS, WIDTH, None)


PLAIN = PlainUNetConfig(
    kind="plain", block_out_channels=(8, 16), layers_per_block=1, attention=(False, True), norm_num_groups=4
)


@pytest.mark.parametrize(
    "change",
    [{}, {"time_shift": "scale_shift", "head_width": 8}, {"resample": "resnet", "time_width": 24}, {"dropout": 0.5},
     {"fourier_features": True}],
    ids=["ddpm", "improved ddpm", "edm", "dropout", "vdm"],
)  # fmt: skip
@pytest.mark.parametrize("output_channels", [1, 2])
def test_plain_kinds_begin_at_zero_and_learn(change: dict[str, Any], output_channels: int) -> None:
    """Nothing comes out at first (with Fourier features: the input itself), and every parameter has its turn."""
    torch.manual_seed(0)
    unet = new_denoiser(PLAIN.model_copy(update=change), CHANNELS, None, None, output_channels=output_channels)
    z_t, t = latents()
    first = predict(unet, z_t, t, Conditioning())
    assert first.shape == (2, output_channels * CHANNELS, 8, 4)
    assert torch.equal(first[:, :CHANNELS], z_t if change.get("fourier_features") else torch.zeros_like(z_t))
    assert not first[:, CHANNELS:].any()
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    predict(unet, z_t, t, Conditioning()).square().sum().backward()
    for name, parameter in unet.named_parameters():
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0, name
    later = predict(unet.eval(), z_t, t + 5, Conditioning())
    assert (later - predict(unet, z_t, t, Conditioning())).abs().max() > 1e-4


def test_fourier_features_show_what_is_too_fine_to_see(tmp_path: Path) -> None:
    """1/256, about half a grey level, is a quarter of a turn of sin(2^7 pi z) and half of one of sin(2^8 pi z)."""
    torch.manual_seed(0)
    unet = new_denoiser(PLAIN.model_copy(update={"fourier_features": True}), 1, None, None)
    assert isinstance(unet, FourierUNet)
    seen: list[Tensor] = []
    unet.unet.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    z_t = torch.tensor([0.0, 1 / 256]).reshape(2, 1, 1, 1).expand(2, 1, 8, 4)
    predict(unet, z_t, torch.tensor([0, 0]), Conditioning())
    (features,) = seen
    assert torch.allclose(features[0, :, 0, 0], torch.tensor([0.0, 0, 0, 1, 1]))
    assert torch.allclose(features[1, :, 0, 0], torch.tensor([1 / 256, 1, 0, 0, -1]), atol=1e-4)
    unet.save_pretrained(tmp_path)
    again = FourierUNet.from_pretrained(tmp_path).eval()
    assert again.config.in_channels == 1
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in unet.state_dict().items())
