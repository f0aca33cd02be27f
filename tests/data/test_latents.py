"""The latent cache: what it holds, what is made of it again, and what is left of a run that was killed."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from latentdiff.data.cache import Parts
from latentdiff.data.folder import Row
from latentdiff.data.items import Draw, WaveItems, collate
from latentdiff.data.latents import LatentItems, Prompts, encode_prompts, encode_rows, encode_sounds
from latentdiff.data.stored_rows import StoredRows, store_rows
from latentdiff.errors import InputError

RATE, WINDOW = 8000, 2000


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


def stored(rows: list[Row], folder: Path) -> StoredRows:
    folder.mkdir(exist_ok=True)
    store_rows(folder / "rows.safetensors", rows, folder)
    return StoredRows(folder / "rows.safetensors", folder)


@pytest.fixture
def rows(tmp_path: Path) -> StoredRows:
    """A window lasts 0.25 s: less than one, exactly one, three and a half, a hundred of them."""
    lengths = {"short": 0.1, "exact": 0.25, "long": 0.875, "endless": 25.0}
    return stored([Row(write(tmp_path / f"{n}.wav", s), (f"a {n} one", f"{n}")) for n, s in lengths.items()], tmp_path)


def encode(rows: StoredRows, folder: Path, encoder: Encoder) -> LatentItems:
    folder.mkdir(exist_ok=True)
    return encode_rows(rows, WaveItems(rows, RATE, WINDOW), encoder, folder, "train", torch.device("cpu"))


def test_windows_cover_each_file(rows: StoredRows, tmp_path: Path) -> None:
    items = encode(rows, tmp_path / "cache", Encoder())
    owner = items.owner[:]
    assert torch.bincount(owner).tolist() == [1, 1, 4, 16]
    assert len(items) == 22 and items.mean.shape == (22, 2, 1, 1)
    begins, ends = (items.mean[:][:, i, 0, 0] * 10 for i in (0, 1))
    long = owner == 2
    assert begins[long].tolist() == pytest.approx([0.0, 0.2083, 0.4167, 0.625], abs=1e-3)
    assert float(ends[long][-1]) == pytest.approx(0.875, abs=2e-3)
    assert (begins[long][1:] <= ends[long][:-1]).all()  # nothing between two windows is left out
    endless = owner == 3
    assert float(begins[endless][0]) == 0 and float(ends[endless][-1]) == pytest.approx(25.0, abs=0.02)


def test_items_carry_mean_deviation_and_a_caption(rows: StoredRows, tmp_path: Path) -> None:
    items = encode(rows, tmp_path / "cache", Encoder())
    last = len(items) - 1
    item = items[Draw(last, 5)]
    assert item["row"] == 3 and item["mean"].shape == item["deviation"].shape == (2, 1, 1)
    assert item["mean"].dtype == torch.float32
    assert torch.equal(item["mean"], items.mean[last])
    assert torch.allclose(item["deviation"], torch.tensor(0.1), atol=1e-3)
    assert items[Draw(last, 5)]["caption"] == item["caption"]
    assert {items[Draw(last, seed)]["caption"] for seed in range(20)} == set(rows[3].captions)


def test_items_survive_the_way_into_a_worker_that_is_not_forked(rows: StoredRows, tmp_path: Path) -> None:
    items = encode(rows, tmp_path / "cache", Encoder())
    before, after = items[Draw(7, 5)], pickle.loads(pickle.dumps(items))[Draw(7, 5)]
    assert torch.equal(before["mean"], after["mean"]) and before["caption"] == after["caption"]


def test_a_second_call_encodes_nothing(rows: StoredRows, tmp_path: Path) -> None:
    first = encode(rows, tmp_path / "cache", Encoder())
    again = Encoder()
    second = encode(rows, tmp_path / "cache", again)
    assert again.windows == 0
    for name in ("owner", "mean", "deviation"):
        assert torch.equal(getattr(first, name)[:], getattr(second, name)[:])


def test_a_run_killed_half_way_goes_on_from_its_whole_files(tmp_path: Path) -> None:
    files = [Row(write(tmp_path / f"{i}.wav", 0.25 + i / 1e4), ("a",)) for i in range(80)]  # three files of a batch
    rows = stored(files, tmp_path)
    whole = encode(rows, tmp_path / "whole", Encoder())
    with pytest.raises(KeyboardInterrupt):
        encode(rows, tmp_path / "cache", Encoder(fail_at=64))
    (tmp_path / "cache" / ".train-00002.safetensors-99").write_bytes(b"half")  # as a SIGKILL leaves it
    again = Encoder()
    items = encode(rows, tmp_path / "cache", again)
    assert again.windows == 16 and len(items) == 80
    names = sorted(os.listdir(tmp_path / "cache"))
    assert names == ["train-00000.safetensors", "train-00001.safetensors", "train-00002.safetensors",
                     "train-plan.safetensors"]  # fmt: skip
    assert torch.equal(items.mean[:], whole.mean[:])
    for name in names:
        assert (tmp_path / "cache" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_broken_file_is_named(rows: StoredRows, tmp_path: Path) -> None:
    items = encode(rows, tmp_path / "cache", Encoder())
    os.truncate(tmp_path / "cache" / "train-00000.safetensors", 100)
    items = pickle.loads(pickle.dumps(items))
    with pytest.raises(InputError, match=r"train-00000.safetensors cannot be read .*remove it, `latentdiff data"):
        items[Draw(0, 0)]


def test_files_hold_a_bounded_number_of_items(tmp_path: Path) -> None:
    for count, each in ((1, 32), (33, 32), (2048, 32), (2049, 64), (10**6, 2048)):
        assert Parts(tmp_path, "x", count).each == each


# ---------------------------------------------------------------- rows and prompts


def test_rows_come_back(tmp_path: Path) -> None:
    about = (("a", "b"), (("kind", "x"),))
    given = [Row(tmp_path / "a.wav", ("one", "zwei — ü")), Row(tmp_path / "b/c.wav", ("one",), *about),
             Row(tmp_path / "d.wav", ("",))]  # fmt: skip
    rows = stored(given, tmp_path)
    assert list(rows) == given and rows[-1] == given[2] and rows[1:] == given[1:]
    assert rows.captions == 3 and list(rows.all_captions()) == ["one", "zwei — ü", "one", ""]
    with pytest.raises(IndexError):
        rows[3]


def embed(captions: list[str]) -> dict[str, object]:
    """As many tokens as words, and how long the text is."""
    tokens = [torch.full((len(text.split()) + 1, 2), float(len(text))) for text in captions]
    return {"tokens": tokens, "pooled": torch.tensor([[float(len(text))] for text in captions])}


def test_prompts_belong_to_their_items(rows: StoredRows, tmp_path: Path) -> None:
    latents = encode(rows, tmp_path / "cache", Encoder())
    captions = encode_prompts(rows, tmp_path / "cache", embed)
    media = WaveItems(rows, RATE, WINDOW)
    sounds = encode_sounds(media, tmp_path / "cache", lambda waves: torch.tensor([[w[-1]] for w in waves]))
    items = LatentItems(latents.rows, latents.parts, Prompts(captions))
    drawn = [items[Draw(i, seed)] for i in (0, 1, 21) for seed in (0, 1)]
    for item in drawn:
        words = len(item["caption"].split()) + 1
        assert item["tokens"].shape == (words, 2) and int(item["length"]) == words
        assert (item["tokens"] == len(item["caption"])).all() and float(item["pooled"]) == len(item["caption"])
    batch = collate(drawn)
    longest = max(int(n) for n in batch["length"])
    assert batch["tokens"].shape == (6, longest, 2)
    for row, length in zip(batch["tokens"], batch["length"], strict=True):
        assert row[:length].all() and not row[length:].any()
    empty = items.prompts.empty()
    assert empty["tokens"].shape == (1, 2) and float(empty["pooled"]) == 0
    heard = LatentItems(latents.rows, latents.parts, Prompts(captions, sounds))[Draw(3, 0)]
    assert float(heard["pooled"]) == pytest.approx(float(media.crop(rows[2], 0.0)[-1]), abs=1e-4)


def test_values_too_large_for_half_precision_are_refused(rows: StoredRows, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    with pytest.raises(InputError, match=r"pooled: values up to 1e\+05 cannot be kept in half precision"):
        encode_prompts(rows, tmp_path / "cache", lambda texts: {"pooled": torch.full((len(texts), 2), 1e5)})
    assert not list((tmp_path / "cache").iterdir())
