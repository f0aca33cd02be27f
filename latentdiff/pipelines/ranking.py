"""Which of several sounds fits its prompt best: by the cosine of CLAP's two embeddings (Wu et al. 2023)."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import ClapFeatureExtractor, ClapModel, PreTrainedTokenizerBase

from latentdiff.errors import InputError
from latentdiff.media.audio import resample
from latentdiff.models.clap import audio_features, embed_audio, embed_text, load_clap
from latentdiff.models.loading import require_component
from latentdiff.models.text import tokenize


@dataclass(frozen=True)
class Ranker:
    """A whole CLAP, text and audio half."""

    clap: ClapModel
    tokenizer: PreTrainedTokenizerBase
    feature_extractor: ClapFeatureExtractor

    @classmethod
    def from_pretrained(cls, source: str) -> Self:
        """A CLAP by folder or hub id.

        Raises:
            InputError: if there is none.
        """
        require_component(source, "config.json")
        try:
            clap, tokenizer, features = load_clap(source)
        except (OSError, ValueError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:200].rstrip(".")
            raise InputError(f"the ranker {source} is no CLAP that can be loaded: {reason}.") from error
        return cls(clap.eval(), tokenizer, features)

    @torch.no_grad()
    def __call__(self, waves: np.ndarray, sampling_rate: int, prompts: list[str]) -> np.ndarray:
        """Cosine (B,) of each wave (B, samples) and its own prompt; what CLAP's window does not hold is not heard."""
        rate = int(self.feature_extractor.sampling_rate)
        heard = [resample(wave, sampling_rate, rate) for wave in waves]
        sounds = embed_audio(self.clap, audio_features(self.feature_extractor, heard).to(self.clap.dtype))
        texts = embed_text(self.clap, *tokenize(self.tokenizer, prompts))
        scores: np.ndarray = (sounds * texts).sum(1).float().cpu().numpy()
        return scores


def best_of(scores: np.ndarray, candidates: int) -> np.ndarray:
    """Where among all (B * candidates,) the best of each medium's candidates are: (B,)."""
    groups = scores.reshape(-1, candidates)
    places: np.ndarray = np.arange(len(groups)) * candidates + groups.argmax(1)
    return places
