"""Models that turn media into features and class logits, or words into features: judges, CLAPs, classifiers."""

import json
import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from latentdiff.errors import InputError
from latentdiff.models import judge as judges
from latentdiff.models.clap import audio_features, embed_audio, embed_text, load_clap
from latentdiff.models.loading import weights_hash
from latentdiff.models.text import tokenize

BUNDLED_JUDGES = {"audio": "judge", "image": "image-judge"}
"""Folders under ``latentdiff/starter``, by medium."""
_FILES = ["*.json", "*.txt", "*.safetensors"]  # of a hub id; nothing that could run code


class Extractor(ABC):
    """Media in, features and logits out; nothing random.

    Attributes:
        kind: "audio" or "image".
        sampling_rate: of the waveforms it takes, in Hz; None for pictures.
        classes: by attribute the names in the order of the logits; nothing without classes.
        reads_text: whether `embed_text` works.
    """

    kind: str
    sampling_rate: int | None = None
    classes: dict[str, list[str]]
    reads_text = False
    name = ""
    """What it is called in reports."""
    identity = ""
    """Hash of its weights."""

    @abstractmethod
    def __call__(self, media: list[np.ndarray]) -> tuple[Tensor, dict[str, Tensor]]:
        """Features (B, D) and by attribute logits (B, K) of waveforms (S,) or pixels (H, W, 3) uint8."""

    def embed_text(self, captions: list[str]) -> Tensor:
        """Unit vectors (B, D) of captions, in the space of the features."""
        raise NotImplementedError


class SoundJudge(Extractor):
    """Our classifier of waveforms."""

    kind = "audio"

    def __init__(self, folder: str, device: torch.device) -> None:
        self.model = judges.AudioJudge.from_pretrained(folder, torch_dtype=torch.float32).eval().to(device)
        self.sampling_rate = self.model.front_end.config.sampling_rate
        self.classes = {"sources": list(self.model.config.labels)}

    def __call__(self, media: list[np.ndarray]) -> tuple[Tensor, dict[str, Tensor]]:
        # One at a time: the features are means over time, which padding to a common length would change.
        waves = [torch.from_numpy(wave)[None].to(self.model.device) for wave in media]
        features = torch.cat([self.model.features(self.model.log_mel(wave)) for wave in waves])
        return features, {"sources": self.model.head(features)}


class PictureJudge(Extractor):
    """Our classifier of pictures by several attributes."""

    kind = "image"

    def __init__(self, folder: str, device: torch.device) -> None:
        self.model = judges.PictureJudge.from_pretrained(folder, torch_dtype=torch.float32).eval().to(device)
        self.classes = {attribute: list(names) for attribute, names in self.model.config.labels.items()}
        self.size = tuple(self.model.config.image["size"])  # (height, width)

    def __call__(self, media: list[np.ndarray]) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = torch.from_numpy(np.stack([self._sized(picture) for picture in media])).permute(0, 3, 1, 2)
        features = self.model.features(pixels.to(self.model.device))
        return features, self.model.classify(features)

    def _sized(self, picture: np.ndarray) -> np.ndarray:
        height, width = self.size
        if picture.shape[:2] == (height, width):
            return picture
        return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))


class Clap(Extractor):
    """A CLAP of any size, ours or a published one; longer sounds than its window count by their beginning."""

    kind = "audio"
    reads_text = True

    def __init__(self, folder: str, device: torch.device) -> None:
        model, self.tokenizer, self.front_end = load_clap(folder)
        self.model = model.float().eval().to(device)
        self.sampling_rate = int(self.front_end.sampling_rate)
        self.classes = {}

    def __call__(self, media: list[np.ndarray]) -> tuple[Tensor, dict[str, Tensor]]:
        return embed_audio(self.model, audio_features(self.front_end, media)), {}

    def embed_text(self, captions: list[str]) -> Tensor:
        return embed_text(self.model, *tokenize(self.tokenizer, captions))


