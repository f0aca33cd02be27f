"""The denoiser eps_theta(z_t, t, tau): diffusers' `UNet2DConditionModel`, or `UNet2DModel` where there is no tau."""

import math
from typing import Any, TypeAlias

import torch
from diffusers import AudioLDM2UNet2DConditionModel, ConfigMixin, ModelMixin, UNet2DConditionModel, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from latentdiff.config import AnyUNet, PlainUNetConfig, TwoStreamUNetConfig, UNetConfig
from latentdiff.errors import InputError
from latentdiff.models.text import Conditioning


class FourierUNet(ModelMixin, ConfigMixin):
    """A `UNet2DModel` for likelihood: fine Fourier features go in beside z_t, and z_t is added to what comes out.

    Why an own class: diffusers' U-Nets see z_t alone, and the last bits of 8-bit pixels are far below its scale
    (VDM, appendix C.1: sin and cos of 2^n pi z_t, n = 7 and 8; the sum as in its code, ``ScoreUNet``).

    Args:
        in_channels: channels of z_t.
        out_channels: at least as many; z_t is added to the first ones.
        others: of `UNet2DModel`.
    """

    config_name = "config.json"
    frequencies = (2.0**7 * math.pi, 2.0**8 * math.pi)

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        block_out_channels: tuple[int, ...] = (128,),
        layers_per_block: int = 32,
        down_block_types: tuple[str, ...] = ("DownBlock2D",),
        up_block_types: tuple[str, ...] = ("UpBlock2D",),
        attention_head_dim: int | None = None,
        norm_num_groups: int = 32,
        dropout: float = 0.0,
        resnet_time_scale_shift: str = "default",
        time_embedding_dim: int | None = None,
        downsample_type: str = "conv",
        upsample_type: str = "conv",
    ) -> None:
        super().__init__()
        self.unet = UNet2DModel(
            in_channels=in_channels * (1 + 2 * len(self.frequencies)),
            out_channels=out_channels,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            attention_head_dim=attention_head_dim,
            norm_num_groups=norm_num_groups,
            attn_norm_num_groups=norm_num_groups,
            dropout=dropout,
            resnet_time_scale_shift=resnet_time_scale_shift,
            time_embedding_dim=time_embedding_dim,
            downsample_type=downsample_type,
            upsample_type=upsample_type,
        )

    def forward(self, sample: Tensor, timestep: Tensor | float | int) -> UNet2DOutput:
        """(B, in_channels, h, w) at t, (B,) or one for all -> ``sample`` (B, out_channels, h, w)."""
        angles = torch.cat([frequency * sample.float() for frequency in self.frequencies], dim=1)
        features = torch.cat([angles.sin(), angles.cos()], dim=1).to(sample.dtype)
        output = self.unet(torch.cat([sample, features], dim=1), timestep).sample
        beyond = output.shape[1] - sample.shape[1]
        return UNet2DOutput(sample=output + nn.functional.pad(sample, (0, 0, 0, 0, 0, beyond)))


Denoiser: TypeAlias = UNet2DConditionModel | AudioLDM2UNet2DConditionModel | UNet2DModel | FourierUNet


def predict(denoiser: Denoiser, z_t: Tensor, t: Tensor, tau: Conditioning) -> Tensor:
    """The network's output (B, C, h, w) at z_t and t; tau is empty where it hears no prompt."""
    arguments = {} if isinstance(denoiser, (UNet2DModel, FourierUNet)) else tau.unet_arguments()
    output: Tensor = denoiser(z_t, t, **arguments).sample
    return output


def without_fused_attention(denoiser: Denoiser) -> None:
    """For training on a CPU, where the fused attention's backward pass is slow: a step takes 0.25 s, not 0.32 s."""
    for module in denoiser.modules():
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())


