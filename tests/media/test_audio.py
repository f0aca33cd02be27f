"""Audio files: crops, resampling, the recipe inside, and every way a file can be broken."""

import io
import json
import pickle
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from latentdiff.errors import InputError
from latentdiff.media.audio import (
    BrokenAudioError,
    audio_seconds,
    inspect_audio,
    read_audio,
    read_recipe,
    save_spectrogram,
    write_audio,
)

RATE = 16000


def chirp(seconds: float = 2.0, rate: int = RATE) -> np.ndarray:
    """A sweep with some noise: no two places are alike, so a shifted crop is seen."""
    t = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(0).standard_normal(t.size)
    return (0.4 * np.sin(2 * np.pi * (200 + 300 * t) * t) + 0.05 * noise).astype(np.float32)


def encoded(container: str, wave: np.ndarray | None = None, **options: Any) -> bytes:
    """The bytes of a good file."""
    buffer = io.BytesIO()
    wave = chirp() if wave is None else wave
    channels = 1 if wave.ndim == 1 else wave.shape[1]
    with soundfile.SoundFile(buffer, "w", RATE, channels, format=container, **options) as file:
        file.write(wave)
    return buffer.getvalue()


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def patched(data: bytes, at: int, value: int, form: str = "<I") -> bytes:
    return data[:at] + struct.pack(form, value) + data[at + struct.calcsize(form) :]


def nan_wave(value: float = np.nan) -> np.ndarray:
    wave = chirp()
    wave[RATE] = value
    return wave


def without_length(mp3: bytes) -> bytes:
    """An MP3 without its first frame, which is the tag that says how long it is."""
    tag = next(mp3.find(name) for name in (b"Xing", b"Info") if name in mp3)
    return mp3[mp3.find(mp3[:2], tag) :]


def loud_and_quiet() -> np.ndarray:
    """Noise whose level changes, so that a variable bitrate does vary."""
    return (chirp(20) * np.repeat(np.random.default_rng(1).random(20) ** 4, RATE)).astype(np.float32)


BROKEN: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "empty": ("a.wav", lambda: b"", "empty file"),
    "empty_mp3": ("a.mp3", lambda: b"", "empty file"),
    "web_page": ("a.wav", lambda: b"\n<!DOCTYPE html><html>404</html>" * 40, "a web page, not media"),
    "web_page_mp3": ("a.mp3", lambda: b"<html>404</html>" * 40, "a web page, not media"),
    "noise_bytes": ("a.wav", lambda: np.random.default_rng(0).bytes(9000), "unreadable"),
    "noise_bytes_mp3": ("a.mp3", lambda: np.random.default_rng(0).bytes(9000), "unreadable"),
    "apple": ("a.m4a", lambda: b"\0\0\0\x1cftypM4A " + bytes(900), "unreadable"),
    "zero_rate": ("a.wav", lambda: patched(encoded("WAV"), 24, 0), "sampling rate 0"),
    "zero_channels": ("a.wav", lambda: patched(encoded("WAV"), 22, 0, "<H"), "unreadable"),
    "zero_length": ("a.wav", lambda: encoded("WAV", np.zeros(0, np.float32)), "no samples"),
    "cut_wav": ("a.wav", lambda: half(encoded("WAV")), "truncated or damaged"),
    "cut_wav_in_header": ("a.wav", lambda: encoded("WAV")[:44], "truncated or damaged"),
    "cut_float_wav": ("a.wav", lambda: half(encoded("WAV", subtype="FLOAT")), "truncated or damaged"),
    "cut_aiff": ("a.aiff", lambda: half(encoded("AIFF")), "truncated or damaged"),
    "cut_flac": ("a.flac", lambda: half(encoded("FLAC")), "truncated or damaged"),
    "hole_in_flac": (
        "a.flac",
        lambda: (data := encoded("FLAC"))[:9000] + bytes(500) + data[9500:],
        "truncated or damaged",
    ),
    "cut_ogg": ("a.ogg", lambda: half(encoded("OGG", chirp(20))), "truncated or damaged"),
    "cut_short_ogg": ("a.ogg", lambda: half(encoded("OGG")), "truncated or damaged"),
    "cut_mp3": ("a.mp3", lambda: half(encoded("MP3")), "truncated or damaged"),
    "nan": ("a.wav", lambda: encoded("WAV", nan_wave(), subtype="FLOAT"), "NaN or infinite samples"),
    "infinite": (
        "a.wav",
        lambda: encoded("WAV", nan_wave(np.inf), subtype="FLOAT"),
        "NaN or infinite samples",
    ),
    "flac_from_pipe": (
        "a.flac",
        lambda: (data := encoded("FLAC"))[:21] + bytes([data[21] & 0xF0]) + bytes(4) + data[26:],
        "length unknown",
    ),
    "variable_mp3_without_length": (
        "a.mp3",
        lambda: without_length(encoded("MP3", loud_and_quiet(), bitrate_mode="VARIABLE")),
        "length unknown",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_file_is_named_with_its_reason(tmp_path: Path, kind: str) -> None:
    name, make, reason = BROKEN[kind]
    (tmp_path / name).write_bytes(make())
    for use in (read_audio, inspect_audio):
        with pytest.raises(BrokenAudioError) as caught:
            use(tmp_path / name)
        assert caught.value.reason == reason
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "no.wav", "no such file"), (tmp_path, "not a regular file")):
        with pytest.raises(InputError, match=words):
            read_audio(path)


