"""What the diffusion stage and its student stand on: finished parts that take media to scaled latents, and checks."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentdiff.config import AnyData, AudioData, DiffusionRecipe, Framing
from latentdiff.data.latents import LatentItems
from latentdiff.data.stored_rows import StoredRows
from latentdiff.media.image import from_x
from latentdiff.media.mel import MelConfig, require_same_mel
from latentdiff.models.autoencoder import Autoencoder, compression, decode, posterior
from latentdiff.models.loading import load_autoencoder, load_vocoder, weights_hash
from latentdiff.models.vocoder import imposed_iterations, vocoder_mel, voice
from latentdiff.pipelines.base import LatentDiffusionPipeline
from latentdiff.training.caches import Caches
from latentdiff.training.modality import Modality, Pictures, Sounds, mel_of


class FirstStage:
    """A modality with a frozen VAE of it, or with none: then z is x.

    Args:
        modality: media -> x.
        vae: x -> z.
        source: where the VAE is from.
        device: where it runs.
    """

    def __init__(self, modality: Modality, vae: Autoencoder | None, source: str | None, device: torch.device) -> None:
        self.modality, self.vae, self.source, self.device = modality, vae, source, device
        self.factor = compression(vae) if vae is not None else 1

    def latents(self, split: str, rows: StoredRows, caches: Caches) -> LatentItems:
        """Scaled latents of the rows' crops: unit variance is what the noise schedule assumes."""
        key: dict[str, Any] = {"vae": weights_hash(self.source) if self.source else "none"}
        if "mel" in self.modality.definition:  # how pictures are framed is among the facts of the items
            key["mel"] = self.modality.definition["mel"]
        return caches.latents(split, rows, self.modality.items(rows, self.factor), self._encode, key, self.device)

    def _encode(self, media: Tensor) -> tuple[Tensor, Tensor]:
        x = self.modality.to_x(media)
        if self.vae is None:
            return x, torch.zeros_like(x)
        q, scale = posterior(self.vae, x), self.vae.config.scaling_factor
        return q.mean * scale, q.std * scale

    def exact(self, z: Tensor) -> Tensor:
        """z (B, C, h, w) as it was before the cache's half precision, where that can be known: pixels have 256 values.

        The bounds count on them, and VDM's noise begins ten times below the distance of two values.
        """
        return z if self.vae is not None else self.modality.to_x(from_x(z))

    @torch.no_grad()
    def channel_weights(self, latents: LatentItems) -> Tensor:
        """How far x moves, root mean square, when one channel of z changes by 0.3: (C,), 1 on average.

        Of some 64 latents; the root, and not the square, so that what shows least is learnt as well.
        """
        assert self.vae is not None
        z = latents.mean[:: max(1, len(latents.mean) // 64)].to(self.device) / self.vae.config.scaling_factor
        x, moved = decode(self.vae, z), []
        for channel in range(z.shape[1]):
            other = z.clone()
            other[:, channel] += 0.3
            moved.append((decode(self.vae, other) - x).square().mean().sqrt())
        weights = torch.stack(moved)
        return weights / weights.mean()

    @torch.no_grad()
    def check(self, latents: LatentItems) -> list[str]:
        """What looks wrong about the latents' scale and the components' round trips, on 16 media."""
        if self.vae is None:
            return []
        warnings = []
        deviation = float(latents.mean[:: max(1, len(latents) // 1024)].std())
        if not 0.5 < deviation < 2.0:  # NaN too
            warnings.append(
                f"latents have a standard deviation of {deviation:.3g}, the noise schedule assumes 1: is the VAE's "
                f"scaling_factor {self.vae.config.scaling_factor:.4g} that of this data?"
            )
        media = self.modality.items(latents.rows[:16], self.factor)
        x = self.modality.to_x(media.stack(media.rows).to(self.device))
        lost, spread = float((decode(self.vae, posterior(self.vae, x).mode()) - x).abs().mean()), float(x.std())
        if not lost < 0.5 * spread:
            warnings.append(f"the VAE loses {lost:.3g} of x that spreads by {spread:.3g}: train it longer or on these.")
        return warnings + self._check_voice(x)

    def save_examples(self, folder: Path, pipeline: LatentDiffusionPipeline, captions: list[str] | None) -> None:
        """What a pipeline makes with fixed seeds: of up to four of the captions, which it lists, or of none at all."""
        pipeline.set_progress_bar_config(disable=True)
        if captions is None:
            seeds = [torch.Generator().manual_seed(seed) for seed in range(4)]
            self.modality.save_samples(folder, pipeline(num_images_per_prompt=len(seeds), generator=seeds))
            return
        prompts = captions[:: max(1, len(captions) // 4)][:4]
        seeds = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
        self.modality.save_samples(folder, pipeline(prompts, generator=seeds))
        (folder / "prompts.txt").write_text("\n".join(prompts) + "\n")

    def _check_voice(self, x: Tensor) -> list[str]:
        """What looks wrong between x and the media; between x and pixels lies nothing that could be."""
        return []


class SoundStage(FirstStage):
    """A VAE and a vocoder of one mel.

    Args:
        vae: the loaded one.
        source: where it is from.
        vocoder: the loaded one.
        vocoder_source: where it is from.
        seconds: length of a training window.
        device: where they run.

    Raises:
        InputError: if the two mels differ.
    """

    def __init__(
        self, vae: Autoencoder, source: str, vocoder: Any, vocoder_source: str, seconds: float, device: torch.device
    ) -> None:
        self.vocoder = vocoder.to(device).eval().requires_grad_(False)
        self.sounds = Sounds(_common_mel(source, vae, vocoder_source, vocoder), seconds, device)
        super().__init__(self.sounds, vae.to(device).eval().requires_grad_(False), source, device)

    def _check_voice(self, x: Tensor) -> list[str]:
        mel = self.sounds.mel
        real = mel.from_x(x)
        heard = mel(voice(self.vocoder, real, mel, imposed_iterations(self.vocoder)))[:, : real.shape[1]]
        error, spread = float((heard - real).abs().mean()), float(real.std())
        if error < spread:
            return []
        return [
            f"the vocoder's round trip is off by {error:.3g} on log-mels that spread by {spread:.3g}: it was "
            "trained on another mel, or hardly at all."
        ]


class PictureStage(FirstStage):
    """A VAE of pictures, or none.

    Args:
        vae: the loaded one, or None for diffusion on pixels.
        source: where it is from.
        framing: what the pictures are.
        device: where it runs.

    Raises:
        InputError: if the VAE is of something else.
    """

    def __init__(self, vae: Autoencoder | None, source: str | None, framing: Framing, device: torch.device) -> None:
        pictures = Pictures(framing)
        if vae is not None:
            pictures.require_own(vae, str(source))
            vae = vae.to(device).eval().requires_grad_(False)
        super().__init__(pictures, vae, source, device)


def first_stage(config: DiffusionRecipe, device: torch.device) -> FirstStage:
    """What the configuration names, loaded and found to fit together."""
    if isinstance(config.data, AudioData):
        assert config.vae is not None and config.vocoder is not None  # the configuration was checked
        vae, vocoder = load_autoencoder(config.vae), load_vocoder(config.vocoder)
        return SoundStage(vae, config.vae, vocoder, config.vocoder, config.data.seconds, device)
    loaded = load_autoencoder(config.vae) if config.vae is not None else None
    return PictureStage(loaded, config.vae, config.data.framing, device)


def first_stage_of(pipeline: LatentDiffusionPipeline, folder: Path, data: AnyData, device: torch.device) -> FirstStage:
    """What a finished pipeline stands on; ``folder`` is where it was loaded from."""
    vae = str(folder / "vae")
    if isinstance(data, AudioData):
        return SoundStage(pipeline.vae, vae, pipeline.vocoder, str(folder / "vocoder"), data.seconds, device)
    return PictureStage(pipeline.vae, vae if pipeline.vae is not None else None, data.framing, device)


def _common_mel(source: str, vae: Autoencoder, vocoder_source: str, vocoder: Any) -> MelConfig:
    mel, other = mel_of(vae, source), vocoder_mel(vocoder)
    if other is not None:
        require_same_mel(mel, f"the VAE {source}", other, f"the vocoder {vocoder_source}")
    return mel