class Classifier(Extractor):
    """Any audio or image classifier of transformers; its features are what its last linear layer sees."""

    def __init__(self, folder: str, device: torch.device, kind: str) -> None:
        import transformers

        self.kind = kind
        if kind == "audio":
            self.front_end = transformers.AutoFeatureExtractor.from_pretrained(folder)
            model = transformers.AutoModelForAudioClassification.from_pretrained(folder)
            self.sampling_rate = int(self.front_end.sampling_rate)
        else:
            self.front_end = transformers.AutoImageProcessor.from_pretrained(folder)
            model = transformers.AutoModelForImageClassification.from_pretrained(folder)
        self.model = model.float().eval().to(device)
        names = self.model.config.id2label
        self.classes = {"sources": [str(names[i]) for i in range(len(names))]}
        heads = [layer for layer in self.model.modules() if isinstance(layer, nn.Linear)]
        heads = [layer for layer in heads if layer.out_features == len(names)]
        if not heads:
            raise InputError(f"{folder} has no linear layer that gives its {len(names)} classes, so no features.")
        heads[-1].register_forward_pre_hook(self._keep)

    def _keep(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._seen = inputs[0]

    def __call__(self, media: list[np.ndarray]) -> tuple[Tensor, dict[str, Tensor]]:
        found = [self._one(one) for one in media]  # alone, so that no padding of a batch gets into it
        return torch.cat([features for features, _ in found]), {"sources": torch.cat([logits for _, logits in found])}

    def _one(self, media: np.ndarray) -> tuple[Tensor, Tensor]:
        if self.kind == "audio":
            inputs = self.front_end([media], sampling_rate=self.sampling_rate, return_tensors="pt")
        else:
            inputs = self.front_end(Image.fromarray(media), return_tensors="pt")
        logits = self.model(**inputs.to(self.model.device)).logits
        seen = self._seen.reshape(1, -1, self._seen.shape[-1]).mean(1)  # over what tokens are left, if any
        return seen, logits


def load_extractor(source: str | None, kind: str, device: torch.device) -> Extractor:
    """An extractor by folder or hub id; None takes the bundled judge of the medium.

    Raises:
        InputError: if there is none, it is broken, or for another medium.
    """
    if source is None:
        folder = Path(__file__).parents[1] / "starter" / BUNDLED_JUDGES[kind]
        if not (folder / "config.json").is_file():
            raise InputError(f"no judge of the kind '{kind}' is bundled; name one with --extractor FOLDER_OR_HUB_ID.")
        name = BUNDLED_JUDGES[kind]
    else:
        folder, name = local_folder(source), source
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        extractor = _build(config, str(folder), kind, device)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise InputError(f"the extractor {name} cannot be loaded: {reason}.") from error
    if extractor.kind != kind:
        raise InputError(f"the extractor {name} is for {extractor.kind} and the data is {kind}; name another one.")
    extractor.name, extractor.identity = name, weights_hash(str(folder))
    return extractor


def _build(config: dict[str, Any], folder: str, kind: str, device: torch.device) -> Extractor:
    name = config.get("_class_name") or next(iter(config.get("architectures") or [""]))
    if name == "AudioJudge":
        return SoundJudge(folder, device)
    if name == "PictureJudge":
        return PictureJudge(folder, device)
    if config.get("model_type") == "clap":
        return Clap(folder, device)
    if name.endswith("ForImageClassification"):
        return Classifier(folder, device, "image")
    # transformers calls some audio classifiers "...ForSequenceClassification"
    if name.endswith(("ForAudioClassification", "ForSequenceClassification")):
        return Classifier(folder, device, "audio")
    raise InputError(
        f"{folder} holds a {name or 'model of unknown class'}; an extractor is a judge, a CLAP, or a classifier of "
        "sounds or pictures."
    )


def local_folder(source: str) -> Path:
    """The folder of a component that is named by folder or hub id; an id is fetched unless it is here already.

    Raises:
        InputError: if it cannot be had.
    """
    folder = Path(source)
    if (folder / "config.json").is_file():
        return folder
    if folder.exists() or not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", source):
        raise InputError(
            f"there is no extractor at '{source}': name a folder with config.json, or a hub id (owner/name)."
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=_FILES))
    except (OSError, ValueError) as error:  # its own errors are of these kinds
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise InputError(f"the extractor '{source}' is neither here nor to be fetched: {reason}.") from error
