"""Words that no caption has, found by a sentence encoder."""

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from latentdiff import InputError
from latentdiff.cli import main
from latentdiff.data.synonyms import find_synonyms, read_words
from latentdiff.models.sentences import SentenceEncoder
from latentdiff.models.vocabulary import Vocabulary

LIKE = {"hum": "tone", "shrill": "high", "deep": "low"}
CAPTIONS = ["a high tone", "A low tone!"] * 5


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT without layers, to which some words mean nearly the same, and a chair nothing that sounds."""
    folder = tmp_path_factory.mktemp("sentences")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", *LIKE, *LIKE.values(), "chair"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=len(words), hidden_size=64, num_hidden_layers=0, num_attention_heads=2))
    table = model.embeddings.word_embeddings.weight.data
    table.copy_(torch.randn_like(table))
    for word, like in LIKE.items():
        table[words.index(word)] = table[words.index(like)] + 0.3 * torch.randn(64)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def word_list(tmp_path: Path) -> Path:
    file = tmp_path / "list.txt"
    file.write_text("\n".join([*LIKE, "chair", "Paris", "it's", "tone", "at", "are", "without"]) + "\n")
    return file


def test_the_list_is_read_without_names_and_short_words(word_list: Path) -> None:
    assert read_words(word_list) == sorted([*LIKE, "chair", "tone", "are", "without"])


def test_the_nearest_word_of_the_captions_is_found(encoder: Path, word_list: Path) -> None:
    """But not of "are" and "without", which say of nothing what it is."""
    found = find_synonyms(CAPTIONS, read_words(word_list), SentenceEncoder(str(encoder)), 0.85)
    assert found == Vocabulary(frozenset({"a", "high", "low", "tone"}), LIKE, {"chair": found.far["chair"]})


def test_embeddings_do_not_depend_on_the_batch(encoder: Path) -> None:
    embed = SentenceEncoder(str(encoder))
    together = embed(["a high tone", "chair"])
    assert torch.allclose(together[1:], embed(["chair"]), atol=1e-6)
    assert torch.allclose(together.norm(dim=1), torch.ones(2))


def test_a_model_reads_them_and_says_so(
    encoder: Path, word_list: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text("{}")
    rows = [json.dumps({"file_name": f"{i}.wav", "text": text}) for i, text in enumerate(CAPTIONS)]
    (tmp_path / "sounds").mkdir()
    (tmp_path / "sounds" / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    for i in range(len(CAPTIONS)):
        (tmp_path / "sounds" / f"{i}.wav").touch()
    line = ["words", str(tmp_path / "model"), "--data", str(tmp_path / "sounds"), "--encoder", str(encoder)]
    assert main([*line, "--list", str(word_list), "--nearness", "0.85"]) == 0
    assert "4 words of captions, 3 read as one of them, 1 with the nearest only" in capsys.readouterr().out
    vocabulary = Vocabulary.load(tmp_path / "model")
    assert vocabulary is not None and vocabulary.read("a shrill hum") == "a high tone"


def test_what_cannot_be_learnt_from_is_said(encoder: Path, word_list: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the words of"):
        read_words(tmp_path / "none.txt")
    (tmp_path / "names.txt").write_text("Paris\n\n")
    with pytest.raises(InputError, match="holds no word in small letters"):
        read_words(tmp_path / "names.txt")
    with pytest.raises(InputError, match="no word stands in 5 captions or more"):
        find_synonyms(["a dog"], ["hound"], SentenceEncoder(str(encoder)), 0.5)
    with pytest.raises(InputError, match="cannot be loaded"):
        SentenceEncoder(str(tmp_path))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": false}')
    with pytest.raises(InputError, match="does not average its tokens"):
        SentenceEncoder(str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere is no pipeline folder"),
        (["MODEL", "--nearness", "2"], "--nearness is 2"),
    ],
)
def test_bad_arguments_are_one_sentence(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    arguments = [str(tmp_path) if word == "MODEL" else word for word in arguments]
    assert main(["words", *arguments, "--data", "x", "--encoder", "y", "--list", "z"]) == 2
    assert said in capsys.readouterr().err
