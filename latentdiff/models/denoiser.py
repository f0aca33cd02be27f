"""The denoiser eps_theta(z_t, t, tau): diffusers' `UNet2DConditionModel`."""

from diffusers import UNet2DConditionModel

from latentdiff.config import UNetConfig
from latentdiff.errors import InputError


def new_denoiser(
    config: UNetConfig,
    latent_channels: int,
    tokens_width: int | None,
    pooled_width: int | None,
    pooled_apart: bool = True,
) -> UNet2DConditionModel:
    """A U-Net on latents that reads a token sequence by cross-attention, a pooled embedding by FiLM, or both.

    Args:
        config: its sizes.
        latent_channels: channels of z.
        tokens_width: D of `Conditioning.tokens`; None makes the attention self-attention, as in AudioLDM.
        pooled_width: P of `Conditioning.pooled`; None for no FiLM.
        pooled_apart: the pooled part stands beside the time embedding (AudioLDM) and is not added to it.

    Raises:
        InputError: if the per-level lists differ in length.
    """
    levels = len(config.block_out_channels)
    if len(config.attention) != levels:
        raise InputError(f"unet.attention has {len(config.attention)} entries, unet.block_out_channels {levels}.")
    return UNet2DConditionModel(
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        down_block_types=tuple("CrossAttnDownBlock2D" if on else "DownBlock2D" for on in config.attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if on else "UpBlock2D" for on in reversed(config.attention)),
        cross_attention_dim=tokens_width if tokens_width is not None else config.block_out_channels,
        # diffusers' name is historical: for this class the number is that of heads (diffusers issue 2011).
        attention_head_dim=config.attention_heads,
        norm_num_groups=config.norm_num_groups,
        class_embed_type=None if pooled_width is None else "simple_projection",
        projection_class_embeddings_input_dim=pooled_width,
        class_embeddings_concat=pooled_width is not None and pooled_apart,
    )
