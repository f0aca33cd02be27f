"""Audio files in and out: reading with every fault named, writing with the recipe inside.

soundfile says nothing about a file that was cut short: it returns the samples that are there. What it knows
stands in its header log (WAV, AIFF, OGG) or shows only when the last sample is asked for (FLAC, MP3), so all
reading goes through `_open` and `_blocks`, which look at both.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from latentdiff.errors import InputError
from latentdiff.media.files import BrokenMediaError, write_whole
from latentdiff.media.headers import (
    cut_in_log,
    first_bytes_fault,
    untagged_mp3_seconds,
    wav_comment,
    with_wav_comment,
)
from latentdiff.media.packed import as_path, openable

READABLE_SUFFIXES = frozenset(
    {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".caf", ".w64"}
)
UNREADABLE_SUFFIXES = frozenset({".m4a", ".mp4", ".aac", ".wma", ".webm", ".ape", ".wv"})
"""Audio that people have and libsndfile cannot decode: to be reported, never passed over."""

TRUNCATED = "truncated or damaged"
LENGTH_UNKNOWN = "length unknown"

_WRITERS = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS")}
_BLOCK = 1 << 17  # frames a call; libsndfile's Vorbis encoder overruns its stack on ten minutes in one call
_MAX_WRITTEN_RATE = 200_000  # Hz; above it libsndfile's Vorbis encoder crashes and its FLAC encoder refuses
_MP3_PREROLL = 8192  # frames; after a seek the first 3000 or so decode wrongly (empty bit reservoir)
_MP3_SLACK = 2 * 1152  # frames; encoders may count their tag's frame, and 128 bytes of ID3 may follow
_CLIPPED_LEVEL = 0.999


class BrokenAudioError(BrokenMediaError):
    """An audio file that cannot be used."""


@dataclass(frozen=True)
class AudioFacts:
    """What a whole file holds, over all channels: the largest |sample| and the share of clipped samples."""

    frames: int
    sampling_rate: int
    channels: int
    peak: float
    clipped: float

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return self.frames / self.sampling_rate


def read_audio(
    path: str | Path, sampling_rate: int | None = None, start_s: float = 0.0, duration_s: float | None = None
) -> tuple[np.ndarray, int]:
    """Read a file, or a part of it without decoding the rest, as one channel.

    A cut file is refused where the cut shows: WAV, AIFF and OGG always, FLAC and MP3 when the part asked for
    is affected (`inspect_audio` reads everything).

    Args:
        path: Audio file in any format of libsndfile: WAV, FLAC, OGG, Opus, MP3, AIFF and more.
        sampling_rate: Rate to resample to, in Hz; None keeps the file's own.
        start_s: Where to begin, in seconds.
        duration_s: How much to read, in seconds; None reads to the end. A file that ends earlier gives less.
            Resampling may give one sample more or less than duration_s * sampling_rate.

    Returns:
        The wave (samples,), float32, mean of the channels, and its sampling rate in Hz.

    Raises:
        InputError: The file is missing or broken, or the part lies outside it.
    """
    path = as_path(path)
    if start_s < 0 or (duration_s is not None and duration_s <= 0):
        raise InputError(f"Cannot read {duration_s} s of {path} from {start_s} s: ask for a positive part of it.")
    if sampling_rate is not None and sampling_rate <= 0:
        raise InputError(f"Cannot read {path} at {sampling_rate} Hz: the sampling rate must be positive.")
    with _open(path) as (file, frames):
        rate = file.samplerate
        start = round(start_s * rate)
        if start >= frames:
            raise InputError(f"{path} lasts {frames / rate:.3f} s: nothing is left to read at {start_s:g} s.")
        count = frames - start
        if duration_s is not None:
            count = min(count, max(1, round(duration_s * rate)))
        wave = np.concatenate([block.mean(axis=1) for block in _blocks(file, path, start, count)])
    if sampling_rate is None or sampling_rate == rate:
        return wave, rate
    return resample(wave, rate, sampling_rate), sampling_rate


def audio_seconds(path: str | Path) -> float:
    """Return the duration of a file in seconds by its header, after the checks that need no decoding.

    Raises:
        BrokenAudioError: The header shows that the file cannot be used.
    """
    with _open(as_path(path)) as (file, frames):
        return frames / float(file.samplerate)


def inspect_audio(path: str | Path) -> AudioFacts:
    """Decode a whole file and say what it holds.

    Raises:
        BrokenAudioError: The file is missing or broken anywhere.
    """
    path = as_path(path)
    samples, peak, clipped = 0, 0.0, 0
    with _open(path) as (file, frames):
        for block in _blocks(file, path, 0, frames):
            level = np.abs(block)
            samples += level.size
            peak = max(peak, float(level.max()))
            clipped += int(np.count_nonzero(level >= _CLIPPED_LEVEL))
        return AudioFacts(samples // file.channels, file.samplerate, file.channels, peak, clipped / samples)


def write_audio(
    path: str | Path,
    wave: np.ndarray,
    sampling_rate: int,
    recipe: dict | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a wave as WAV, FLAC (both 16 bit) or OGG Vorbis, by the suffix, with its recipe inside.

    The file appears whole or not at all. Samples beyond [-1, 1] are clipped, as in every 16-bit file.

    Args:
        path: File to write, in a folder that exists.
        wave: Samples in [-1, 1], (samples,).
        sampling_rate: In Hz.
        recipe: What made the sound, JSON values only; it goes into the file's comment (in WAV: INFO ICMT).
        overwrite: Replace a file that exists.

    Returns:
        The path written.

    Raises:
        InputError: Unknown suffix, existing file, unwritable place, or a wave with nothing or NaN in it.
    """
    path = Path(path)
    if path.suffix.lower() not in _WRITERS:
        raise InputError(f"Cannot write {path}: the name must end in {', '.join(_WRITERS)}.")
    wave = np.asarray(wave, dtype=np.float32)
    if wave.ndim != 1:
        raise ValueError(f"write_audio takes one channel (samples,), not an array of shape {wave.shape}")
    if not wave.size or not np.isfinite(wave).all():
        what = "NaN or infinite samples" if wave.size else "no samples"
        raise InputError(f"Nothing was written to {path}: the wave holds {what}.")
    if not 1 <= sampling_rate <= _MAX_WRITTEN_RATE:
        limit = f"between 1 and {_MAX_WRITTEN_RATE} Hz"
        raise InputError(f"Cannot write {path} at {sampling_rate} Hz: choose a sampling rate {limit}.")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists: choose another name or ask to overwrite it.")
    # ASCII, because nothing says how a WAV comment is encoded and a prompt from a shell may not be UTF-8.
    comment = None if recipe is None else json.dumps(recipe)
    write_whole(path, encode_audio(wave, sampling_rate, path.suffix.lower(), comment))
    return path


