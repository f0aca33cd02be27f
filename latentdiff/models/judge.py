"""A small classifier of sounds that listens to what a generator makes."""

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from latentdiff.media.mel import LogMel, resolve_mel


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
        stages: list[nn.Module] = []
        channels = self.front_end.config.channels
        for stage in range(4):
            out = width * min(2**stage, 4)
            stages += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            stages += [nn.MaxPool2d(2)]
            channels = out
        self.stages = nn.Sequential(*stages)
        bands = self.front_end.config.n_mels // 2**4
        self.head = nn.Linear(2 * channels * bands, len(labels))

    def log_mel(self, wave: Tensor) -> Tensor:
        """Log-mel (B, T, F) of a waveform (B, S)."""
        return self.front_end(self.front_end.prepare(wave))

    def features(self, log_mel: Tensor) -> Tensor:
        """Features (B, D) of a log-mel (B, T, F): mean and maximum over time of each channel and band."""
        x = self.front_end.to_x(log_mel)
        h = self.stages(x.mT if self.front_end.config.frequency_first else x)
        h = h.transpose(2, 3).flatten(1, 2)  # (B, channels * bands, T)
        return torch.cat([h.mean(2), h.amax(2)], dim=1)

    def forward(self, wave: Tensor) -> Tensor:
        """Logits (B, labels) of a waveform (B, S)."""
        return self.head(self.features(self.log_mel(wave)))
