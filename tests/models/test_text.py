"""Tokenizer, T5 and tau: words, batches, cuts, padding."""

import logging
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, CLIPTextModel, PreTrainedTokenizerFast, T5EncoderModel

from latentdiff.config import NewTextEncoder
from latentdiff.errors import InputError
from latentdiff.models.text import (
    MAX_TOKENS,
    Conditioning,
    concatenate,
    encode_tokens,
    load_text_encoder,
    mean_of_tokens,
    new_t5,
    new_tokenizer,
    tokenize,
)

CAPTIONS = [
    "a dog barks twice",
    "two barks of a dog",
    "barking dog, far away",
    "rain on a roof and then thunder",
    "a high piano note, played softly",
    "a low cello note, played loudly",
]
SIZES = NewTextEncoder(width=16, layers=2, heads=2, vocabulary=120)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return new_tokenizer(CAPTIONS, SIZES.vocabulary)


@pytest.fixture(scope="module")
def encoder(tokenizer: PreTrainedTokenizerFast) -> T5EncoderModel:
    torch.manual_seed(0)
    return new_t5(SIZES, len(tokenizer)).eval()


def test_vocabulary_is_bounded_and_special_tokens_are_t5s(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) <= SIZES.vocabulary
    assert tokenizer.convert_tokens_to_ids(["<pad>", "</s>", "<unk>"]) == [0, 1, 2]
    assert tokenizer("").input_ids == [1]
    assert tokenizer("a dog").input_ids[-1] == 1


def test_case_accents_and_spaces_do_not_matter(tokenizer: PreTrainedTokenizerFast) -> None:
    plain = tokenizer("a dog barks").input_ids
    for prompt in ("A DOG Barks", "  a   dog\tbarks\n", "a dög bàrks"):
        assert tokenizer(prompt).input_ids == plain, prompt


@pytest.mark.parametrize(
    "prompt",
    [
        "the quick brown fox jumps over the lazy dog",
        "pack my box with five dozen liquor jugs",
        "a Zweihänder hits a xylophone 1234567890 times",
        "it's a well-known sound",
    ],
)
def test_no_english_word_is_unknown(tokenizer: PreTrainedTokenizerFast, prompt: str) -> None:
    """Not one of these words is in the captions, which lack the letters j, q, v, x and z."""
    ids = tokenizer(prompt).input_ids
    assert tokenizer.unk_token_id not in ids
    letters = "".join(tokenizer.convert_ids_to_tokens(ids[:-1])).replace("▁", "")
    assert letters == prompt.lower().replace("ä", "a").replace(" ", "")


def test_words_that_captions_often_have_are_one_piece_each() -> None:
    """Also those that share no part with another word, as numbers do."""
    captions = [f"a dog barks {times}" for times in ("once", "twice", "three times", "four times")]
    learnt = new_tokenizer(captions * 2, 300)
    for text in captions:
        assert learnt.tokenize(text) == [f"▁{word}" for word in text.split()]


def test_marks_that_part_sentences_are_not_read(tokenizer: PreTrainedTokenizerFast) -> None:
    plain = tokenizer("three times a dog barks").input_ids
    for text in ("Three times, a dog barks.", "three times: a dog barks!", " three times ; a dog barks ... "):
        assert tokenizer(text).input_ids == plain
    assert tokenizer("well-known").input_ids != tokenizer("well known").input_ids


