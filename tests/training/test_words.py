"""A text encoder learns words that its captions never had."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, BertTokenizer

from latentdiff import InputError, TextToAudioPipeline
from latentdiff.data.synonyms import Synonym, find_synonyms, read_words
from latentdiff.models.sentences import SentenceEncoder
from latentdiff.models.text import encode_tokens, mean_of_tokens, tokenize
from latentdiff.models.vocabulary import Vocabulary
from latentdiff.training.recipes import RECIPES
from latentdiff.training.recipes.words import Pair, WordItems, WordsTraining, aligned
from tests.training.conftest import debug_config, teacher_part, train

LIKE = {"hum": "tone", "shrill": "high", "deep": "low"}


@pytest.fixture(scope="module")
def sentence_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT without layers, to which some words mean nearly the same, and a chair nothing that sounds."""
    folder = tmp_path_factory.mktemp("sentences")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", ",", *LIKE, *LIKE.values(), "chair"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(words), hidden_size=64, num_hidden_layers=0, num_attention_heads=2)
    model = BertModel(config)
    table = model.embeddings.word_embeddings.weight.data
    table.copy_(torch.randn_like(table))
    for word, like in LIKE.items():
        table[words.index(word)] = table[words.index(like)] + 0.3 * torch.randn(64)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def parts(sentence_encoder: Path, stages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    words = tmp_path_factory.mktemp("words") / "words.txt"
    words.write_text("\n".join([*LIKE, "chair", "Paris", "it's", "tone"]) + "\n")
    return [f"sentence_encoder={sentence_encoder}", f"words={words}", teacher_part(stages)]


@pytest.fixture(scope="module")
def learnt(tones: Path, parts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    more = ["train.max_steps=80", "train.checkpoint_every=80", "train.validate_every=80", "nearness=0.85"]
    return train(debug_config("words", tones, tmp_path_factory.mktemp("learnt"), *parts, *more))


def pooled(pipe: Any, texts: Sequence[str]) -> torch.Tensor:
    with torch.no_grad():
        tau = mean_of_tokens(encode_tokens(pipe.text_encoder, *tokenize(pipe.tokenizer, list(texts))))
    assert tau.pooled is not None
    return tau.pooled


def test_a_new_word_is_heard_as_the_one_that_it_is_like(learnt: Path, stages: dict[str, Path]) -> None:
    teacher = TextToAudioPipeline.from_pretrained(stages["diffusion"] / "pipeline")
    student = TextToAudioPipeline.from_pretrained(learnt / "pipeline")
    known = pooled(teacher, ["a high tone", "a low tone"])
    before = (pooled(teacher, ["a shrill hum", "a deep hum"]) - known).norm(dim=1)
    after = (pooled(student, ["a shrill hum", "a deep hum"]) - known).norm(dim=1)
    assert (after < 0.5 * before).all()
    assert ((pooled(student, ["a high tone", "a low tone"]) - known).norm(dim=1) < 0.5 * before).all()


def test_nothing_else_moves_and_the_words_are_kept(learnt: Path, stages: dict[str, Path]) -> None:
    teacher, student = stages["diffusion"] / "pipeline", learnt / "pipeline"
    for part in ("unet", "vae"):
        one, other = (load_file(root / part / "diffusion_pytorch_model.safetensors") for root in (teacher, student))
        assert all(torch.equal(one[name], other[name]) for name in one)
    vocabulary = Vocabulary.load(student)
    assert vocabulary == Vocabulary(frozenset({"a", "low", "high", "tone"}), LIKE, {"chair": vocabulary.far["chair"]})
    assert Vocabulary.load(teacher) == Vocabulary(vocabulary.known, {}, {})


def test_resumed_equals_unbroken(tones: Path, parts: list[str], tmp_path: Path, one_thread: None) -> None:
    whole = train(debug_config("words", tones, tmp_path / "whole", *parts))
    train(debug_config("words", tones, tmp_path / "broken", *parts, "train.max_steps=3"))
    again = train(debug_config("words", tones, tmp_path / "broken", *parts, "train.accept_changes=true"))
    file = "pipeline/text_encoder/model.safetensors"
    one, other = load_file(whole / file), load_file(again / file)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_tokens_stand_for_those_of_the_known_word() -> None:
    class Letters:
        """A tokenizer with a piece for each letter."""

        pad_token_id, eos_token_id = 0, 1

        def __call__(self, word: str, add_special_tokens: bool) -> Any:
            return type("", (), {"input_ids": [ord(letter) for letter in word]})

    tokenizer: Any = Letters()
    pairs = [Pair(["ab", "c"], ["xyz", "c"]), Pair(["a"], ["a"])]
    known, new, weights = aligned(tokenizer, pairs)
    assert known.tolist() == [[97, 98, 99, 1], [97, 1, 0, 0]] and new[0].tolist() == [120, 121, 122, 99, 1]
    assert weights[0].tolist() == [[0.5, 0.5, 0, 0]] * 3 + [[0, 0, 1, 0], [0, 0, 0, 1]]
    assert weights[1].tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0] * 4, [0] * 4, [0] * 4]


def test_one_or_two_words_of_a_caption_are_exchanged() -> None:
    import numpy as np

    items = WordItems(["a dog barks, a dog runs"], [Synonym("hound", "dog", 0.8), Synonym("yaps", "barks", 0.7)])
    changed = []
    for seed in range(20):
        pair = items.exchange(items.captions[0], np.random.default_rng(seed))
        changed.append(sum(one != other for one, other in zip(*pair, strict=True)))
        assert {other for one, other in zip(*pair, strict=True) if one != other} <= {"hound", "yaps"}
    assert set(changed) == {1, 2}
    assert items.exchange("A cat.", np.random.default_rng(0)) == Pair(["a", "cat", "."], ["a", "cat", "."])


def test_the_nearest_word_of_the_captions_is_found(sentence_encoder: Path) -> None:
    found = find_synonyms(["a high tone", "a low tone"] * 3, [*LIKE, "tone"], SentenceEncoder(str(sentence_encoder)))
    assert {synonym.word: synonym.known for synonym in found} == LIKE
    assert all(0.85 < synonym.nearness <= 1 for synonym in found)


def test_what_cannot_be_learnt_from_is_said(
    tones: Path, parts: list[str], tmp_path: Path, sentence_encoder: Path
) -> None:
    def refused(*overrides: str) -> str:
        config = debug_config("words", tones, tmp_path / "out", *parts, *overrides)
        with pytest.raises(InputError) as error:
            RECIPES["words"](config, torch.device("cpu"))
        return str(error.value)

    assert "cannot read the words of" in refused(f"words={tmp_path / 'none.txt'}")
    assert "cannot be loaded" in refused(f"sentence_encoder={tmp_path}")
    assert "has no word that is as near to a caption's as 0.999" in refused("nearness=0.999")
    (tmp_path / "names.txt").write_text("Paris\n\n")
    with pytest.raises(InputError, match="holds no word in small letters"):
        read_words(tmp_path / "names.txt")
    first = shutil.copytree(sentence_encoder, tmp_path / "first")
    (first / "1_Pooling").mkdir()
    (first / "1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": false}')
    with pytest.raises(InputError, match="does not average its tokens"):
        SentenceEncoder(str(first))


def test_the_recipe_is_one_of_the_loop(tones: Path, parts: list[str], tmp_path: Path) -> None:
    recipe = RECIPES["words"](debug_config("words", tones, tmp_path, *parts), torch.device("cpu"))
    assert isinstance(recipe, WordsTraining) and len(recipe.items) == 2 * 10
    assert recipe.validate(tmp_path)["kept"] == pytest.approx(1.0)
