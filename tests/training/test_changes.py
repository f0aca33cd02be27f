"""A configuration that is not as it was when a run goes on: what is said, what is refused, what goes through."""

import logging
from pathlib import Path

import pytest

from latentdiff.config import save_config
from latentdiff.errors import InputError
from latentdiff.training.changes import HARMLESS, review_changes
from tests.training.conftest import debug_config, train


def review(tones: Path, tmp_path: Path, *overrides: str) -> None:
    save_config(debug_config("diffusion", tones, tmp_path / "run"), tmp_path / "config.yaml")
    review_changes(debug_config("diffusion", tones, tmp_path / "run", *overrides), tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.lr=0.5", "optimizer.lr was 0.001 and is 0.5"),
        ("seed=3", "seed was 0 and is 3"),
        ("train.batch_size=8", "train.batch_size was 4 and is 8"),
        ("unet.block_out_channels=[16, 48]", r"unet.block_out_channels was \[16, 32\] and is \[16, 48\]"),
        ("text_encoder=null", "text_encoder was {.*} and is None"),
        ("data.seconds=1.0", "data.seconds was 0.512 and is 1.0"),
    ],
)
def test_what_changes_the_result_must_be_asked_for(
    override: str, words: str, tones: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InputError, match=f"trained with another configuration: {words}.*train.accept_changes=true"):
        review(tones, tmp_path, override)
    review(tones, tmp_path, override, "train.accept_changes=true")
    assert override.partition("=")[0] in caplog.text


@pytest.mark.parametrize(
    "override", ["train.max_steps=99", "train.log_every=1", "data.num_workers=2", "train.timeout=5", "default_steps=9"]
)
def test_what_does_not_goes_through_and_is_said(
    override: str, tones: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert override.partition("=")[0] in HARMLESS
    with caplog.at_level(logging.WARNING):
        review(tones, tmp_path, override)
    (said,) = caplog.messages
    assert override.partition("=")[0] in said


def test_nothing_is_said_where_nothing_changed_or_only_the_shares(
    tones: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    review(tones, tmp_path)
    review(tones, tmp_path, "train.batch_size=1", "train.gradient_accumulation=4")
    assert not caplog.messages


def test_a_schedule_that_looks_at_the_length_is_said(
    tones: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_config(debug_config("vae", tones, tmp_path), tmp_path / "config.yaml")
    review_changes(debug_config("vae", tones, tmp_path, "train.max_steps=7"), tmp_path / "config.yaml")
    assert "optimizer.schedule=cosine now follows" in caplog.text


def test_harmless_keys_exist(tones: Path, tmp_path: Path) -> None:
    for key in HARMLESS:
        section: object = debug_config("diffusion", tones, tmp_path)
        for part in key.split("."):
            section = getattr(section, part)


def test_a_run_is_held_to_the_configuration_of_its_checkpoints(tones: Path, tmp_path: Path) -> None:
    run = train(debug_config("judge", tones, tmp_path / "run", "train.max_steps=1", "train.validate_every=100"))
    kept = (run / "config.yaml").read_text()
    with pytest.raises(InputError, match="optimizer.lr was"):
        train(debug_config("judge", tones, run, "optimizer.lr=0.5", "train.max_steps=2"))
    assert (run / "config.yaml").read_text() == kept
    train(debug_config("judge", tones, run, "train.max_steps=2", "train.validate_every=100"))
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["step-00000001", "step-00000002"]
