"""The latent cache: what it holds, when it is used again, and when it is not."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from latentdiff.data.folder import Row
from latentdiff.data.items import Draw, WaveItems
from latentdiff.data.latents import LatentItems, encode_rows

RATE, WINDOW = 8000, 2000
KEY = {"vae": "abc", "mel": {"n_mels": 64}}


class Encoder:
    """Stands for a VAE: its mean keeps the window's first and last sample; counts what it is given."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.windows, self.fail_at = 0, fail_at

    def __call__(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        self.windows += len(wave)
        if self.fail_at is not None and self.windows > self.fail_at:
            raise KeyboardInterrupt
        mean = torch.stack([wave[:, 0], wave[:, -1]], 1)[:, :, None, None]
        return mean, torch.full_like(mean, 0.1)


def write(path: Path, seconds: float) -> Path:
    """Samples say at what second they stand, over ten."""
    samples = round(seconds * RATE)
    soundfile.write(path, np.arange(samples, dtype=np.float32) / RATE / 10, RATE, subtype="FLOAT")
    return path


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    """A window lasts 0.25 s: less than one, exactly one, three and a half, a hundred of them."""
    lengths = {"short": 0.1, "exact": 0.25, "long": 0.875, "endless": 25.0}
    return [Row(write(tmp_path / f"{n}.wav", s), (f"a {n} one", f"{n}")) for n, s in lengths.items()]


def encode(rows: list[Row], folder: Path, encoder: Encoder, key: Any = KEY, window: int = WINDOW) -> LatentItems:
    return encode_rows(WaveItems(rows, RATE, window), encoder, folder, key, torch.device("cpu"))


def test_windows_cover_each_file(rows: list[Row], tmp_path: Path) -> None:
    items = encode(rows, tmp_path / "cache", Encoder())
    assert torch.bincount(items.owner).tolist() == [1, 1, 4, 16]
    assert len(items) == 22
    begins, ends = (items.mean[:, i, 0, 0] * 10 for i in (0, 1))
    long = items.owner == 2
    assert begins[long].tolist() == pytest.approx([0.0, 0.2083, 0.4167, 0.625], abs=1e-3)
    assert float(ends[long][-1]) == pytest.approx(0.875, abs=2e-3)
    assert (begins[long][1:] <= ends[long][:-1]).all()  # nothing between two windows is left out
    endless = items.owner == 3
    assert float(begins[endless][0]) == 0 and float(ends[endless][-1]) == pytest.approx(25.0, abs=0.02)


def test_items_carry_mean_deviation_and_a_caption(rows: list[Row], tmp_path: Path) -> None:
    items = encode(rows, tmp_path / "cache", Encoder())
    last = len(items) - 1
    item = items[Draw(last, 5)]
    assert item["row"] == 3 and item["mean"].shape == item["deviation"].shape == (2, 1, 1)
    assert item["mean"].dtype == torch.float32
    assert torch.equal(item["mean"], items.mean[last])
    assert torch.allclose(item["deviation"], torch.tensor(0.1), atol=1e-3)
    assert items[Draw(last, 5)]["caption"] == item["caption"]
    assert {items[Draw(last, seed)]["caption"] for seed in range(20)} == set(rows[3].captions)


def test_a_second_call_encodes_nothing(rows: list[Row], tmp_path: Path) -> None:
    first = encode(rows, tmp_path / "cache", Encoder())
    again = Encoder()
    second = encode(rows, tmp_path / "cache", again)
    assert again.windows == 0
    for name in ("owner", "mean", "deviation"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_other_captions_do_not_encode_again(rows: list[Row], tmp_path: Path) -> None:
    encode(rows, tmp_path / "cache", Encoder())
    again = Encoder()
    items = encode([Row(row.path, ("new",)) for row in rows], tmp_path / "cache", again)
    assert again.windows == 0 and items[Draw(0, 0)]["caption"] == "new"


def test_a_changed_file_is_encoded_again(rows: list[Row], tmp_path: Path) -> None:
    before = encode(rows, tmp_path / "cache", Encoder())
    write(rows[1].path, 0.2)
    again = Encoder()
    after = encode(rows, tmp_path / "cache", again)
    assert again.windows == 22
    assert not torch.equal(before.mean, after.mean)


def test_a_file_of_equal_size_but_newer_is_encoded_again(rows: list[Row], tmp_path: Path) -> None:
    encode(rows, tmp_path / "cache", Encoder())
    facts = rows[1].path.stat()
    os.utime(rows[1].path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1_000_000))
    again = Encoder()
    encode(rows, tmp_path / "cache", again)
    assert again.windows == 22


@pytest.mark.parametrize(
    "change",
    [
        {"key": KEY | {"vae": "abd"}},
        {"key": KEY | {"mel": {"n_mels": 80}}},
        {"window": WINDOW + 1},
    ],
)
def test_another_vae_mel_or_window_is_encoded_again(rows: list[Row], tmp_path: Path, change: dict[str, Any]) -> None:
    encode(rows, tmp_path / "cache", Encoder())
    again = Encoder()
    encode(rows, tmp_path / "cache", again, **change)
    assert again.windows > 0
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_rows_removed_or_reordered_are_encoded_again(rows: list[Row], tmp_path: Path) -> None:
    encode(rows, tmp_path / "cache", Encoder())
    for other in (rows[:3], rows[::-1]):
        again = Encoder()
        items = encode(other, tmp_path / "cache", again)
        assert again.windows == len(items)


def test_a_run_killed_half_way_leaves_nothing_that_is_read(tmp_path: Path) -> None:
    rows = [Row(write(tmp_path / f"{i}.wav", 0.25), ("a",)) for i in range(40)]  # two batches
    with pytest.raises(KeyboardInterrupt):
        encode(rows, tmp_path / "cache", Encoder(fail_at=32))
    assert not list((tmp_path / "cache").glob("*.safetensors"))
    again = Encoder()
    assert len(encode(rows, tmp_path / "cache", again)) == again.windows == 40


def test_a_run_killed_while_writing_leaves_nothing_that_is_read(
    rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(tensors: dict[str, Tensor], path: Path) -> None:
        path.write_bytes(b"\x00" * 100)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("latentdiff.data.latents.save_file", half)
        with pytest.raises(KeyboardInterrupt):
            encode(rows, tmp_path / "cache", Encoder())
    assert not list((tmp_path / "cache").glob("*.safetensors"))
    again = Encoder()
    items = encode(rows, tmp_path / "cache", again)
    assert again.windows == len(items) == 22