def test_broken_audio_error_leaves_a_loader_process(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"")
    with pytest.raises(BrokenAudioError) as caught:
        read_audio(tmp_path / "a.wav")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.reason) == (BrokenAudioError, str(caught.value), "empty file")
    assert isinstance(type(caught.value)("only a message"), InputError)  # how torch's loader makes it again


@pytest.mark.parametrize("size", [2**32 - 1, 2**31 - 1, 2**31 - 44])
def test_wav_written_to_a_pipe_is_whole(tmp_path: Path, size: int) -> None:
    data = patched(patched(encoded("WAV"), 40, size), 4, size)
    (tmp_path / "pipe.wav").write_bytes(data)
    assert inspect_audio(tmp_path / "pipe.wav").frames == 2 * RATE


@pytest.mark.parametrize("pictures", [0, 300_000])
def test_constant_mp3_without_length_tag_is_whole(tmp_path: Path, pictures: int) -> None:
    data = without_length(encoded("MP3", chirp(20), bitrate_mode="CONSTANT", compression_level=0.5))
    size = bytes(pictures >> shift & 127 for shift in (21, 14, 7, 0))
    path = tmp_path / "a.mp3"
    path.write_bytes(b"ID3\x03\0\0" + size + bytes(pictures) + data + b"TAG" + bytes(125))
    assert (soundfile.info(path).frames > 25 * RATE) == (pictures > 0)  # what libsndfile guesses
    assert inspect_audio(path).seconds == pytest.approx(20, abs=0.15)
    assert audio_seconds(path) == pytest.approx(20, abs=0.15)
    assert read_audio(path, start_s=19.5, duration_s=1)[0].size == pytest.approx(0.5 * RATE, abs=0.15 * RATE)


