"""The one seam between media: media -> x and back to something to look at. All else is the same for both.

Shapes: media (B, samples) in [-1, 1] or (B, C, H, W) in 0 to 255; x (B, C, H, W).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import SpeechT5HifiGan

from latentdiff.config import AudioData, AutoencoderConfig, Framing, VAERecipe
from latentdiff.data.folder import Row
from latentdiff.data.items import MediaItems, PictureItems, WaveItems
from latentdiff.errors import InputError
from latentdiff.media import image
from latentdiff.media.mel import LogMel, MelConfig, require_same_mel, resolve_mel
from latentdiff.models.autoencoder import Autoencoder, build_autoencoder
from latentdiff.pipelines.text_to_audio import AudioOutput
from latentdiff.pipelines.text_to_image import ImageOutput
from latentdiff.training.previews import save_mel_pairs, save_picture_pairs, save_waves


class Modality(ABC):
    """A medium, as far as the stages need to know it.

    Attributes:
        channels: of x.
        definition: what x is, as it stands in the VAE's ``config.json``.
    """

    channels: int
    definition: dict[str, Any]

    @abstractmethod
    def new_autoencoder(self, config: AutoencoderConfig) -> Autoencoder:
        """One of x, which carries the definition."""

    @abstractmethod
    def require_own(self, vae: Autoencoder, source: str) -> None:
        """Refuse a finished VAE, from ``source``, of other media.

        Raises:
            InputError: saying what it is of.
        """

    @abstractmethod
    def items(self, rows: Sequence[Row], factor: int) -> MediaItems:
        """The rows as media whose x a VAE of this compression divides.

        Raises:
            InputError: if it does not.
        """

    @abstractmethod
    def to_x(self, media: Tensor) -> Tensor:
        """x of media."""

    @abstractmethod
    def compare(self, folder: Path, x: Tensor, made: Tensor) -> dict[str, float]:
        """Figures of a reconstruction in the medium's own unit, and some pairs to look at in ``folder``."""

    @abstractmethod
    def save_samples(self, folder: Path, output: Any) -> None:
        """What a pipeline has made, as files in ``folder``."""


class Sounds(Modality):
    """Waveforms by their log-mel.

    Args:
        mel: the front end.
        seconds: length of a training item; rounded down to whole latents.
        device: where x is made.
    """

    def __init__(self, mel: MelConfig, seconds: float, device: torch.device) -> None:
        self.mel, self.seconds = LogMel(mel).to(device), seconds
        self.channels, self.definition = mel.channels, {"mel": mel.to_dict()}

    def new_autoencoder(self, config: AutoencoderConfig) -> Autoencoder:
        return build_autoencoder(config, self.channels, self.mel.config)

    def require_own(self, vae: Autoencoder, source: str) -> None:
        require_same_mel(mel_of(vae, source), f"the VAE {source}", self.mel.config, "the configuration")

    def items(self, rows: Sequence[Row], factor: int) -> WaveItems:
        rate, hop = self.mel.config.sampling_rate, self.mel.config.hop_length
        frames = int(self.seconds * rate) // hop // factor * factor
        if frames == 0:
            raise InputError(f"data.seconds is {self.seconds}, less than one latent of the VAE; make it longer.")
        return WaveItems(rows, rate, frames * hop)

    def log_mel(self, wave: Tensor) -> Tensor:
        """Log-mel (B, T, F) of waveforms (B, S), one frame a hop."""
        return self.mel(self.mel.prepare(wave))[:, : wave.shape[1] // self.mel.config.hop_length]

    def to_x(self, media: Tensor) -> Tensor:
        return self.mel.to_x(self.log_mel(media))

    def compare(self, folder: Path, x: Tensor, made: Tensor) -> dict[str, float]:
        real, smooth = self.mel.from_x(x), self.mel.from_x(made)
        save_mel_pairs(folder, real, smooth, self.mel.config, count=4)
        return {"log_mel_l1": float((smooth - real).abs().mean())}

    def save_samples(self, folder: Path, output: AudioOutput) -> None:
        waves = torch.as_tensor(output.audios)
        save_waves(folder, waves, output.sampling_rate, [f"{i}" for i in range(len(waves))])


class Pictures(Modality):
    """Pictures by their pixels."""

    def __init__(self, framing: Framing) -> None:
        self.framing = framing
        self.channels, self.definition = framing.channels, {"image": framing.model_dump(mode="json")}

    def new_autoencoder(self, config: AutoencoderConfig) -> Autoencoder:
        return build_autoencoder(config, self.channels, mel=None, image=self.framing)

    def require_own(self, vae: Autoencoder, source: str) -> None:
        if getattr(vae.config, "mel", None):
            raise InputError(f"the VAE {source} is one of sounds, and data.kind is image; name one of pictures.")
        if vae.config.in_channels != self.channels:
            raise InputError(
                f"the VAE {source} is of pictures with {vae.config.in_channels} channels, and data.channels is "
                f"{self.channels}; make them equal."
            )

    def items(self, rows: Sequence[Row], factor: int) -> PictureItems:
        if any(side % factor for side in self.framing.size):
            below, above = ([side // factor * factor + more for side in self.framing.size] for more in (0, factor))
            raise InputError(
                f"data.size is {list(self.framing.size)}, which the VAE's compression of {factor} does not divide; "
                f"choose {above if 0 in below else below} or {above}."
            )
        return PictureItems(rows, self.framing)

    def to_x(self, media: Tensor) -> Tensor:
        return image.to_x(media)

    def compare(self, folder: Path, x: Tensor, made: Tensor) -> dict[str, float]:
        real, smooth = image.from_x(x), image.from_x(made)
        save_picture_pairs(folder, real, smooth, count=16)
        error = (smooth.float() - real.float()).square().flatten(1).mean(1)  # of 8-bit pixels, each picture's own
        return {"psnr": float((10 * torch.log10(255.0**2 / error.clamp(min=1e-3))).mean())}

    def save_samples(self, folder: Path, output: ImageOutput) -> None:
        for number, picture in enumerate(output.images):
            image.write_png(folder / f"{number}.png", picture, overwrite=True)


def mel_of(component: Autoencoder | SpeechT5HifiGan, source: str) -> MelConfig:
    """The mel of a finished VAE or vocoder from ``source``.

    Raises:
        InputError: if it does not say.
    """
    definition = getattr(component.config, "mel", None)
    if not definition:
        raise InputError(f"{source} has no mel definition in its config.json; train it with this package.")
    return resolve_mel(definition)


def modality_of(config: VAERecipe, device: torch.device) -> Modality:
    """The medium of a VAE that is to be trained."""
    if isinstance(config.data, AudioData):
        assert config.mel is not None  # the configuration was checked
        return Sounds(resolve_mel(config.mel), config.data.seconds, device)
    return Pictures(config.data.framing)
