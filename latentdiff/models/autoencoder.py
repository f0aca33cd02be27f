"""Autoencoders x -> z -> x: diffusers' `AutoencoderKL`, and ours, which starts from the linear solution."""

from typing import Any, TypeAlias, cast

import torch
from diffusers import AutoencoderKL, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor, nn

from latentdiff.config import AutoencoderConfig, Framing, KLAutoencoderConfig
from latentdiff.media.mel import MelConfig


class ResidualBlock(nn.Module):
    """Pre-activation residual block of two 3x3 convolutions; the second begins at zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_out = _zero(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, h: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return h + self.conv_out(nn.functional.silu(self.conv_in(nn.functional.silu(self.norm(h)))))


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class PatchAutoencoder(ModelMixin, ConfigMixin):
    """A variational autoencoder that begins as PCA of patches and learns what PCA misses.

    Why an own class: an `AutoencoderKL` from random weights needs hours to reach what the linear optimum
    gives at once (a linear VAE's optimum is PCA: Lucas et al. 2019), and costs several times more on a CPU.
    Encoder and decoder are each a linear patch projection plus a convolutional branch whose last layer begins
    at zero. It speaks `AutoencoderKL`'s interface (`encode(x).latent_dist`, `decode(z).sample`,
    `config.scaling_factor`), so it stands wherever one is expected.

    Args:
        in_channels: channels of x.
        latent_channels: channels of z.
        patch_size: compression an axis; a power of two of at least 4.
        width: channels of the convolutional branches at half the compression; twice that at the full one.
        depth: residual blocks a resolution.
        scaling_factor: z given to the denoiser is this times the latent (1 / its deviation on the data).
        mel: the `MelConfig` fields of x, when x is a mel.
        image: the `Framing` fields of x, when x is a picture.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        in_channels: int = 1,
        latent_channels: int = 8,
        patch_size: int = 8,
        width: int = 64,
        depth: int = 2,
        scaling_factor: float = 1.0,
        mel: dict[str, Any] | None = None,
        image: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        p, half = patch_size, patch_size // 2
        self.analysis = nn.Conv2d(in_channels, latent_channels, p, stride=p)
        self.encoder = nn.Sequential(
            nn.Conv2d(in_channels, width, half, stride=half),
            *[ResidualBlock(width) for _ in range(depth)],
            nn.Conv2d(width, 2 * width, 2, stride=2),
            *[ResidualBlock(2 * width) for _ in range(depth)],
            _zero(nn.Conv2d(2 * width, 2 * latent_channels, 3, padding=1)),
        )
        self.synthesis = nn.ConvTranspose2d(latent_channels, in_channels, p, stride=p)
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, 2 * width, 3, padding=1),
            *[ResidualBlock(2 * width) for _ in range(depth)],
            nn.ConvTranspose2d(2 * width, width, 2, stride=2),
            *[ResidualBlock(width) for _ in range(depth)],
            _zero(nn.Conv2d(width, in_channels * half * half, 3, padding=1)),
            nn.PixelShuffle(half),
        )

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[Any]:
        """Posterior over z (B, latent_channels, H/p, W/p) of x (B, in_channels, H, W); p divides H and W."""
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        # The log variance begins at -4: noise of 2 % of the whitened latent's variance.
        moments = torch.cat([mean + self.analysis(x), log_variance - 4.0], dim=1)
        posterior = DiagonalGaussianDistribution(moments)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """x (B, in_channels, h*p, w*p) of a latent (B, latent_channels, h, w)."""
        x = self.synthesis(z) + self.decoder(z)
        return DecoderOutput(sample=x) if return_dict else (x,)

    def forward(self, x: Tensor) -> DecoderOutput | tuple[Tensor]:
        """Reconstruction of x through the posterior's mean."""
        return self.decode(cast(AutoencoderKLOutput, self.encode(x)).latent_dist.mode())

    @torch.no_grad()
    def solve_linear(self, x: Tensor) -> float:
        """Set the linear paths to the whitened PCA of the patches of x (B, C, H, W).

        Returns:
            The share of the patches' variance that the latent keeps.
        """
        p, channels = self.config.patch_size, self.config.latent_channels
        patches = nn.functional.unfold(x.double(), p, stride=p).mT.flatten(0, 1)  # (patches, C*p*p)
        mean = patches.mean(0)
        variances, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
        top = vectors[:, -channels:].flip(-1).T  # (latent_channels, C*p*p), largest variance first
        deviation = variances[-channels:].flip(-1).clamp(min=1e-8).sqrt()[:, None]
        shape = self.analysis.weight.shape
        assert self.analysis.bias is not None and self.synthesis.bias is not None
        self.analysis.weight.copy_((top / deviation).reshape(shape))
        self.analysis.bias.copy_(-(top / deviation) @ mean)
        self.synthesis.weight.copy_((top * deviation).reshape(shape))
        # A transposed convolution has one bias a channel, the mean patch has p*p values, and the latent is
        # centred: how the mean patch differs from its own mean is left to the decoder's branch.
        self.synthesis.bias.copy_(mean.reshape(self.config.in_channels, -1).mean(-1))
        return float(variances[-channels:].sum() / variances.sum())


Autoencoder: TypeAlias = PatchAutoencoder | AutoencoderKL


def build_autoencoder(
    config: AutoencoderConfig, in_channels: int, mel: MelConfig | None, image: Framing | None = None
) -> Autoencoder:
    """A new autoencoder of x with ``in_channels`` channels, which carries what x is."""
    definition = {
        "mel": mel.to_dict() if mel else None,
        "image": image.model_dump(mode="json") if image else None,
    }
    if isinstance(config, KLAutoencoderConfig):
        depth = len(config.block_out_channels)
        vae = AutoencoderKL(
            in_channels=in_channels,
            out_channels=in_channels,
            down_block_types=("DownEncoderBlock2D",) * depth,
            up_block_types=("UpDecoderBlock2D",) * depth,
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
            latent_channels=config.latent_channels,
            norm_num_groups=config.norm_num_groups,
        )
        vae.register_to_config(**definition)
        return vae
    return PatchAutoencoder(
        in_channels=in_channels,
        latent_channels=config.latent_channels,
        patch_size=config.patch_size,
        width=config.width,
        depth=config.depth,
        **definition,
    )


def posterior(vae: Autoencoder, x: Tensor) -> DiagonalGaussianDistribution:
    """q(z | x) of x (B, C, H, W), over latents that are not scaled yet."""
    return cast(AutoencoderKLOutput, vae.encode(x)).latent_dist


def decode(vae: Autoencoder, z: Tensor) -> Tensor:
    """x (B, C, H, W) of latents (B, c, h, w) that are not scaled."""
    return cast(DecoderOutput, vae.decode(z)).sample


def encoder_modules(vae: Autoencoder) -> list[nn.Module]:
    """What x -> z is made of; the rest decodes."""
    if isinstance(vae, AutoencoderKL):
        return [part for part in (vae.encoder, vae.quant_conv) if part is not None]
    return [vae.analysis, vae.encoder]


def compression(vae: Autoencoder) -> int:
    """How many elements of x, along an axis, become one of z."""
    if isinstance(vae, AutoencoderKL):
        return 2 ** (len(vae.config.block_out_channels) - 1)
    return int(vae.config.patch_size)