def new_denoiser(
    config: AnyUNet,
    latent_channels: int,
    tokens_width: int | tuple[int, int] | None,
    pooled_width: int | None,
    pooled_apart: bool = True,
    output_channels: int = 1,
) -> Denoiser:
    """A U-Net on latents that reads a token sequence by cross-attention, a pooled embedding by FiLM, both or neither.

    Args:
        config: its sizes.
        latent_channels: channels of z.
        tokens_width: D of `Conditioning.tokens`, or with E of `tokens_1` for a U-Net of two streams; None makes the
            attention self-attention, as in AudioLDM.
        pooled_width: P of `Conditioning.pooled`; None for no FiLM.
        pooled_apart: the pooled part stands beside the time embedding (AudioLDM) and is not added to it.
        output_channels: for each one of z, as `Objective.output_channels` says.

    Raises:
        InputError: if the per-level lists differ in length.
    """
    levels = len(config.block_out_channels)
    if len(config.attention) != levels:
        raise InputError(f"unet.attention has {len(config.attention)} entries, unet.block_out_channels {levels}.")
    for name in ("attention_heads", "layers_per_block"):
        each = getattr(config, name, 1)
        if not isinstance(each, int) and len(each) != levels:
            raise InputError(f"unet.{name} has {len(each)} entries, unet.block_out_channels {levels}.")
    channels = latent_channels, latent_channels * output_channels
    if isinstance(config, PlainUNetConfig):
        assert tokens_width is None and pooled_width is None  # the configuration was checked
        return _plain(config, *channels)
    if isinstance(config, TwoStreamUNetConfig):
        assert isinstance(tokens_width, tuple) and pooled_width is None
        return _two_stream(config, *channels, tokens_width)
    assert not isinstance(tokens_width, tuple)
    return _conditional(config, *channels, tokens_width, pooled_width, pooled_apart)


def _conditional(
    config: UNetConfig,
    in_channels: int,
    out_channels: int,
    tokens_width: int | None,
    pooled_width: int | None,
    pooled_apart: bool,
) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        **_attending(config, in_channels, out_channels),
        cross_attention_dim=tokens_width if tokens_width is not None else config.block_out_channels,
        use_linear_projection=config.linear_projection,
        class_embed_type=None if pooled_width is None else "simple_projection",
        projection_class_embeddings_input_dim=pooled_width,
        class_embeddings_concat=pooled_width is not None and pooled_apart,
    )


def _two_stream(
    config: TwoStreamUNetConfig, in_channels: int, out_channels: int, widths: tuple[int, int]
) -> AudioLDM2UNet2DConditionModel:
    reads = [None, *widths, None] if config.last_self_attention else [None, *widths]
    return AudioLDM2UNet2DConditionModel(
        **_attending(config, in_channels, out_channels),
        cross_attention_dim=[reads] * len(config.block_out_channels),
        transformer_layers_per_block=config.transformer_layers,
    )


def _attending(config: UNetConfig | TwoStreamUNetConfig, in_channels: int, out_channels: int) -> dict[str, Any]:
    """What diffusers' two U-Nets with cross-attention have in common."""
    return {
        "in_channels": in_channels,
        "out_channels": out_channels,
        "block_out_channels": config.block_out_channels,
        "layers_per_block": config.layers_per_block,
        "down_block_types": tuple("CrossAttnDownBlock2D" if on else "DownBlock2D" for on in config.attention),
        "up_block_types": tuple("CrossAttnUpBlock2D" if on else "UpBlock2D" for on in reversed(config.attention)),
        # diffusers' name is historical: for these classes the number is that of heads (diffusers issue 2011).
        "attention_head_dim": config.attention_heads,
        "norm_num_groups": config.norm_num_groups,
    }


def _plain(config: PlainUNetConfig, in_channels: int, out_channels: int) -> UNet2DModel | FourierUNet:
    sizes = {
        "in_channels": in_channels,
        "out_channels": out_channels,
        "block_out_channels": config.block_out_channels,
        "layers_per_block": config.layers_per_block,
        "down_block_types": tuple("AttnDownBlock2D" if on else "DownBlock2D" for on in config.attention),
        "up_block_types": tuple("AttnUpBlock2D" if on else "UpBlock2D" for on in reversed(config.attention)),
        "attention_head_dim": config.head_width,
        "norm_num_groups": config.norm_num_groups,
        "dropout": config.dropout,
        "resnet_time_scale_shift": config.time_shift,
        "time_embedding_dim": config.time_width,
        "downsample_type": config.resample,
        "upsample_type": config.resample,
    }
    if config.fourier_features:
        unet = FourierUNet(**sizes)
        _begin_at_zero(unet.unet)
        return unet
    plain = UNet2DModel(**sizes, attn_norm_num_groups=config.norm_num_groups)
    _begin_at_zero(plain)
    return plain


def _begin_at_zero(unet: UNet2DModel) -> None:
    """The last layer of every residual branch, and of the network, begins at zero, as in the code of DDPM and VDM."""
    last = [unet.conv_out]
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D):
            last.append(module.conv2)
        elif isinstance(module, Attention):
            last.append(module.to_out[0])
    for layer in last:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
