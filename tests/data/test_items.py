"""Splits, the order of training items over processes and restarts, and crops of real files."""

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from latentdiff.config import Framing, ImageData
from latentdiff.data.folder import Row
from latentdiff.data.items import (
    Draw,
    GlobalBatches,
    PictureItems,
    WaveItems,
    collate,
    split_rows,
    split_usable,
)
from latentdiff.errors import InputError

RATE = 8000


def rows_of(count: int, folder: str = "data") -> list[Row]:
    return [Row(Path(folder) / f"{i}.wav", (f"sound {i}",)) for i in range(count)]


# ---------------------------------------------------------------- splits


def test_the_split_depends_on_nothing_but_names() -> None:
    rows = rows_of(100)
    train, held_out = split_rows(rows, 0.1)
    assert len(train) == 90 and len(held_out) == 10
    assert {row.path for row in train} | {row.path for row in held_out} == {row.path for row in rows}
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(100)
        assert split_rows([rows[i] for i in order], 0.1) == (train, held_out)
    moved, _ = split_rows(rows_of(100, "elsewhere"), 0.1)
    assert [row.path.name for row in moved] == [row.path.name for row in train]


def test_files_of_one_name_in_two_folders_keep_their_side() -> None:
    rows = rows_of(6, "a") + rows_of(6, "b")
    assert split_rows(rows, 0.25) == split_rows(rows[::-1], 0.25)


def test_a_split_hardly_changes_when_files_are_added() -> None:
    """Those that were held out before and are trained on now would flatter the figures."""
    _, before = split_rows(rows_of(200), 0.1)
    train, _ = split_rows(rows_of(204), 0.1)
    assert len({row.path for row in before} & {row.path for row in train}) <= 4


@pytest.mark.parametrize("held_out", [0.001, 0.5, 0.89])
@pytest.mark.parametrize("count", [2, 3, 10])
def test_neither_side_is_empty(count: int, held_out: float) -> None:
    train, held = split_rows(rows_of(count), held_out)
    assert train and held and len(train) + len(held) == count


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_files_are_refused(count: int) -> None:
    with pytest.raises(InputError, match=f"{count} captioned"):
        split_rows(rows_of(count), 0.1)


# ---------------------------------------------------------------- order


