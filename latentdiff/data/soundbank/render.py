"""Renders the starter corpus: scenes drawn from the sound bank, played by FluidSynth, put into words.

Clip i is made from the seed and i alone, with one synthesizer a worker process, which stays open.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from latentdiff.data.soundbank.captions import captions
from latentdiff.data.soundbank.scenes import Event, Scene, draw_scene, slow_gap
from latentdiff.data.soundbank.synthesizer import SYNTH_RATE, Note, Synthesizer
from latentdiff.data.staging import written_whole
from latentdiff.errors import InputError

GAIN_DB = {"quiet": (-17.0, -11.0), "normal": (-6.0, -2.0), "loud": (-1.2, -0.2)}  # peak of an event
NOTE_GAP_S = {"slow": (0.55, 0.75), "": (0.34, 0.46), "fast": (0.16, 0.22)}
STEP_GAP_S = {"slow": (0.75, 0.95), "": (0.5, 0.62), "fast": (0.28, 0.38)}
HEART_GAP_S = {"slow": (1.15, 1.4), "": (0.8, 0.95), "fast": (0.5, 0.58)}
BEAT_S = {"slow": (0.36, 0.42), "": (0.24, 0.28), "fast": (0.15, 0.18)}  # one eighth note
MAJOR = (0, 2, 4, 5, 7, 9, 11)
CHORDS = ((0, 4, 7), (0, 3, 7), (0, 4, 7, 12), (0, 3, 7, 12))
SILENT = 1e-4


def _uniform(rng: np.random.Generator, limits: tuple[float, float]) -> float:
    return float(rng.uniform(*limits))


def _series(rng: np.random.Generator, starts: list[float], length: float, key: int, spread: int) -> list[Note]:
    """Strikes at given times, each a little different; a strike ends where the next begins."""
    ends = [min(start + length, after) for start, after in zip(starts, [*starts[1:], np.inf], strict=True)]
    return [
        (start, end, key + int(rng.integers(-spread, spread + 1)), int(rng.integers(88, 122)))
        for start, end in zip(starts, ends, strict=True)
    ]


def _strikes(rng: np.random.Generator, event: Event, span_s: float) -> list[Note]:
    source = event.source
    key = int(rng.integers(source.keys[0], source.keys[1] + 1))
    room = 0.9 * span_s - min(source.length_s, 0.5 * span_s)
    gap = source.gap_s * _uniform(rng, (1.15, 1.7))
    if event.speed == "slow":
        gap = slow_gap(source) * _uniform(rng, (1.0, 1.3))
    elif event.speed == "fast":
        gap = source.gap_s * _uniform(rng, (1.0, 1.1))
    if event.count > 1:
        gap = min(gap, room / (event.count - 1))
    jitter = 0.04 * gap
    starts = [max(0.0, i * gap + _uniform(rng, (-jitter, jitter))) for i in range(event.count)]
    return _series(rng, starts, max(source.length_s, 0.2) + 2.0, key, 0)


def _groove(rng: np.random.Generator, event: Event, span_s: float) -> list[Note]:
    """Bass drum, snare and hi-hat in eighths, with small random differences."""
    beat = _uniform(rng, BEAT_S[event.speed])
    kick = [i for i in range(8) if i in (0, 4) or rng.random() < 0.2]
    snare, hat = [2, 6] + ([7] if rng.random() < 0.2 else []), int(rng.choice((42, 46, 51)))
    notes: list[Note] = []
    for i in range(int(span_s / beat)):
        for key, steps, level in ((36, kick, 112), (38, snare, 108), (hat, range(8), 84)):
            if i % 8 in steps:
                notes.append((i * beat, i * beat + 0.9 * beat, key, level + int(rng.integers(-8, 9))))
    return notes


def _tonic(rng: np.random.Generator, event: Event) -> tuple[int, int, int]:
    """A key inside the event's third of the range, and the limits of that third."""
    low, high = event.source.keys
    third = (high - low) / 3
    index = ("low", "middle", "high").index(event.pitch)
    lower, upper = round(low + index * third), round(low + (index + 1) * third)
    return int(rng.integers(lower, upper + 1)), lower, upper