def test_the_same_captions_give_the_same_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    """A resumed run learns it anew: with other ids, its embeddings would belong to other pieces."""
    for _ in range(3):
        again = new_tokenizer(CAPTIONS, SIZES.vocabulary)
        assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_saved_tokenizer_gives_equal_ids(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    prompts = [*CAPTIONS, "", "A Quick FOX, jumping; 3 times?"]
    assert again.model_max_length == MAX_TOKENS
    for prompt in prompts:
        assert again(prompt).input_ids == tokenizer(prompt).input_ids, prompt
    for first, second in zip(tokenize(tokenizer, prompts), tokenize(again, prompts), strict=True):
        assert torch.equal(first, second)


def test_saved_encoder_is_bit_identical_in_plain_transformers(
    tokenizer: PreTrainedTokenizerFast, encoder: T5EncoderModel, tmp_path: Path
) -> None:
    encoder.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    plain = T5EncoderModel.from_pretrained(tmp_path).eval()
    ours, loaded = load_text_encoder(str(tmp_path))
    ids, mask = tokenize(loaded, CAPTIONS)
    with torch.no_grad():
        first = encode_tokens(encoder, ids, mask).tokens
        for other in (plain, ours.eval()):
            second = encode_tokens(other, ids, mask).tokens
            assert first is not None and second is not None and torch.equal(first, second)


def test_a_prompt_alone_equals_it_in_a_mixed_batch(tokenizer: PreTrainedTokenizerFast, encoder: T5EncoderModel) -> None:
    prompts = ["dog", "rain on a roof and then thunder, and then a high piano note", "", "two barks"]
    with torch.no_grad():
        batch = encode_tokens(encoder, *tokenize(tokenizer, prompts))
        assert batch.tokens is not None and batch.mask is not None
        for i, prompt in enumerate(prompts):
            alone = encode_tokens(encoder, *tokenize(tokenizer, [prompt])).tokens
            assert alone is not None
            length = alone.shape[1]
            assert batch.mask[i].tolist() == [1] * length + [0] * (batch.mask.shape[1] - length)
            assert (batch.tokens[i, :length] - alone[0]).abs().max() < 1e-5


def test_a_prompt_too_long_says_what_is_lost(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = "a dog barks and " * 30 + "a cello plays"
    with caplog.at_level(logging.WARNING, "latentdiff.models.text"):
        ids, mask = tokenize(tokenizer, ["a dog", prompt])
    assert ids.shape == mask.shape == (2, MAX_TOKENS)
    assert ids[1, -1] == tokenizer.eos_token_id
    (record,) = caplog.records
    message = record.getMessage()
    assert "a cello plays" in message and str(MAX_TOKENS) in message
    # What is read and what is lost are together the whole prompt.
    read = tokenizer.decode(ids[1], skip_special_tokens=True)
    lost = message.split("'", 1)[1][:-1]
    assert f"{read} {lost}".replace(" ", "") == prompt.replace(" ", "")


def test_a_prompt_that_just_fits_is_silent(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = " ".join(["dog"] * 200)
    pieces = len(tokenizer("dog").input_ids) - 1
    fits = " ".join(prompt.split()[: (MAX_TOKENS - 1) // pieces])
    assert tokenize(tokenizer, [fits])[0].shape[1] <= MAX_TOKENS
    assert not caplog.records


def part(rows: int, length: int, value: float, pooled: bool = True) -> Conditioning:
    return Conditioning(
        tokens=torch.full((rows, length, 3), value),
        mask=torch.ones(rows, length, dtype=torch.int64),
        pooled=torch.full((rows, 2), value) if pooled else None,
    )


@pytest.mark.parametrize("lengths", [(2, 5), (5, 2), (4, 4)])
def test_concatenate_pads_and_masks(lengths: tuple[int, int]) -> None:
    both = concatenate(part(2, lengths[0], 1.0), part(1, lengths[1], 2.0))
    longest = max(lengths)
    assert both.tokens is not None and both.mask is not None and both.pooled is not None
    assert both.tokens.shape == (3, longest, 3)
    assert both.mask.dtype == torch.int64
    for row, (length, value) in enumerate([(lengths[0], 1.0)] * 2 + [(lengths[1], 2.0)]):
        assert both.mask[row].tolist() == [1] * length + [0] * (longest - length)
        assert torch.equal(both.tokens[row, :length], torch.full((length, 3), value))
        assert torch.equal(both.tokens[row, length:], torch.zeros(longest - length, 3))
    assert both.pooled[:, 0].tolist() == [1.0, 1.0, 2.0]


def test_concatenate_of_one_kind_only() -> None:
    pooled = concatenate(Conditioning(pooled=torch.ones(1, 2)), Conditioning(pooled=torch.zeros(2, 2)))
    assert pooled.tokens is None and pooled.mask is None
    assert pooled.pooled is not None and pooled.pooled.shape == (3, 2)
    tokens = concatenate(part(1, 2, 1.0, pooled=False), part(1, 3, 1.0, pooled=False))
    assert tokens.pooled is None


def test_rows_and_repeats() -> None:
    tau = concatenate(part(1, 2, 1.0), part(1, 2, 2.0))
    assert tau.tokens is not None
    repeated = tau.repeat(3)
    assert repeated.tokens is not None and repeated.pooled is not None and repeated.mask is not None
    assert repeated.pooled[:, 0].tolist() == [1, 1, 1, 2, 2, 2]
    assert repeated.mask.shape == (6, 2)
    second = repeated.rows(slice(3, None))
    assert second.tokens is not None and torch.equal(second.tokens, tau.tokens[1:].repeat(3, 1, 1))
    assert set(tau.unet_arguments()) == {"encoder_hidden_states", "encoder_attention_mask", "class_labels"}
    assert Conditioning(pooled=torch.ones(1, 2)).repeat(2).tokens is None


def test_mean_of_tokens_leaves_padding_out() -> None:
    tokens = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]]])
    tau = mean_of_tokens(Conditioning(tokens, torch.tensor([[1, 1, 0]])))
    torch.testing.assert_close(tau.pooled, torch.tensor([[2.0, 3.0]]))
    assert tau.tokens is tokens


def test_text_encoders_by_what_their_folder_says(tmp_path: Path) -> None:
    from tests.interop import published

    for part in (published.clip_text(), published.clip_tokenizer()):
        part.save_pretrained(tmp_path / "clip")
    encoder, tokenizer = load_text_encoder(str(tmp_path / "clip"))
    assert isinstance(encoder, CLIPTextModel) and tokenizer("dog").input_ids[0] == 0
    published.clap(16).save_pretrained(tmp_path / "clap")
    with pytest.raises(InputError, match="holds a model of the type clap; a text encoder is one of t5, clip"):
        load_text_encoder(str(tmp_path / "clap"))