@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG", "MP3", "AIFF"])
def test_crop_is_the_same_part_of_the_whole(tmp_path: Path, container: str) -> None:
    path = tmp_path / f"a.{container.lower()}"
    path.write_bytes(encoded(container, chirp(10)))
    whole, rate = read_audio(path)
    assert rate == RATE and whole.dtype == np.float32 and whole.shape == (10 * RATE,)
    assert audio_seconds(path) == 10
    for start in (0.0, 0.3, 5.1234, 9.5):
        crop, _ = read_audio(path, start_s=start, duration_s=0.4)
        first = round(start * RATE)
        np.testing.assert_allclose(crop, whole[first : first + 6400], atol=2e-3)
    assert read_audio(path, start_s=9.5, duration_s=4)[0].shape == (RATE // 2,)  # what there is


def test_crop_reads_only_its_part(tmp_path: Path) -> None:
    wave = chirp(4)
    wave[: 2 * RATE] = np.nan  # reading it would raise
    (tmp_path / "a.wav").write_bytes(encoded("WAV", wave, subtype="FLOAT"))
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav", start_s=2.0)[0], wave[2 * RATE :])
    with pytest.raises(InputError, match=r"the first at 1\.500 s"):
        read_audio(tmp_path / "a.wav", start_s=1.5, duration_s=1.0)


@pytest.mark.parametrize("part", [(-1.0, None), (0.0, 0.0), (0.0, -2.0), (2.0, 1.0), (100.0, None)])
def test_part_outside_the_file_is_refused(tmp_path: Path, part: tuple[float, float | None]) -> None:
    (tmp_path / "a.wav").write_bytes(encoded("WAV"))
    with pytest.raises(InputError, match=r"a\.wav"):
        read_audio(tmp_path / "a.wav", None, *part)


def test_rate_of_zero_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(encoded("WAV"))
    with pytest.raises(InputError, match="0 Hz"):
        read_audio(tmp_path / "a.wav", 0)


def test_channels_are_averaged(tmp_path: Path) -> None:
    wave = np.stack([chirp() * gain for gain in (1, 0.5, 0, 0, 0, 0, 0, 0)], axis=1)
    (tmp_path / "a.wav").write_bytes(encoded("WAV", wave, subtype="FLOAT"))
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav")[0], 1.5 / 8 * chirp(), atol=1e-6)
    facts = inspect_audio(tmp_path / "a.wav")
    assert facts.channels == 8 and facts.peak == pytest.approx(np.abs(chirp()).max())


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_resampling_keeps_the_tone_and_the_length(tmp_path: Path, rate: int) -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(2 * rate) / rate).astype(np.float32)
    path = tmp_path / "a.wav"
    soundfile.write(path, tone * 0.5, rate, subtype="FLOAT")
    wave, got = read_audio(path, RATE)
    assert got == RATE and wave.dtype == np.float32 and wave.shape == (2 * RATE,)
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(2 * RATE) / RATE)
    np.testing.assert_allclose(wave[800:-800], expected[800:-800], atol=2e-3)
    crop, _ = read_audio(path, RATE, 0.5, 1.0237)
    assert abs(crop.size - 1.0237 * RATE) <= 1


def test_facts_of_silent_and_clipped_sound(tmp_path: Path) -> None:
    (tmp_path / "silent.wav").write_bytes(encoded("WAV", np.zeros(RATE, np.float32)))
    (tmp_path / "clipped.wav").write_bytes(encoded("WAV", np.clip(9 * chirp(), -1, 1)))
    silent, clipped = inspect_audio(tmp_path / "silent.wav"), inspect_audio(tmp_path / "clipped.wav")
    assert (silent.peak, silent.clipped) == (0, 0)
    assert clipped.peak >= 0.999 and clipped.clipped > 0.5


RECIPE = {"prompt": 'a dog\n"barks" 犬 🐕 é \udc80', "seed": 2**60, "steps": 20, "cfg": 3.5, "negative": None}


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".WAV"])
@pytest.mark.parametrize("words", [0, 1, 500, 20000])
def test_recipe_survives(tmp_path: Path, suffix: str, words: int) -> None:
    recipe = RECIPE | {"long": "ü dog " * words}
    path = write_audio(tmp_path / f"a{suffix}", chirp(), RATE, recipe)
    assert read_recipe(path) == recipe
    facts = inspect_audio(path)
    assert (facts.frames, facts.sampling_rate, facts.channels) == (2 * RATE, RATE, 1)
    wave, _ = read_audio(path)
    assert np.abs(wave - chirp()).max() < (0.2 if suffix == ".ogg" else 1 / 32000)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_other_programs_see_the_wav_comment(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.wav", chirp(), RATE, {"prompt": "rain"})
    with soundfile.SoundFile(path) as file:
        assert json.loads(file.comment) == {"prompt": "rain"}
        assert "should be" not in file.extra_info  # the sizes in the header are right
    with soundfile.SoundFile(tmp_path / "b.wav", "w", RATE, 1) as file:
        file.comment = '{"by": "libsndfile"}'
        file.write(chirp())
    assert read_recipe(tmp_path / "b.wav") == {"by": "libsndfile"}


@pytest.mark.parametrize("comment", [None, "recorded at home", "[1, 2]", "{", "[" * 100000])
def test_file_without_a_recipe_has_none(tmp_path: Path, comment: str | None) -> None:
    for name in ("a.wav", "a.flac"):
        with soundfile.SoundFile(tmp_path / name, "w", RATE, 1) as file:
            if comment is not None:
                file.comment = comment
            file.write(chirp())
        assert read_recipe(tmp_path / name) is None
    assert read_recipe(write_audio(tmp_path / "b.ogg", chirp(), RATE, None)) is None


def test_recipe_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "a.flac").write_bytes(b"<html>" * 100)
    (tmp_path / "huge.wav").write_bytes(b"RIFF\xff\xff\xff\xffWAVELIST\xff\xff\xff\xffINFOICMT\xff\xff\xff\xff{}")
    assert read_recipe(tmp_path / "huge.wav") == {}
    for name in ("a.flac", "none.wav"):
        with pytest.raises(InputError, match=name):
            read_recipe(tmp_path / name)