def read_recipe(path: str | Path) -> dict | None:
    """Return the recipe that a file carries, or None where it carries none.

    It comes from a file, so it is as trustworthy as the file's sender: data to show, never to run.

    Raises:
        InputError: The file is missing, or is neither WAV nor anything else that libsndfile reads.
    """
    path = Path(path)
    if not path.is_file():
        raise _broken(path, "no such file")
    comment = wav_comment(path)
    if comment is None:
        with _open(path) as (file, _):
            comment = file.comment
    try:
        recipe = json.loads(comment)
    except (ValueError, RecursionError):
        return None
    return recipe if isinstance(recipe, dict) else None


def save_spectrogram(path_png: str | Path, wave: np.ndarray, sampling_rate: int) -> Path:
    """Write `spectrogram_png` of a wave (samples,).

    A picture that exists is replaced: the caller decides about overwriting, for the sound and its picture.

    Raises:
        InputError: The place is not writable.
    """
    write_whole(Path(path_png), spectrogram_png(wave, sampling_rate))
    return Path(path_png)


def spectrogram_png(
    wave: np.ndarray, sampling_rate: int, size: tuple[float, float] = (8, 3.2), dpi: int = 120
) -> bytes:
    """Draw the spectrogram of a wave (samples,): time in s, frequency in kHz, 80 dB deep.

    Args:
        wave: In [-1, 1].
        sampling_rate: In Hz.
        size: Of the picture, width and height in inches.
        dpi: Pixels an inch.
    """
    from matplotlib.figure import Figure  # the Figure alone: pyplot would open windows and keep global state

    wave = np.asarray(wave, dtype=np.float32)
    window = 1024
    hop = max(window // 4, wave.size // 2000)  # as many columns as the picture can show
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(wave, window // 2), window)[::hop]
    amplitude = np.abs(np.fft.rfft(frames * np.hanning(window), axis=1)) / (window / 4)  # full-scale sine: 1
    level = 20 * np.log10(np.maximum(amplitude, 1e-7))
    top = max(float(level.max()), -60.0)  # silence stays dark instead of having its rounding errors stretched
    figure = Figure(figsize=size, dpi=dpi, layout="constrained")
    axes = figure.add_subplot()
    extent = (0.0, wave.size / sampling_rate, 0.0, sampling_rate / 2000)
    picture = axes.imshow(level.T, origin="lower", aspect="auto", extent=extent, vmin=top - 80, vmax=top, cmap="magma")
    axes.set(xlabel="time (s)", ylabel="frequency (kHz)")
    figure.colorbar(picture, ax=axes, label="dB of full scale")
    png = io.BytesIO()
    figure.savefig(png, format="png")  # draws with Agg whatever the display
    return png.getvalue()


def _broken(path: Path, reason: str, detail: str = "") -> BrokenAudioError:
    return BrokenAudioError.of(path, "audio file", reason, detail)


@contextmanager
def _open(path: Path) -> Iterator[tuple[soundfile.SoundFile, int]]:
    """Open a file for reading and tell its number of frames, or say by its header why it cannot be used."""
    if not path.is_file():
        raise _broken(path, "no such file" if not path.exists() else "not a regular file")
    try:
        fault = first_bytes_fault(path)
    except OSError as error:
        fault = "unreadable", error.strerror or str(error)
    if fault:
        raise _broken(path, *fault)
    try:
        file = soundfile.SoundFile(openable(path))
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a headerless .raw file
        raise _broken(path, *_why_unreadable(path, error)) from None
    with file:
        yield file, _frames(file, path)


def _frames(file: soundfile.SoundFile, path: Path) -> int:
    """Return the number of frames, if the header does not show that some are missing."""
    if cut := cut_in_log(file.extra_info):
        raise _broken(path, TRUNCATED, cut)
    if not file.frames:
        # A short OGG that is cut has 0 frames and nothing in its log: there is no telling the two apart.
        raise _broken(path, "no samples", "0 frames, or all of them cut off")
    if file.frames > 2**62:
        raise _broken(path, LENGTH_UNKNOWN, "a FLAC written to a pipe; encode it again to a file")
    if file.format == "MP3" and (seconds := untagged_mp3_seconds(path)) is not None:
        if not seconds:
            detail = "an MP3 of variable bitrate without a length tag; convert it to WAV or FLAC"
            raise _broken(path, LENGTH_UNKNOWN, detail)
        return min(int(file.frames), max(1, int(seconds * file.samplerate)))
    return int(file.frames)


def _blocks(file: soundfile.SoundFile, path: Path, start: int, count: int) -> Iterator[np.ndarray]:
    """Yield the frames [start, start + count) in blocks (frames, channels), every sample there and finite."""
    position, end = start, start + count
    try:
        if start:
            preroll = min(start, _MP3_PREROLL) if file.format == "MP3" else 0
            file.seek(start - preroll)
            file.read(preroll, dtype="float32")
        while position < end:
            block = file.read(min(_BLOCK, end - position), dtype="float32", always_2d=True)
            if not len(block):
                if file.format == "MP3" and start < position >= end - _MP3_SLACK:
                    return
                detail = f"{file.frames} frames declared, decoding ends after {position}"
                raise _broken(path, TRUNCATED, detail)
            if not (finite := np.isfinite(block).all(axis=1)).all():
                at = (position + int(np.argmin(finite))) / file.samplerate
                raise _broken(path, "NaN or infinite samples", f"the first at {at:.3f} s")
            yield block
            position += len(block)
    except soundfile.SoundFileError as error:
        raise _broken(path, TRUNCATED, _library_text(error)) from None


def _why_unreadable(path: Path, error: Exception) -> tuple[str, str]:
    if path.suffix.lower() in UNREADABLE_SUFFIXES:
        return "unreadable", f"libsndfile does not decode {path.suffix} files: convert it to WAV or FLAC"
    text = _library_text(error)
    if "does not exist" in text:  # untrue: libsndfile says so of an MP3 without a single MPEG frame
        text = "no MP3 frame found"
    return (TRUNCATED if "malformed" in text or "chunk marker" in text else "unreadable"), text


def _library_text(error: Exception) -> str:
    text = getattr(error, "error_string", "no header that names its format")
    return text.removeprefix("Error : ").rstrip(".")


def resample(wave: np.ndarray, rate: int, target: int) -> np.ndarray:
    import soxr

    return soxr.resample(wave, rate, target).astype(np.float32, copy=False)


def encode_audio(wave: np.ndarray, sampling_rate: int, suffix: str, comment: str | None = None) -> bytes:
    """Return the bytes of an audio file, of the kinds that `write_audio` writes.

    It is made in memory because libsndfile writes an OGG to a full disk without an error.
    """
    container, subtype = _WRITERS[suffix]
    if subtype == "PCM_16":  # in a WAV libsndfile rounds floats down: an offset of half a step, twice the error
        wave = np.clip(np.rint(wave * 32768.0), -32768, 32767).astype(np.int16)
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", sampling_rate, 1, subtype, format=container) as file:
        if comment is not None and container != "WAV":
            file.comment = comment
        for at in range(0, len(wave), _BLOCK):
            file.write(wave[at : at + _BLOCK])
    if comment is not None and container == "WAV":
        return with_wav_comment(buffer.getvalue(), comment)
    return buffer.getvalue()