def _music(rng: np.random.Generator, event: Event, span_s: float) -> list[Note]:
    """One note, some notes, a scale, a melody or a chord."""
    tonic, lower, upper = _tonic(rng, event)
    velocity = int(rng.integers(86, 118))
    if event.pattern in ("note", "chord"):
        shape = CHORDS[int(rng.integers(len(CHORDS)))] if event.pattern == "chord" else (0,)
        length = span_s * _uniform(rng, (0.35, 0.8))
        return [
            (0.0, length, min(tonic, event.source.keys[1] - 7) + step if len(shape) > 1 else tonic, velocity)
            for step in shape
        ]
    gap = _uniform(rng, NOTE_GAP_S[event.speed])
    if event.pattern == "repeat":
        gap = min(1.6 * gap, 0.85 * span_s / event.count)
        keys = [tonic] * event.count
    elif event.pattern == "melody":
        most = max(4, min(int(0.85 * span_s / gap), 14))
        count = int(rng.integers(4, most + 1))
        scale = [tonic + octave + step for octave in (-12, 0, 12) for step in MAJOR]
        scale = [key for key in scale if min(lower, upper - 8) <= key <= upper] or [tonic]
        place, keys = int(rng.integers(len(scale))), []
        for _ in range(count):
            keys.append(scale[place])
            place = int(np.clip(place + rng.choice((-2, -1, 1, 2)), 0, len(scale) - 1))
    else:
        count = min(8, max(4, int(0.85 * span_s / gap)))
        ladder = [12 * (i // 7) + MAJOR[i % 7] for i in range(count)]
        base = min(tonic, event.source.keys[1] - ladder[-1])
        keys = [base + step for step in (ladder if event.pattern == "rising scale" else ladder[::-1])]
    gap = min(gap, 0.9 * span_s / len(keys))
    return [(i * gap, (i + 0.92) * gap, key, velocity + int(rng.integers(-6, 7))) for i, key in enumerate(keys)]


def _notes(rng: np.random.Generator, event: Event, span_s: float) -> list[Note]:
    source = event.source
    key = int(rng.integers(source.keys[0], source.keys[1] + 1))
    if event.pattern == "strike":
        return _strikes(rng, event, span_s)
    if event.pattern == "groove":
        return _groove(rng, event, span_s)
    if event.pattern == "steps":
        gap = _uniform(rng, (HEART_GAP_S if source.label == "heartbeat" else STEP_GAP_S)[event.speed])
        starts = [i * gap + _uniform(rng, (0.0, 0.03 * gap)) for i in range(int(span_s / gap) + 1)]
        return _series(rng, [start for start in starts if start < span_s - 0.2], source.length_s, key, 2)
    if event.pattern == "hold":
        end = span_s + source.lead_s if rng.random() < 0.65 else _uniform(rng, (0.6, 1.0)) * span_s + source.lead_s
        return [(0.0, end, key, int(rng.integers(90, 120)))]
    return _music(rng, event, span_s)


def _fade(wave: np.ndarray, seconds: float, rate: int, start: bool) -> None:
    """Fades the beginning or the end of a wave in place."""
    count = min(int(seconds * rate), len(wave))
    ramp = np.linspace(0.0, 1.0, count, dtype=np.float32)
    if start:
        wave[:count] *= ramp
    elif count:
        wave[-count:] *= ramp[::-1]


def _event_wave(
    synthesizer: Synthesizer,
    rng: np.random.Generator,
    event: Event,
    begin_s: float,
    end_s: float,
    seconds: float,
    rate: int,
) -> np.ndarray:
    """Renders one event into a silent clip.

    Returns:
        (seconds * rate,) float32, its peak set by the event's loudness; all zero when nothing sounded.
    """
    import soxr

    source, wave = event.source, np.zeros(round(seconds * rate), dtype=np.float32)
    going_on = event.pattern == "hold" and begin_s == 0.0 and rng.random() < 0.6
    start = begin_s + (0.0 if going_on else _uniform(rng, (0.01, 0.12)) * (end_s - begin_s))
    span = end_s - start
    preset = source.presets[int(rng.integers(len(source.presets)))]
    sound = synthesizer.play(preset, _notes(rng, event, span), span + source.lead_s, int(rng.integers(-600, 601)))
    sound = sound[int(source.lead_s * SYNTH_RATE) :]
    sound = soxr.resample(sound, SYNTH_RATE, rate).astype(np.float32)
    first = round(start * rate)
    sound = np.ascontiguousarray(sound[: round(end_s * rate) - first])
    if source.lead_s:
        _fade(sound, 0.01 if going_on else 0.08, rate, start=True)
    if end_s < seconds:
        _fade(sound, 0.12, rate, start=False)  # makes room for the second sound
    peak = float(np.abs(sound).max(initial=0.0))
    if peak > SILENT:
        wave[first : first + len(sound)] = sound * (10 ** (_uniform(rng, GAIN_DB[event.loudness]) / 20) / peak)
    return wave


def render_scene(
    synthesizer: Synthesizer,
    rng: np.random.Generator,
    scene: Scene,
    seconds: float,
    sampling_rate: int,
) -> np.ndarray | None:
    """Renders a scene.

    Args:
        synthesizer: Who plays.
        rng: Random numbers: times, keys, levels.
        scene: What sounds.
        seconds: Length of the clip.
        sampling_rate: Samples a second of the clip.

    Returns:
        (samples,) float32 within -0.99 and 0.99, or None when one of the events cannot be heard.
    """
    spans = [(0.0, seconds)] * len(scene.events)
    if scene.relation == "then":
        middle = seconds * _uniform(rng, (0.46, 0.54))
        spans = [(0.0, middle), (middle, seconds)]
    waves = [
        _event_wave(synthesizer, rng, event, *span, seconds, sampling_rate)
        for event, span in zip(scene.events, spans, strict=True)
    ]
    if any(np.abs(wave).max() <= SILENT for wave in waves):
        return None
    clip = np.sum(waves, axis=0)
    return clip * np.float32(min(1.0, 0.99 / float(np.abs(clip).max())))


def render_clip(
    synthesizer: Synthesizer,
    index: int,
    seconds: float,
    seed: int,
    sampling_rate: int,
    captions_per_clip: int,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Renders clip `index` of the corpus `seed`; nothing else decides what it holds.

    Returns:
        The clip (samples,) float32 and its metadata row without the file name.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, index]))
    clip = None
    for _ in range(20):
        scene = draw_scene(rng, seconds)
        clip = render_scene(synthesizer, rng, scene, seconds, sampling_rate)
        if clip is not None:
            break
    if clip is None:
        raise RuntimeError(f"clip {index} of seed {seed} stayed silent in 20 draws")
    row = {
        "text": captions(scene, rng, captions_per_clip),
        "sources": [event.label for event in scene.events],
        "relation": scene.relation,
    }
    for name in ("count", "pitch", "speed", "loudness", "pattern"):
        row[name] = [getattr(event, name) for event in scene.events]
    return clip, row


