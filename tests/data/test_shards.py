"""WebDataset shards: the same rows and media as a folder's, from any store, and what is wrong with them by name."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import fsspec
import numpy as np
import pytest
import soundfile
from PIL import Image

from latentdiff.cli import main
from latentdiff.config import AudioData, Framing
from latentdiff.data.items import WaveItems, split_usable
from latentdiff.data.scan import scan_folder
from latentdiff.data.shards import expand, list_data, root_of
from latentdiff.errors import InputError
from latentdiff.media.audio import inspect_audio, read_audio
from latentdiff.media.image import read_image
from latentdiff.media.packed import PackedFile, address, members

RATE = 8000


def tar(files: Iterable[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def sound(number: int, suffix: str = "wav") -> bytes:
    buffer = io.BytesIO()
    wave = 0.4 * np.sin(np.arange(4000) * (0.01 + number / 100))
    soundfile.write(buffer, wave, RATE, format=suffix)
    return buffer.getvalue()


def sample(number: int, suffix: str = "wav") -> list[tuple[str, bytes]]:
    return [(f"{number:03d}.{suffix}", sound(number, suffix)), (f"{number:03d}.txt", f"sound {number}\n".encode())]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three of four samples each, and the same files in a folder."""
    (tmp_path / "shards").mkdir()
    (tmp_path / "folder").mkdir()
    for shard in range(3):
        files = [file for number in range(4 * shard, 4 * shard + 4) for file in sample(number)]
        (tmp_path / "shards" / f"{shard:03d}.tar").write_bytes(tar(files))
        for name, data in files:
            (tmp_path / "folder" / name).write_bytes(data)
    return tmp_path / "shards" / "{000..002}.tar"


def clear() -> None:
    members.cache_clear()


def test_shards_are_the_folder(shards: Path, tmp_path: Path) -> None:
    packed, plain = (split_usable(AudioData(path=path, held_out=0.25)) for path in (shards, tmp_path / "folder"))
    for some, others in zip(packed, plain, strict=True):
        assert [(row.path.name, row.captions) for row in some] == [(row.path.name, row.captions) for row in others]
        items, other_items = (WaveItems(rows, RATE, 1000) for rows in (some, others))
        for row, other in zip(some, others, strict=True):
            assert np.array_equal(items.crop(row, 0.3), other_items.crop(other, 0.3))
    row = packed[0][0]
    assert row.path.relative_to(root_of(shards)).as_posix().startswith("00") and row.path.stat().st_size == 8044


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_every_format_reads_as_from_a_file(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar(sample(1, suffix)))
    (tmp_path / f"001.{suffix}").write_bytes(sound(1, suffix))
    packed, plain = PackedFile(tmp_path / "a.tar", f"001.{suffix}"), tmp_path / f"001.{suffix}"
    assert inspect_audio(packed) == inspect_audio(plain)
    assert np.array_equal(read_audio(packed, 4000, 0.1, 0.2)[0], read_audio(plain, 4000, 0.1, 0.2)[0])


def test_pictures_and_json(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save(buffer, "png")
    about = {"caption": ["red", "crimson"], "sources": ["paint"], "attributes": {"kind": "noise"}}
    files = [("x/1.json", json.dumps(about).encode()), ("x/1.png", buffer.getvalue()), ("x/.DS_Store", b"")]
    (tmp_path / "a.tar").write_bytes(tar(files))
    (tmp_path / "1.png").write_bytes(buffer.getvalue())
    listing = list_data(tmp_path / "*.tar")
    (row,) = listing.rows
    assert (listing.kind, listing.faults) == ("image", [])
    assert (row.captions, row.labels, row.attributes) == (("red", "crimson"), ("paint",), (("kind", "noise"),))
    framing = Framing(size=8)
    assert np.array_equal(read_image(row.path, framing), read_image(tmp_path / "1.png", framing))


def test_any_store_of_fsspec(shards: Path) -> None:
    store = fsspec.filesystem("memory")
    for path in expand(shards):
        store.pipe(f"/bucket/{path.name}", path.read_bytes())
    for pattern in ("memory://bucket/{000..002}.tar", "memory://bucket/*.tar"):
        rows = scan_folder(Path(pattern)).rows
        assert len(rows) == 12 and rows[5].captions == ("sound 5",)
        assert rows[5].path.archive == "memory://bucket/001.tar"
        assert np.array_equal(read_audio(rows[5].path)[0], read_audio(list_data(shards).rows[5].path)[0])
    assert address(Path("s3://bucket/a/0.tar")) == "s3://bucket/a/0.tar"


def test_the_verb_scan_reads_shards(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "scan", str(shards)]) == 0
    assert "Usable files     12" in capsys.readouterr().out