def batches(
    steps: int,
    *,
    items: int = 21,
    batch: int = 8,
    micro: int = 2,
    seed: int = 0,
    start: int = 0,
    rank: int = 0,
    processes: int = 1,
) -> list[list[Draw]]:
    """The micro-batches of the given number of steps."""
    sampler = GlobalBatches(items, batch, micro, seed, start, rank, processes)
    return list(islice(sampler, steps * batch // (micro * processes)))


def by_step(draws: list[list[Draw]], steps: int) -> list[list[Draw]]:
    share = len(draws) // steps
    return [sum(draws[step * share : (step + 1) * share], []) for step in range(steps)]


@pytest.mark.parametrize(("processes", "micro"), [(1, 8), (1, 2), (2, 4), (2, 2), (4, 2), (4, 1)])
def test_ranks_share_the_global_batch(processes: int, micro: int) -> None:
    steps = 6
    alone = by_step(batches(steps, micro=8), steps)
    ranks = [by_step(batches(steps, micro=micro, rank=rank, processes=processes), steps) for rank in range(processes)]
    for step in range(steps):
        shares = [rank[step] for rank in ranks]
        assert {len(share) for share in shares} == {8 // processes}
        assert sorted(sum(shares, [])) == sorted(alone[step])
        assert len(set(sum(shares, []))) == 8


@pytest.mark.parametrize("start", [1, 2, 5])
@pytest.mark.parametrize(("rank", "processes"), [(0, 1), (1, 2)])
def test_a_resumed_run_sees_what_the_unbroken_one_does(start: int, rank: int, processes: int) -> None:
    whole = batches(9, rank=rank, processes=processes)
    rest = batches(9 - start, start=start, rank=rank, processes=processes)
    assert whole[-len(rest) :] == rest


def test_the_order_can_be_walked_twice() -> None:
    sampler = GlobalBatches(21, 8, 2, 0, 0, 0, 1)
    assert list(islice(sampler, 20)) == list(islice(sampler, 20))


def test_every_epoch_is_a_permutation() -> None:
    items, epochs = 21, 8
    draws = sum(batches(items, items=items, batch=epochs, micro=epochs), [])
    orders = [[draw.row for draw in draws[e * items : (e + 1) * items]] for e in range(epochs)]
    for order in orders:
        assert sorted(order) == list(range(items))
    assert len({tuple(order) for order in orders}) == epochs


def test_a_folder_smaller_than_the_batch() -> None:
    (first, *_) = batches(2, items=3, batch=8, micro=8)
    assert set(Counter(draw.row for draw in first).values()) <= {2, 3}
    assert len({draw.seed for draw in first}) == 8


def test_seeds_of_run_and_item() -> None:
    first, other = (sum(batches(10, seed=seed), []) for seed in (0, 1))
    assert [draw.row for draw in first] != [draw.row for draw in other]
    assert len({draw.seed for draw in first}) == len(first)
    assert not {draw.seed for draw in first} & {draw.seed for draw in other}


# ---------------------------------------------------------------- crops


def ramp(path: Path, seconds: float, rate: int = RATE, channels: int = 1) -> Path:
    """A file whose samples say where they stand, from 0 to 0.9, in 32-bit float."""
    samples = round(seconds * rate)
    wave = np.linspace(0, 0.9, samples, dtype=np.float32)
    soundfile.write(path, np.stack([wave] * channels, 1), rate, subtype="FLOAT")
    return path


def waves_of(path: Path, captions: tuple[str, ...] = ("a",), samples: int = RATE) -> WaveItems:
    return WaveItems([Row(path, captions)], RATE, samples)


def test_a_crop_follows_its_draw(tmp_path: Path) -> None:
    waves = waves_of(ramp(tmp_path / "long.wav", 5.0), captions=("a", "b", "c"))
    first = waves[Draw(0, 11)]
    again = waves[Draw(0, 11)]
    assert torch.equal(first["media"], again["media"]) and first["caption"] == again["caption"]
    starts, captions = set(), set()
    for seed in range(40):
        item = waves[Draw(0, seed)]
        starts.add(round(float(item["media"][0]), 4))
        captions.add(item["caption"])
    assert len(starts) > 35 and captions == {"a", "b", "c"}


def test_a_long_file_is_cropped_inside(tmp_path: Path) -> None:
    waves = waves_of(ramp(tmp_path / "long.wav", 5.0))
    step = 0.9 / (5 * RATE - 1)
    for seed in range(40):
        wave = waves[Draw(0, seed)]["media"]
        assert wave.dtype == torch.float32 and wave.shape == (RATE,)
        assert torch.allclose(wave.diff(), torch.tensor(step), atol=2e-7)  # whole, without silence
    first, last = waves.crop(waves.rows[0], 0.0), waves.crop(waves.rows[0], 1.0)
    assert first[0] == 0.0
    assert last[-1] == pytest.approx(0.9)


def test_a_short_file_ends_in_silence(tmp_path: Path) -> None:
    waves = waves_of(ramp(tmp_path / "short.wav", 0.25))
    for seed in range(5):
        wave = waves[Draw(0, seed)]["media"].numpy()
        assert wave.shape == (RATE,)
        assert np.array_equal(wave[: RATE // 4], np.linspace(0, 0.9, RATE // 4, dtype=np.float32))
        assert not wave[RATE // 4 :].any()


@pytest.mark.parametrize("place", [0.0, 0.37, 1.0])
@pytest.mark.parametrize(("rate", "channels"), [(44100, 2), (11025, 1), (8000, 8)])
def test_any_rate_and_channels_give_the_same_crop(tmp_path: Path, rate: int, channels: int, place: float) -> None:
    waves = waves_of(ramp(tmp_path / "other.wav", 3.0, rate, channels))
    wave = waves.crop(waves.rows[0], place)
    assert wave.shape == (RATE,) and wave.dtype == np.float32
    inner = slice(200, -200)  # the resampler rings at the ends
    expected = 0.3 * (np.arange(RATE) / RATE + place * 2.0)
    assert np.abs(wave - expected)[inner].max() < 1e-3


def test_a_row_without_captions_has_an_empty_one(tmp_path: Path) -> None:
    assert waves_of(ramp(tmp_path / "a.wav", 1.0), captions=())[Draw(0, 0)]["caption"] == ""


def test_a_broken_file_raises(tmp_path: Path) -> None:
    path = tmp_path / "broken.wav"
    path.write_bytes(ramp(tmp_path / "good.wav", 3.0).read_bytes()[:20000])
    with pytest.raises(InputError, match=r"broken\.wav"):
        waves_of(path)[Draw(0, 0)]


# ---------------------------------------------------------------- pictures


def test_a_picture_follows_its_draw(tmp_path: Path) -> None:
    """A wide picture is cropped at a random place, which the draw decides alone."""
    columns = np.arange(96, dtype=np.uint8)[None, :, None].repeat(32, 0).repeat(3, 2)
    Image.fromarray(columns).save(tmp_path / "wide.png")
    items = PictureItems([Row(tmp_path / "wide.png", ("a", "b"))], Framing(size=32))
    first, again = items[Draw(0, 11)], items[Draw(0, 11)]
    assert torch.equal(first["media"], again["media"]) and first["caption"] == again["caption"]
    assert first["media"].shape == (3, 32, 32) and first["media"].dtype == torch.uint8
    assert len({int(items[Draw(0, seed)]["media"][0, 5, 5]) for seed in range(40)}) > 20
    middle = items.stack(items.rows)
    assert middle.shape == (1, 3, 32, 32) and abs(int(middle[0, 0, 5, 16]) - 48) <= 1
    assert items.places(items.rows[0]) == [0.5]


def test_a_broken_picture_raises(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    items = PictureItems([Row(tmp_path / "broken.png", ("a",))], Framing())
    with pytest.raises(InputError, match=r"broken\.png"):
        items[Draw(0, 0)]


def test_held_out_may_be_a_folder_of_its_own(tmp_path: Path) -> None:
    for split, count in (("train", 5), ("held_out", 2)):
        for i in range(count):
            (tmp_path / split).mkdir(exist_ok=True)
            Image.new("RGB", (8, 8)).save(tmp_path / split / f"{i}.png")
            (tmp_path / split / f"{i}.txt").write_text(split)
    data = ImageData(path=tmp_path / "train", kind="image", held_out=tmp_path / "held_out")
    train, held_out = split_usable(data)
    assert [row.captions for row in train] == [("train",)] * 5
    assert [row.captions for row in held_out] == [("held_out",)] * 2
    train, held_out = split_usable(ImageData(path=tmp_path / "train", kind="image", held_out=0.4))
    assert (len(train), len(held_out)) == (3, 2) and not {row.path for row in train} & {row.path for row in held_out}


def test_collate_stacks_and_lists() -> None:
    items = [{"media": torch.full((3,), float(i)), "caption": str(i), "row": i} for i in range(2)]
    batch = collate(items)
    assert torch.equal(batch["media"], torch.tensor([[0.0] * 3, [1.0] * 3]))
    assert batch["caption"] == ["0", "1"] and batch["row"] == [0, 1]


def test_the_order_is_what_a_loader_yields(tmp_path: Path) -> None:
    """As the training loop has it: the sampler as batch sampler, items by draw."""
    rows = [Row(ramp(tmp_path / f"{i}.wav", 1.5), (f"sound {i}",)) for i in range(5)]
    waves = WaveItems(rows, RATE, 1000)
    sampler = GlobalBatches(len(waves), 4, 2, 3, 0, 0, 1)
    loader = torch.utils.data.DataLoader(waves, batch_sampler=sampler, collate_fn=collate)
    for batch, draws in zip(islice(loader, 6), sampler, strict=False):
        assert batch["row"] == [draw.row for draw in draws]
        assert batch["caption"] == [f"sound {row}" for row in batch["row"]]
        assert torch.equal(batch["media"], torch.stack([waves[draw]["media"] for draw in draws]))
