"""A finished vocoder goes on learning, from where it was and on the mel it was made for."""

from pathlib import Path

import pytest
import torch

from latentdiff.errors import InputError
from latentdiff.models.loading import load_vocoder
from latentdiff.models.vocoder import imposed_iterations
from latentdiff.training.recipes.vocoder import VocoderTraining
from tests.training.conftest import debug_config, train


def go_on(first: Path, tones: Path, output: Path, *overrides: str) -> Path:
    """The debug recipe from a finished vocoder, which brings the sizes."""
    return train(debug_config("vocoder", tones, output, "generator=null", f"init={first}", *overrides))


def test_it_learns_from_where_it_was(stages: dict[str, Path], tones: Path, tmp_path: Path) -> None:
    """After three small steps it is all but where it was, its normalisation too; a new one begins elsewhere."""
    first = stages["vocoder"] / "vocoder"
    small = ("train.max_steps=3", "optimizer.lr=1e-5", "adversarial_start=0", "mel_iterations=3")
    out = go_on(first, tones, tmp_path / "more", *small)
    before, after = load_vocoder(str(first)), load_vocoder(str(out / "vocoder"))
    moved = {n: float((w - after.state_dict()[n]).abs().max()) for n, w in before.state_dict().items()}
    assert moved["mean"] == moved["scale"] == 0
    assert 0 < max(moved.values()) < 1e-3
    assert (imposed_iterations(before), imposed_iterations(after)) == (2, 3)


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["mel=audioldm-16k-64"], "do not speak the same mel"),
        (["mel_iterations=0", "training_mel_iterations=0"], "mel_iterations is 0, and .* with 2: .* Set it, to 2 for"),
    ],
)
def test_a_vocoder_of_another_output_is_refused(
    overrides: list[str], complaint: str, stages: dict[str, Path], tones: Path, tmp_path: Path
) -> None:
    finished = ["generator=null", f"init={stages['vocoder'] / 'vocoder'}"]
    config = debug_config("vocoder", tones, tmp_path / "out", *finished, *overrides)
    with pytest.raises(InputError, match=complaint):
        VocoderTraining(config, torch.device("cpu"))


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["generator=null"], "generator is null, which only init can stand for"),
        (["init=runs/vocoder/vocoder"], "generator comes from init, runs/vocoder/vocoder; leave it out"),
    ],
)
def test_keys_that_do_not_go_together(overrides: list[str], complaint: str, tones: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=complaint):
        debug_config("vocoder", tones, tmp_path / "out", *overrides)


def test_mel_iterations_go_together(tones: Path, tmp_path: Path) -> None:
    config = debug_config("vocoder", tones, tmp_path, "training_mel_iterations=0")
    with pytest.raises(InputError, match="mel_iterations and training_mel_iterations go together"):
        VocoderTraining(config, torch.device("cpu"))
