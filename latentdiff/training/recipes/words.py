"""Stage ``words``: a finished pipeline's text encoder learns words that its captions never had, without any media.

A sentence encoder says which word of the captions a new word is like. The student, a copy of the text encoder, is to
say of a caption with the new word what its teacher says of the caption as it stood: the denoiser hears what it knows.
"""

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from latentdiff.config import WordsRecipe
from latentdiff.data.items import Draw, split_usable
from latentdiff.data.synonyms import Synonym, find_synonyms, load_synonyms, read_words
from latentdiff.errors import InputError
from latentdiff.models.sentences import SentenceEncoder
from latentdiff.models.text import encode_tokens, mean_of_tokens
from latentdiff.models.vocabulary import Vocabulary, split_words
from latentdiff.training.recipe import Losses, Recipe, Step
from latentdiff.training.teacher import load_teacher

ALONE = 6
"""New words without a caption around them that come with each caption: a word is short, and there are many."""
EXCHANGED = 0.8
"""Share of the captions with a new word; the others are to mean what they meant."""


class Pair(NamedTuple):
    """Two wordings, word by word: the first one is known, the second has new words in some places."""

    known: list[str]
    new: list[str]


class WordItems(Dataset[dict[str, Any]]):
    """Captions, of which some words are exchanged for new ones, and new words alone.

    Args:
        captions: as they are.
        synonyms: the new words to learn.
    """

    def __init__(self, captions: Sequence[str], synonyms: Sequence[Synonym]) -> None:
        self.captions, self.synonyms = captions, synonyms
        self.new: dict[str, list[str]] = defaultdict(list)
        for synonym in synonyms:
            self.new[synonym.known].append(synonym.word)

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        rng = np.random.default_rng(draw.seed)
        alone = [self.synonyms[int(index)] for index in rng.integers(len(self.synonyms), size=ALONE)]
        exchange = float(rng.random()) < EXCHANGED
        return {
            "caption": self.exchange(self.captions[draw.row], rng if exchange else None),
            "alone": [Pair([synonym.known], [synonym.word]) for synonym in alone],
        }

    def exchange(self, caption: str, rng: np.random.Generator | None) -> Pair:
        """The caption with one or two of its words exchanged; as it is without random numbers, or such words."""
        words = split_words(caption)
        new, places = list(words), [place for place, word in enumerate(words) if word in self.new]
        if rng is not None and places:
            for place in rng.permutation(places)[: rng.integers(1, 3)]:
                choices = self.new[words[place]]
                new[place] = choices[int(rng.integers(len(choices)))]
        return Pair(words, new)


