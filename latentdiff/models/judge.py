"""Small classifiers that listen to, or look at, what a generator makes."""

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from latentdiff.config import Framing
from latentdiff.media import image
from latentdiff.media.mel import LogMel, resolve_mel

FEATURES = 64
"""Few, because a Frechet distance needs more media than features."""


def _stages(channels: int, width: int) -> nn.Sequential:
    """x as 2x2 patches, since convolutions at the full size are what a CPU pays for, and three convolutions of growing
    width, each of which halves both axes."""
    layers: list[nn.Module] = []
    channels *= 4
    for out in (width, 2 * width, 4 * width):
        layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2)]
        channels = out
    return nn.Sequential(nn.PixelUnshuffle(2), nn.Sequential(*layers))


def _embedding(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, FEATURES), nn.BatchNorm1d(FEATURES))


class AudioJudge(ModelMixin, ConfigMixin):
    """Convolutional classifier of waveforms by the names of their sources.

    Why an own class: a judge must share nothing with the generator, hear waveforms through its own mel, and
    be trained on real sounds in minutes; published classifiers know neither these names nor this machine.

    Args:
        labels: names, in the order of the logits.
        width: channels of the first stage.
        mel: `MelConfig` fields.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(self, labels: list[str], width: int, mel: dict[str, Any]) -> None:
        super().__init__()
        self.front_end = LogMel(resolve_mel(mel))
        self.stages = _stages(self.front_end.config.channels, width)
        self.embedding = _embedding(2 * 4 * width * (self.front_end.config.n_mels // 2**4))
        self.head = nn.Linear(FEATURES, len(labels))

    def log_mel(self, wave: Tensor) -> Tensor:
        """Log-mel (B, T, F) of a waveform (B, S)."""
        return self.front_end(self.front_end.prepare(wave))

    def features(self, log_mel: Tensor) -> Tensor:
        """Features (B, 64) of a log-mel (B, T, F): of mean and maximum over time of each channel and band."""
        x = self.front_end.to_x(log_mel)
        x = x.mT if self.front_end.config.frequency_first else x
        x = nn.functional.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2), mode="replicate")
        h = self.stages(x).transpose(2, 3).flatten(1, 2)  # (B, channels * bands, T)
        return self.embedding(torch.cat([h.mean(2), h.amax(2)], dim=1))

    def forward(self, wave: Tensor) -> Tensor:
        """Logits (B, labels) of a waveform (B, S)."""
        return self.head(self.features(self.log_mel(wave)))


class PictureJudge(ModelMixin, ConfigMixin):
    """Convolutional classifier of pictures by several attributes, each with a head of its own.

    Why an own class: as for `AudioJudge`; and whether a model composes shows only where what is seen is told
    attribute by attribute.

    Args:
        labels: for each attribute its names, in the order of the logits.
        width: channels of the first stage.
        image: `Framing` fields; the pictures are of this size, both sides even and at least 16.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(self, labels: dict[str, list[str]], width: int, image: dict[str, Any]) -> None:
        super().__init__()
        framing = Framing.model_validate(image)
        self.stages = _stages(framing.channels, width)
        height, across = (side // 2**4 for side in framing.size)
        self.embedding = _embedding(4 * width * height * across)
        # In the order of the alphabet, since a saved configuration does not keep that of its keys.
        self.heads = nn.ModuleList(nn.Linear(FEATURES, len(labels[attribute])) for attribute in sorted(labels))

    def features(self, pixels: Tensor) -> Tensor:
        """Features (B, 64) of pictures (B, C, H, W), 0 to 255."""
        return self.embedding(self.stages(image.to_x(pixels)).flatten(1))

    def classify(self, features: Tensor) -> dict[str, Tensor]:
        """Logits (B, names) by attribute of features (B, 64)."""
        return {
            attribute: head(features) for attribute, head in zip(sorted(self.config.labels), self.heads, strict=True)
        }

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Logits (B, names) by attribute of pictures (B, C, H, W), 0 to 255."""
        return self.classify(self.features(pixels))