def test_existing_file_is_kept_unless_asked(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.wav", chirp(), RATE, {"n": 1})
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"a\.wav exists"):
        write_audio(path, chirp(), RATE, {"n": 2})
    assert path.read_bytes() == before
    write_audio(path, chirp(), RATE, {"n": 2}, overwrite=True)
    assert read_recipe(path) == {"n": 2}


@pytest.mark.parametrize("wave", [np.zeros(0), np.full(100, np.nan), np.array([0, np.inf])])
def test_a_wave_that_is_none_writes_nothing(tmp_path: Path, wave: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"Nothing was written to .*a\.wav"):
        write_audio(tmp_path / "a.wav", wave, RATE)
    assert not list(tmp_path.iterdir())


def test_places_and_names_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "file").write_text("x")
    cases = {"a.mp3": RATE, "a": RATE, "no/a.wav": RATE, "file/a.wav": RATE, "b.flac": 0, "c.ogg": 10**6}
    for name, rate in cases.items():
        with pytest.raises(InputError, match=name):
            write_audio(tmp_path / name, chirp(), rate)
    with pytest.raises(InputError, match=r"folder\.wav"):
        write_audio(tmp_path / "folder.wav", chirp(), RATE, overwrite=True)
    with pytest.raises(ValueError, match="shape"):
        write_audio(tmp_path / "a.wav", np.zeros((2, 100)), RATE)
    with pytest.raises(TypeError):
        write_audio(tmp_path / "a.wav", chirp(), RATE, {"path": tmp_path})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder.wav"]


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_full_disk_leaves_the_old_file(tmp_path: Path, suffix: str) -> None:
    path = write_audio(tmp_path / f"a{suffix}", chirp(0.1), RATE)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10000, hard))  # Python ignores the signal and gets the error
    try:
        with pytest.raises(InputError, match=f"a{suffix}"):
            write_audio(path, np.random.default_rng(0).uniform(-0.5, 0.5, 10 * RATE), RATE, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_loud_wave_is_clipped_and_not_wrapped(tmp_path: Path) -> None:
    wave, _ = read_audio(write_audio(tmp_path / "a.wav", np.array([0.5, 1.5, -3.0, 0.0]), RATE))
    np.testing.assert_allclose(wave, [0.5, 1, -1, 0], atol=1e-4)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_samples_are_rounded_to_the_nearest_step(tmp_path: Path, suffix: str) -> None:
    wave = np.random.default_rng(0).normal(0, 1e-4, RATE).astype(np.float32)  # three steps of 16 bits: a quiet passage
    written, _ = soundfile.read(write_audio(tmp_path / f"a{suffix}", wave, RATE), dtype="float32")
    error = (written - wave) * 32768
    assert np.abs(error).max() <= 0.5
    assert abs(error.mean()) < 0.01  # libsndfile's own conversion rounds down: -0.5
    again, _ = soundfile.read(write_audio(tmp_path / f"b{suffix}", written, RATE), dtype="float32")
    assert np.array_equal(again, written)


def test_ten_minutes_of_vorbis(tmp_path: Path) -> None:
    # libsndfile's encoder overruns its stack when it is given all of this in one call
    path = write_audio(tmp_path / "a.ogg", np.zeros(600 * RATE, np.float32), RATE)
    assert audio_seconds(path) == 600


@pytest.mark.parametrize("wave", [np.zeros(RATE), chirp(0.01), chirp(90)])
def test_spectrogram_is_a_picture(tmp_path: Path, wave: np.ndarray) -> None:
    import matplotlib.image

    path = save_spectrogram(tmp_path / "a.png", wave, RATE)
    height, width, _ = matplotlib.image.imread(path).shape
    assert width > 2 * height > 400
    save_spectrogram(path, wave, RATE)
    with pytest.raises(InputError, match=r"no/a\.png"):
        save_spectrogram(tmp_path / "no/a.png", wave, RATE)