# ---------------------------------------------------------------- what is wrong with them


@pytest.mark.parametrize("share", [0.2, 0.5, 0.75])
def test_a_truncated_shard_is_named_with_the_last_key(share: float, tmp_path: Path) -> None:
    """Cut in the middle of the samples, and where only the end mark is missing, as without close()."""
    data = tar([file for number in range(4) for file in sample(number)])
    (tmp_path / "a.tar").write_bytes(data[: int(share * len(data)) // 512 * 512])
    clear()
    (fault,) = list_data(tmp_path / "a.tar").faults
    assert fault.path.name == "a.tar" and fault.reason == "truncated or no tar" and "after 00" in fault.detail
    with pytest.raises(InputError, match=r"a\.tar: truncated or no tar"):
        split_usable(AudioData(path=tmp_path / "a.tar"))


def test_a_shard_without_its_end_is_truncated(tmp_path: Path) -> None:
    files = sample(0) + sample(1)
    data = tar(files)
    end = max(start + size for start, size in _places(data).values())
    (tmp_path / "a.tar").write_bytes(data[: -(-end // 512) * 512])
    clear()
    (fault,) = list_data(tmp_path / "a.tar").faults
    assert "the end is missing, after 001.txt" in fault.detail


def _places(data: bytes) -> dict[str, tuple[int, int]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {member.name: (member.offset_data, member.size) for member in archive}


FAULTS = {
    "unsorted": ([("1.wav", b"x"), ("2.wav", b"x"), ("1.txt", b"a"), ("2.txt", b"b")], "unsorted shard", "files of 1 "),
    "no caption": ([("1.wav", b"x")], "no caption", "no .json or .txt of 1"),
    "two media": ([("1.flac", b"x"), ("1.txt", b"a"), ("1.wav", b"x")], "several media files", "1: .flac, .txt, .wav"),
    "no media": ([("1.txt", b"a")], "no media file", "1: .txt"),
    "no column": ([("1.json", b'{"txet": "a"}'), ("1.wav", b"x")], 'no caption column "text"', 'did you mean "txet"'),
    "no JSON": ([("1.json", b"{"), ("1.wav", b"x")], "not UTF-8 text or JSON in .json", "Expecting"),
    "empty": ([("1.txt", b" \n"), ("1.wav", b"x")], "empty caption", ""),
    "no tar": (None, "truncated or no tar", "after nothing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_name_shard_and_key(fault: str, tmp_path: Path) -> None:
    files, reason, detail = FAULTS[fault]
    (tmp_path / "a.tar").write_bytes(b"\x01" * 2048 if files is None else tar(files))
    clear()
    found = list_data(tmp_path / "a.tar").faults
    assert any(one.reason.startswith(reason) and detail in one.detail and "a.tar" in str(one.path) for one in found)


def test_broken_media_in_a_shard_is_named(tmp_path: Path) -> None:
    whole = sound(1)
    (tmp_path / "a.tar").write_bytes(tar([("1.txt", b"a"), ("1.wav", whole[:-900]), *sample(2)]))
    clear()
    (fault,) = scan_folder(tmp_path / "a.tar").faults
    assert fault.path == PackedFile(tmp_path / "a.tar", "1.wav") and "truncated" in fault.reason


@pytest.mark.parametrize("pattern", ["{000..003}.tar", "none-*.tar", "003.tar"])
def test_a_missing_shard_is_said(pattern: str, shards: Path) -> None:
    with pytest.raises(InputError, match=r"there is no shard .*\.tar"):
        list_data(shards.parent / pattern)


def test_a_store_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(InputError, match=r"nowhere://x/a\.tar cannot be reached"):
        list_data(Path("nowhere://x/a.tar"))
