"""Published sentence encoders (all-MiniLM and its kind), which know far more words than any folder's captions have."""

import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from latentdiff.errors import InputError

_AT_ONCE = 256


class SentenceEncoder:
    """Texts -> embeddings of unit length, the mean over the real tokens (Reimers and Gurevych 2019, section 3).

    Args:
        source: folder or hub id of a sentence-transformers model.

    Raises:
        InputError: if there is none, or one that does not take the mean.
    """

    def __init__(self, source: str) -> None:
        pooling = Path(source) / "1_Pooling" / "config.json"
        if pooling.is_file() and not json.loads(pooling.read_text(encoding="utf-8")).get("pooling_mode_mean_tokens"):
            raise InputError(f"{source} does not average its tokens; name a sentence encoder that does.")
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(source)
            self.model = AutoModel.from_pretrained(source).float().eval()
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200].rstrip(".")
            raise InputError(f"the sentence encoder {source} cannot be loaded: {reason}.") from error

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> Tensor:
        """(B, D) of B texts."""
        parts = [self._embed(texts[start : start + _AT_ONCE]) for start in range(0, len(texts), _AT_ONCE)]
        return torch.cat(parts)

    def _embed(self, texts: list[str]) -> Tensor:
        batch = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        states = self.model(**batch).last_hidden_state
        real = batch.attention_mask[..., None].to(states.dtype)
        return torch.nn.functional.normalize((states * real).sum(1) / real.sum(1), dim=-1)
