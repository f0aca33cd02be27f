"""The scan of a folder: every fault with file, row and count, and what is only noted."""

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from latentdiff.config import AudioData, ImageData
from latentdiff.data.scan import ScanReport, scan_folder, usable_rows
from latentdiff.errors import InputError

RATE = 16000


def tone(seconds: float = 0.5, gain: float = 0.4) -> np.ndarray:
    return (gain * np.sin(np.arange(round(seconds * RATE)) / 5)).astype(np.float32)


def spoil(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def make_clips(folder: Path) -> list[tuple[str, str, str]]:
    """Write clips of every kind; return (name, fault, note) of each in the order of their rows."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 4 * RATE).astype(np.float32)
    with_nan = tone()
    with_nan[100] = np.nan
    sounds: dict[str, tuple[np.ndarray, int, str | None]] = {
        "good.wav": (tone(), RATE, None),
        "good.flac": (tone(), 44100, None),
        "good.mp3": (noise, RATE, None),
        "good.ogg": (noise, RATE, None),
        "stereo.wav": (np.stack([tone(), tone()], axis=1), RATE, None),
        "eight.wav": (np.stack([tone()] * 8, axis=1), RATE, None),
        "silent.wav": (tone(gain=1e-4), RATE, None),
        "clipped.wav": (np.clip(tone(gain=4), -1, 1), RATE, None),
        "cut.wav": (tone(), RATE, None),
        "cut.flac": (noise, RATE, None),
        "cut.mp3": (noise, RATE, None),
        "cut.ogg": (noise, RATE, None),
        "nan.wav": (with_nan, RATE, "FLOAT"),
        "nothing.wav": (np.zeros(0, np.float32), RATE, None),
        "no_rate.wav": (tone(), RATE, None),
    }
    for name, (wave, rate, subtype) in sounds.items():
        soundfile.write(folder / name, wave, rate, subtype=subtype)
    for name in ("cut.wav", "cut.flac", "cut.mp3", "cut.ogg"):
        spoil(folder / name, 0.6)
    header = bytearray((folder / "no_rate.wav").read_bytes())
    header[24:28] = bytes(4)
    (folder / "no_rate.wav").write_bytes(header)
    (folder / "empty.wav").write_bytes(b"")
    (folder / "page.wav").write_bytes(b"<!DOCTYPE html><html>Not found</html>")
    (folder / "text.wav").write_bytes(b"this is no sound at all" * 50)
    verdicts = {
        "eight.wav": ("", "mixed down"),
        "silent.wav": ("", "silent"),
        "clipped.wav": ("", "clipped"),
        "nan.wav": ("NaN or infinite samples", ""),
        "nothing.wav": ("no samples", ""),
        "no_rate.wav": ("sampling rate 0", ""),
        "empty.wav": ("empty file", ""),
        "page.wav": ("a web page, not media", ""),
        "text.wav": ("unreadable", ""),
    }
    cut = {f"cut.{kind}": ("truncated or damaged", "") for kind in ("wav", "flac", "mp3", "ogg")}
    names = [*sounds, "empty.wav", "page.wav", "text.wav"]
    return [(name, *(verdicts | cut).get(name, ("", ""))) for name in names]


def write_metadata(folder: Path, rows: list[tuple[str, str]]) -> None:
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "text"), *rows])


def test_verdict_on_every_kind_of_clip(tmp_path: Path) -> None:
    clips = make_clips(tmp_path)
    write_metadata(tmp_path, [(name, f"the sound of {name}") for name, _, _ in clips])
    report = scan_folder(tmp_path)
    rows = {name: row for row, (name, _, _) in enumerate(clips, start=2)}
    assert {(f.path.name, f.row, f.reason) for f in report.faults} == {
        (name, rows[name], fault) for name, fault, _ in clips if fault
    }
    assert {(f.path.name, f.row, f.reason) for f in report.notes} == {
        (name, rows[name], note) for name, _, note in clips if note
    }
    assert [row.path.name for row in report.rows] == [name for name, fault, _ in clips if not fault]
    assert report.sampling_rates == {RATE: 7, 44100: 1}
    assert report.channels == {1: 6, 2: 1, 8: 1}
    assert report.seconds == pytest.approx(2 * 4 + 5 * 0.5 + 0.5 * RATE / 44100, abs=0.1)
    assert report.bad_fraction == 10 / 18


def faulty_folder(folder: Path) -> ScanReport:
    for name in ("a.wav", "b.wav", "sub/c.wav", "orphan.wav"):
        (folder / name).parent.mkdir(exist_ok=True)
        soundfile.write(folder / name, tone(), RATE)
    spoil(folder / "b.wav", 0.5)
    rows = [("a.wav", "a dog barks"), ("b.wav", "rain"), ("no.wav", "wind"), ("../a.wav", "x")]
    write_metadata(folder, [*rows, ("sub/c.wav", "nan"), ("a.wav", "two dogs bark loudly")])
    return scan_folder(folder)


def test_report_groups_by_reason_with_counts_files_and_rows(tmp_path: Path) -> None:
    text = faulty_folder(tmp_path).render()
    squeezed = [" ".join(line.split()) for line in text.splitlines()]
    for line in (
        f"Folder {tmp_path}",
        'Captions from metadata.csv, column "text"',
        "Usable files 1",
        "Duration 0.5 s in all",
        "Sampling rates 16000 Hz: 1",
        "Captions 2, 2 different, 3 to 4 words, mean 3.5",
        "Faults: 5, left out",
        "missing file: 1",
        f"metadata.csv row 4 no.wav; names are relative to {tmp_path}",
        'file_name holds "..": 1',
        "empty caption: 1",
        'metadata.csv row 6 "nan"',
        "no caption: 1",
        "orphan.wav metadata.csv omits it",
        "truncated or damaged: 1",
        "b.wav row 3 16000 bytes declared, 7978 there",
        "Notes: 0, kept",
    ):
        assert line in squeezed


def test_limit_on_faults(tmp_path: Path) -> None:
    report = faulty_folder(tmp_path)
    assert report.bad_fraction == 5 / 6
    report.raise_if_bad(0.9)
    with pytest.raises(InputError, match=r"5 faults and 1 usable files.*missing file: 1.*metadata\.csv, row 4"):
        report.raise_if_bad(0.8)


def test_clean_folder_passes_at_zero(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(), RATE)
    (tmp_path / "a.txt").write_text("a tone\na steady tone\n")
    report = scan_folder(tmp_path)
    report.raise_if_bad(0)
    assert report.captions_from == ".txt files" and not report.faults and not report.notes
    assert report.rows[0].captions == ("a tone", "a steady tone")


@pytest.mark.parametrize("table", [None, "name,words\na.wav,x\n"])
def test_folder_without_a_usable_file_is_bad_at_any_limit(tmp_path: Path, table: str | None) -> None:
    soundfile.write(tmp_path / "a.wav", tone(), RATE)
    if table:
        (tmp_path / "metadata.csv").write_text(table)
    report = scan_folder(tmp_path)
    assert len(report.faults) == 1 and "Usable files     0" in report.render()
    with pytest.raises(InputError, match="0 usable files"):
        report.raise_if_bad(1.0)


def test_file_that_libsndfile_cannot_read_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.m4a").write_bytes(b"\0\0\0\x1cftypM4A " + bytes(100))
    (tmp_path / "a.txt").write_text("a song")
    fault = scan_folder(tmp_path).faults[0]
    assert fault.path.name == "a.m4a" and "convert it to WAV or FLAC" in fault.detail


def test_caption_key_is_used(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(), RATE)
    (tmp_path / "metadata.csv").write_text("file_name,text,prompt\na.wav,x,a long tone\n")
    assert scan_folder(tmp_path, "prompt").rows[0].captions == ("a long tone",)


def test_usable_rows_names_and_leaves_out_or_refuses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(0)
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.wav", 0.1 * rng.standard_normal(8000), 16000)
    (tmp_path / "metadata.csv").write_text("file_name,text\n" + "".join(f"{i}.wav,sound {i}\n" for i in range(3)))
    cut = tmp_path / "2.wav"
    cut.write_bytes(cut.read_bytes()[:9000])
    with pytest.raises(InputError, match=r"1 faults and 2 usable files(.|\n)*2\.wav"):
        usable_rows(AudioData(path=tmp_path))
    with caplog.at_level("WARNING"):
        rows = usable_rows(AudioData(path=tmp_path, max_bad_fraction=0.4))
    assert [row.path.name for row in rows] == ["0.wav", "1.wav"]  # 3.wav is not listed, which is no fault
    assert "2.wav" in caplog.text and "3.wav" not in caplog.text


# ---------------------------------------------------------------- pictures


def picture_folder(folder: Path) -> dict[str, tuple[str, str]]:
    """Pictures of every kind; returns name -> (fault, note) in the order of their rows."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    for name in ("good.png", "good.jpg", "cut.jpg", "cut.png"):
        picture.save(folder / name)
    picture.convert("RGBA").save(folder / "glass.png")
    picture.convert("CMYK").save(folder / "print.jpg")
    Image.fromarray(noise[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    picture.save(folder / "moving.gif", save_all=True, append_images=[Image.new("RGB", picture.size)])
    spoil(folder / "cut.jpg", 0.6)
    spoil(folder / "cut.png", 0.6)
    (folder / "page.png").write_bytes(b"<html>404</html>")
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    return {
        "good.png": ("", ""),
        "good.jpg": ("", ""),
        "glass.png": ("", ""),
        "print.jpg": ("", "for print"),
        "deep.png": ("", "16 bits"),
        "moving.gif": ("", "several frames"),
        "cut.jpg": ("truncated or damaged", ""),
        "cut.png": ("truncated or damaged", ""),
        "page.png": ("a web page, not media", ""),
        "phone.heic": ("unreadable", ""),
    }


def test_verdict_on_every_kind_of_picture(tmp_path: Path) -> None:
    verdicts = picture_folder(tmp_path)
    write_metadata(tmp_path, [(name, f"a picture of {name}") for name in verdicts])
    report = scan_folder(tmp_path)
    rows = {name: row for row, name in enumerate(verdicts, start=2)}
    for found, place in ((report.faults, 0), (report.notes, 1)):
        expected = {(name, rows[name], verdict[place]) for name, verdict in verdicts.items() if verdict[place]}
        assert {(fault.path.name, fault.row, fault.reason) for fault in found} == expected
    assert report.kind == "image" and report.sizes == {"30 x 40": 6}
    assert report.modes == {"RGB": 2, "RGBA": 1, "CMYK": 1, "I;16": 1, "P": 1}
    squeezed = [" ".join(line.split()) for line in report.render().splitlines()]
    for line in ("Pixels 30 x 40: 6", "truncated or damaged: 2", "several frames: 1", "Faults: 4, left out"):
        assert line in squeezed
    assert not [line for line in squeezed if line.startswith(("Duration", "Sampling rates"))]
    phone = next(line for line in squeezed if line.startswith("phone.heic"))
    assert phone.endswith("row 11 Pillow does not decode .heic files: convert it to PNG or JPEG")


def test_many_sizes_are_summed_up(tmp_path: Path) -> None:
    for side in range(1, 13):
        Image.new("RGB", (side, 8)).save(tmp_path / f"{side}.png")
        (tmp_path / f"{side}.txt").write_text("a")
    assert ", 4 other sizes" in scan_folder(tmp_path).render()


def test_the_other_kind_of_folder_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(InputError, match="holds image files, and data.kind is audio"):
        usable_rows(AudioData(path=tmp_path))
    assert len(usable_rows(ImageData(path=tmp_path, kind="image"))) == 1