_worker: list[Synthesizer] = []  # the one synthesizer of a worker process


def _render_range(folder: str, begin: int, end: int, seconds: float, seed: int, rate: int, wordings: int) -> list[str]:
    """Renders clips begin to end - 1 into a folder and returns their metadata lines."""
    import soundfile

    if not _worker:
        _worker.append(Synthesizer())
    lines = []
    for index in range(begin, end):
        clip, row = render_clip(_worker[0], index, seconds, seed, rate, wordings)
        name = f"audio/{index:06d}.wav"
        soundfile.write(Path(folder) / name, clip, rate, subtype="PCM_16")
        lines.append(json.dumps({"file_name": name, **row}, ensure_ascii=False))
    return lines


def _check(clips: int, seconds: float, sampling_rate: int, captions_per_clip: int) -> None:
    if clips < 1:
        raise InputError(f"clips is {clips}; ask for at least 1.")
    if not 1.0 <= seconds <= 60.0:
        raise InputError(f"seconds is {seconds}; a clip takes from 1 to 60 seconds.")
    if not 8000 <= sampling_rate <= 96_000:
        raise InputError(f"sampling_rate is {sampling_rate}; it must be from 8000 to 96000.")
    if not 1 <= captions_per_clip <= 8:
        raise InputError(f"captions_per_clip is {captions_per_clip}; it must be from 1 to 8.")


def render_soundbank(
    out: Path,
    clips: int,
    seconds: float,
    seed: int,
    sampling_rate: int = 16_000,
    workers: int | None = None,
    captions_per_clip: int = 6,
    overwrite: bool = False,
    progress: bool = True,
) -> None:
    """Renders a corpus as a folder of WAV files with a metadata.jsonl.

    Clip i depends on the seed and on i alone, so a longer corpus begins with the shorter one, and any number
    of workers writes the same bytes. The folder appears only when it is complete.

    Args:
        out: The folder to write.
        clips: How many.
        seconds: Length of each.
        seed: Seed of everything drawn.
        sampling_rate: Samples a second.
        workers: Processes; by default one a processor.
        captions_per_clip: Wordings a clip.
        overwrite: Replace a folder that is not empty.
        progress: Show a progress bar.

    Raises:
        InputError: A bad argument, or FluidSynth or its sound fonts are missing.
    """
    from tqdm import tqdm

    _check(clips, seconds, sampling_rate, captions_per_clip)
    Synthesizer()  # says what is not installed before any process starts
    workers = max(1, min(workers or os.cpu_count() or 1, clips // 32 + 1))
    with written_whole(out, overwrite) as staging:
        (staging / "audio").mkdir()
        jobs = [
            (str(staging), begin, min(begin + 32, clips), seconds, seed, sampling_rate, captions_per_clip)
            for begin in range(0, clips, 32)
        ]
        with (
            (staging / "metadata.jsonl").open("w", encoding="utf-8") as file,
            tqdm(total=clips, unit="clip", disable=not progress) as bar,
        ):
            for lines in _results(jobs, workers):
                file.writelines(line + "\n" for line in lines)
                bar.update(len(lines))


def _results(jobs: list[tuple[Any, ...]], workers: int) -> Iterator[list[str]]:
    """Runs the jobs and yields their metadata lines in order."""
    if workers == 1:
        yield from (_render_range(*job) for job in jobs)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_render_range, *zip(*jobs, strict=True))
