"""The vocoder log-mel -> waveform: transformers' `SpeechT5HifiGan` (HiFi-GAN, Kong et al. 2020), or its V3."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from latentdiff.config import GeneratorConfig
from latentdiff.errors import InputError
from latentdiff.media.mel import LogMel, MelConfig, resolve_mel


class ShortResidualBlock(nn.Module):
    """HiFi-GAN's residual block of type 2: one dilated convolution a branch, and not two."""

    def __init__(self, channels: int, kernel_size: int, dilations: Sequence[int], slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.convs = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel_size, dilation=d, padding=(kernel_size - 1) * d // 2)
            for d in dilations
        )

    def forward(self, h: Tensor) -> Tensor:
        """(B, C, T) -> the same shape."""
        for conv in self.convs:
            h = h + conv(nn.functional.leaky_relu(h, self.slope))
        return h

    def apply_weight_norm(self) -> None:
        """As HiFi-GAN's own training has it."""
        for conv in self.convs:
            nn.utils.parametrizations.weight_norm(conv)

    def remove_weight_norm(self) -> None:
        """Fold it into the kernels."""
        for conv in self.convs:
            nn.utils.parametrize.remove_parametrizations(conv, "weight")


class ShortHifiGan(SpeechT5HifiGan):
    """HiFi-GAN V3. Why an own class: transformers has residual blocks of type 1 only, V1's and V2's."""

    def __init__(self, config: SpeechT5HifiGanConfig) -> None:
        super().__init__(config)
        pairs = list(zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True))
        widths = [config.upsample_initial_channel // 2 ** (level + 1) for level in range(len(config.upsample_rates))]
        self.resblocks = nn.ModuleList(
            ShortResidualBlock(width, kernel_size, dilations, config.leaky_relu_slope)
            for width in widths
            for kernel_size, dilations in pairs
        )
        self.post_init()


def build_vocoder(config: SpeechT5HifiGanConfig) -> SpeechT5HifiGan:
    """The class whose residual blocks are of the type that ``config.resblock`` says, in HiFi-GAN's own words; or 1."""
    return (ShortHifiGan if getattr(config, "resblock", "1") == "2" else SpeechT5HifiGan)(config)


def new_vocoder(config: GeneratorConfig, mel: MelConfig, mel_iterations: int = 0) -> SpeechT5HifiGan:
    """A vocoder of one mel definition, which it carries in its ``config.json``.

    Raises:
        InputError: if the upsampling rates do not multiply to the mel's hop, or the lists differ in length.
    """
    hop = math.prod(config.upsample_rates)
    if hop != mel.hop_length:
        raise InputError(
            f"generator.upsample_rates {list(config.upsample_rates)} multiply to {hop}, but the mel's hop is "
            f"{mel.hop_length}; choose rates with that product."
        )
    _require_pairs("upsample", "upsample_rates", config.upsample_rates, config.upsample_kernel_sizes)
    _require_pairs("resblock", "resblock_dilation_sizes", config.resblock_dilation_sizes, config.resblock_kernel_sizes)
    vocoder = build_vocoder(
        SpeechT5HifiGanConfig(
            resblock=str(config.resblock),
            model_in_dim=mel.n_mels,
            sampling_rate=mel.sampling_rate,
            upsample_initial_channel=config.upsample_initial_channel,
            upsample_rates=list(config.upsample_rates),
            upsample_kernel_sizes=list(config.upsample_kernel_sizes),
            resblock_kernel_sizes=list(config.resblock_kernel_sizes),
            resblock_dilation_sizes=[list(dilations) for dilations in config.resblock_dilation_sizes],
            normalize_before=True,
            mel=mel.to_dict(),
            mel_iterations=mel_iterations,
        )
    )
    # HiFi-GAN draws its weights with deviation 0.01 and leans on weight normalisation to grow them; without
    # that, the output is 1e-6 and the first thousand steps are lost. PyTorch's own scale starts at once.
    for module in vocoder.modules():
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
            module.reset_parameters()
    return vocoder


def _require_pairs(kind: str, name: str, first: Sequence[object], kernels: Sequence[int]) -> None:
    """transformers pairs the lists without looking at their lengths, and so drops the longer one's rest."""
    if len(first) != len(kernels):
        raise InputError(
            f"generator.{name} has {len(first)} entries and generator.{kind}_kernel_sizes {len(kernels)}; "
            "give as many of both."
        )


def voice(vocoder: nn.Module, log_mel: Tensor, front_end: LogMel, mel_iterations: int) -> Tensor:
    """Waveform (B, T * hop) of a log-mel (B, T, F): the vocoder's, with the mel imposed on it."""
    return front_end.impose(vocoder(log_mel).float(), log_mel.float(), mel_iterations)


@torch.no_grad()
def set_normalisation(vocoder: SpeechT5HifiGan, log_mel: Tensor) -> None:
    """Let the vocoder normalise its input by the mean and deviation of each band of a log-mel (B, T, F)."""
    vocoder.mean.copy_(log_mel.mean((0, 1)))
    vocoder.scale.copy_(log_mel.std((0, 1)).clamp(min=1e-3))


def imposed_iterations(vocoder: SpeechT5HifiGan) -> int:
    """How often the mel is imposed on a vocoder's output; published vocoders know nothing of it: 0."""
    return int(getattr(vocoder.config, "mel_iterations", 0))


def vocoder_mel(vocoder: SpeechT5HifiGan) -> MelConfig | None:
    """The mel definition a vocoder was trained on, if it carries one."""
    definition = getattr(vocoder.config, "mel", None)
    return resolve_mel(definition) if definition else None
