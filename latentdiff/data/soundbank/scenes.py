"""What a clip of the starter corpus holds, before it is put into words or into sound."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from latentdiff.data.soundbank.catalogue import BY_LABEL, CATALOGUE, Source

SINGLE_SHARE = 0.85  # clips with one source
LOUDNESS = {"quiet": 0.15, "normal": 0.65, "loud": 0.2}
SEVERAL = 5  # from here on nobody counts


@dataclass(frozen=True)
class Event:
    """One source and how it sounds.

    Attributes:
        label: Name of the source in the catalogue.
        count: Strikes or repeated notes; 0 where counting makes no sense.
        pitch: "low", "middle", "high", or "" for sounds without a pitch class.
        speed: "slow", "fast" or "".
        loudness: "quiet", "normal" or "loud".
        pattern: "hold", "strike", "steps", "groove", or for instruments "note", "repeat", "rising scale",
            "falling scale", "melody", "chord".
    """

    label: str
    count: int = 0
    pitch: str = ""
    speed: str = ""
    loudness: str = "normal"
    pattern: str = "hold"

    @property
    def source(self) -> Source:
        """The catalogue entry."""
        return BY_LABEL[self.label]


@dataclass(frozen=True)
class Scene:
    """One event, or two that sound "together" or one "then" the other."""

    events: tuple[Event, ...]
    relation: str = ""


def _choose(rng: np.random.Generator, weights: dict[str, float]) -> str:
    names = list(weights)
    shares = np.array([weights[name] for name in names])
    return names[int(rng.choice(len(names), p=shares / shares.sum()))]


def _draw_strikes(rng: np.random.Generator, source: Source, span_s: float) -> tuple[int, str]:
    """Draws how often and how fast, so that all strikes fit into the span."""
    room = 0.88 * span_s - min(source.length_s, 0.5 * span_s)
    most = 1 + int(room / (1.15 * source.gap_s)) if source.countable else 1
    shares = {1: 0.27, 2: 0.25, 3: 0.2, 4: 0.18, SEVERAL: 0.1}
    weights = {str(count): share for count, share in shares.items() if count <= most}
    count = int(_choose(rng, weights))
    if count == SEVERAL:
        count = int(rng.integers(SEVERAL, min(most, 7) + 1))
    speeds = {"": 0.5}
    if count >= 3 and (count - 1) * slow_gap(source) < room:
        speeds["slow"] = 0.25
    if count >= 3 and source.gap_s <= 0.6:
        speeds["fast"] = 0.25
    return count, _choose(rng, speeds)


def slow_gap(source: Source) -> float:
    """Seconds between two strikes that a listener calls slow."""
    return max(0.8, 1.8 * source.gap_s)


def draw_event(rng: np.random.Generator, source: Source, span_s: float) -> Event:
    """Draws how a source sounds.

    Args:
        rng: Random numbers.
        source: What sounds.
        span_s: Seconds that it has.

    Returns:
        The event.
    """
    loudness = _choose(rng, LOUDNESS)
    if source.play == "strike":
        count, speed = _draw_strikes(rng, source, span_s)
        return Event(source.label, count, "", speed, loudness, "strike")
    if source.play in ("steps", "groove"):
        return Event(source.label, 0, "", _choose(rng, {"": 0.4, "slow": 0.3, "fast": 0.3}), loudness, source.play)
    if source.play == "hold":
        return Event(source.label, loudness=loudness)
    patterns = {"note": 0.24, "repeat": 0.3, "rising scale": 0.1, "falling scale": 0.08, "melody": 0.18}
    if source.chords:
        patterns["chord"] = 0.15
    pattern = _choose(rng, patterns)
    pitch = _choose(rng, {"low": 0.33, "middle": 0.34, "high": 0.33})
    speed, count = "", 0
    if pattern not in ("note", "chord"):
        speed = _choose(rng, {"": 0.4, "slow": 0.3, "fast": 0.3})
    if pattern == "repeat":
        count = int(rng.integers(2, 5 if span_s > 3.0 else 4))
        speed = "" if count == 2 or speed == "slow" and span_s < 3.0 else speed
    return Event(source.label, count, pitch, speed, loudness, pattern)


def _weight(source: Source) -> float:
    if source.label == "dog":
        return 2.0
    return 1.0 if source.kind == "effect" else 1.5  # an instrument has many pitches and figures to learn


def draw_scene(rng: np.random.Generator, seconds: float, label: str | None = None) -> Scene:
    """Draws what a clip holds.

    Args:
        rng: Random numbers.
        seconds: Length of the clip.
        label: A single source by name; without it the sources are drawn too.

    Returns:
        The scene.
    """
    if label is not None:
        return Scene((draw_event(rng, BY_LABEL[label], seconds),))
    weights = np.array([_weight(source) for source in CATALOGUE])
    single = bool(rng.random() < SINGLE_SHARE)
    drawn = rng.choice(len(CATALOGUE), size=1 if single else 2, replace=False, p=weights / weights.sum())
    sources = [CATALOGUE[int(index)] for index in drawn]
    if single:
        return Scene((draw_event(rng, sources[0], seconds),))
    relation = "together" if rng.random() < 0.5 else "then"
    span = seconds if relation == "together" else 0.5 * seconds
    return Scene(tuple(draw_event(rng, source, span) for source in sources), relation)