class WordsTraining(Recipe[WordsRecipe]):
    """min E |student(new wording) - teacher(known wording)|^2 over tokens and over their means.

    Each piece of a new word is to be the mean of the known word's pieces; all other tokens are to stay.
    """

    def __init__(self, config: WordsRecipe, device: torch.device) -> None:
        super().__init__(config, device)
        words = read_words(config.words)
        self.pipeline, _ = load_teacher(config.teacher, config.data, device)
        if not isinstance(self.pipeline.text_encoder, T5EncoderModel) or self.pipeline.tokenizer is None:
            raise InputError(f"{config.teacher} has no T5 text encoder, which is what learns words; name another one.")
        self.teacher, self.tokenizer = self.pipeline.text_encoder, self.pipeline.tokenizer
        train, held_out = ([text for row in rows for text in row.captions] for rows in split_usable(config.data))
        found = load_synonyms(
            config.output / "synonyms.jsonl",
            lambda: find_synonyms(train, words, SentenceEncoder(config.sentence_encoder)),
        )
        learnt = [synonym for synonym in found if synonym.nearness >= config.nearness]
        if not learnt:
            raise InputError(f"{config.words} has no word that is as near to a caption's as {config.nearness:g}.")
        far = {synonym.word: synonym.known for synonym in found if synonym.nearness < config.nearness}
        known = Vocabulary.of_captions(train).known
        self.pipeline.vocabulary = Vocabulary(known, {synonym.word: synonym.known for synonym in learnt}, far)
        self.words = WordItems(train, learnt)
        self.held_out = held_out[:256]
        self.student = copy.deepcopy(self.teacher).requires_grad_(True)
        for encoder in (self.teacher, self.student):  # the fused attention's backward pass is slow on a CPU
            encoder.set_attn_implementation("eager")
        self.networks = {"text_encoder": self.student}
        self.phases, self.averaged = {"text_encoder": ("text_encoder",)}, ("text_encoder",)
        self.weights = {"captions": 1.0, "alone": 1.0}

    @property
    def items(self) -> Dataset[dict[str, Any]]:
        return self.words

    def losses(self, batch: dict[str, Any], step: Step) -> Iterator[tuple[str, Losses]]:
        alone = [pair for pairs in batch["alone"] for pair in pairs]
        yield "text_encoder", {"captions": self._loss(batch["caption"]), "alone": self._loss(alone)}

    def _loss(self, pairs: list[Pair]) -> Tensor:
        """Squared errors of the tokens and of their mean, in units of the teacher's variance."""
        known, new, moved = (part.to(self.device) for part in aligned(self.tokenizer, pairs))
        with torch.no_grad():
            told = mean_of_tokens(encode_tokens(self.teacher, known, known != self._padding))
        student = self.networks["text_encoder"]
        mask = new != self._padding
        said = mean_of_tokens(encode_tokens(student, new, mask))
        assert told.tokens is not None and told.mask is not None and told.pooled is not None
        assert said.tokens is not None and said.pooled is not None
        spread = told.tokens[told.mask].var()
        tokens = (said.tokens - moved @ told.tokens).square().mean(-1)[mask].mean()
        return (tokens + (said.pooled - told.pooled).square().mean()) / spread

    @property
    def _padding(self) -> int:
        return int(self.tokenizer.pad_token_id)

    def validate(self, folder: Path) -> dict[str, float]:
        """Cosines between what is said of held-out captions and what the teacher says of them as they stand.

        ``kept`` of the captions themselves, ``learnt`` with new words in them; ``teacher`` is the teacher's own for
        the latter, where learning begins.
        """
        rng = np.random.default_rng(0)
        plain = [self.words.exchange(text, None) for text in self.held_out]
        pairs = [self.words.exchange(text, rng) for text in self.held_out]
        lines = [f"{' '.join(pair.known)} -> {' '.join(pair.new)}" for pair in pairs]
        (folder / "exchanged.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return {
            "kept": self._agreement(self.student, plain),
            "learnt": self._agreement(self.student, pairs),
            "teacher": self._agreement(self.teacher, pairs),
        }

    @torch.no_grad()
    def _agreement(self, encoder: T5EncoderModel, pairs: list[Pair]) -> float:
        known, new, _ = (part.to(self.device) for part in aligned(self.tokenizer, pairs))
        told = mean_of_tokens(encode_tokens(self.teacher, known, known != self._padding)).pooled
        said = mean_of_tokens(encode_tokens(encoder, new, new != self._padding)).pooled
        assert told is not None and said is not None
        return float(torch.cosine_similarity(said, told).mean())

    def export(self, folder: Path) -> None:
        """``OUTPUT/pipeline``: the teacher's, with the text encoder exchanged."""
        self.pipeline.register_modules(text_encoder=self.student)
        self.pipeline.save_pretrained(folder / "pipeline")


def aligned(tokenizer: PreTrainedTokenizerBase, pairs: list[Pair]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids of both wordings, and which tokens of the first each token of the second stands for.

    Returns:
        Known ids (B, N), new ids (B, M), both padded, and weights (B, M, N), whose rows sum to one where a token is
        real: a word's own pieces stand for themselves, those of a new word for the mean of the known word's.
    """
    known, new, weights = [], [], []
    for pair in pairs:
        first = [_pieces(tokenizer, word) for word in pair.known]
        second = [_pieces(tokenizer, word) for word in pair.new]
        blocks = [
            torch.eye(len(old)) if old == fresh else torch.full((len(fresh), len(old)), 1 / len(old))
            for old, fresh in zip(first, second, strict=True)
        ]
        known.append(torch.tensor([*sum(first, []), tokenizer.eos_token_id]))
        new.append(torch.tensor([*sum(second, []), tokenizer.eos_token_id]))
        weights.append(torch.block_diag(*blocks, torch.ones(1, 1)))
    whole = torch.zeros(len(pairs), max(map(len, new)), max(map(len, known)))
    for row, block in zip(whole, weights, strict=True):
        row[: block.shape[0], : block.shape[1]] = block
    padded = [pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id) for ids in (known, new)]
    return padded[0], padded[1], whole


def _pieces(tokenizer: PreTrainedTokenizerBase, word: str) -> list[int]:
    """Ids of a word, which are the same wherever it stands."""
    ids: list[int] = tokenizer(word, add_special_tokens=False).input_ids
    return ids
