"""The starter corpus: its sources, its wordings and its sound."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from latentdiff.data.soundbank import BY_LABEL, CATALOGUE, LABELS, Event, Scene, captions, draw_scene, prompts
from latentdiff.data.soundbank import render as render_module
from latentdiff.data.soundbank import synthesizer as synthesizer_module
from latentdiff.errors import InputError

SECONDS, RATE = 4.096, 16_000


@pytest.fixture(scope="module")
def synthesizer() -> synthesizer_module.Synthesizer:
    try:
        return synthesizer_module.Synthesizer()
    except InputError as error:
        pytest.skip(str(error))


def plain(text: str) -> str:
    return text.lower().rstrip(".")


def test_catalogue_covers_the_effects_and_instruments_it_promises() -> None:
    kinds = [source.kind for source in CATALOGUE]
    assert len(set(LABELS)) == len(LABELS)
    assert kinds.count("effect") >= 30 and kinds.count("instrument") >= 32 and kinds.count("drums") >= 2
    for source in CATALOGUE:
        assert source.keys[0] <= source.keys[1], source.label
        assert source.play == "notes" or source.clauses, source.label
        assert (source.play == "strike") == bool(source.strikes), source.label
        assert source.play != "notes" or source.keys[1] - source.keys[0] >= 12, source.label


def test_no_name_belongs_to_two_sources() -> None:
    names = [name for source in CATALOGUE for name in source.names]
    assert len(names) == len(set(names))


def test_two_barks_are_worded_many_ways() -> None:
    scene = Scene((Event("dog", 2, pattern="strike"),))
    texts = {plain(text) for seed in range(500) for text in captions(scene, np.random.default_rng(seed), 4)}
    assert {
        "a dog barks twice",
        "two barks of a dog",
        "two dog barks",
        "barking dog",
        "dog barking",
        "dog",
    } <= texts
    assert len(texts) > 150


def test_how_often_stands_anywhere_in_a_wording() -> None:
    """Else a small encoder knows numbers only where captions have them."""
    scene = Scene((Event("dog", 3, pattern="strike", loudness="loud"),))
    texts = {read(text) for seed in range(400) for text in captions(scene, np.random.default_rng(seed), 4)}
    assert {"loud three times dog bark", "three times dog bark loud", "it happens three times a dog barks"} <= texts
    scene = Scene((Event("violin", 3, "low", pattern="repeat"),))
    texts = {read(text) for seed in range(400) for text in captions(scene, np.random.default_rng(seed), 4)}
    assert {
        "three low notes violin",
        "with the violin someone plays three notes",
        "a violin plays three notes",
    } <= texts


def test_captions_are_distinct_and_state_only_what_is_there() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        scene = draw_scene(rng, SECONDS)
        texts = captions(scene, rng, 4)
        assert len({plain(text) for text in texts}) == 4
        for text in map(plain, texts):
            assert "  " not in text and text == text.strip() and not re.search(r"\ba [aeio]|\ban [^aeio]", text), text
            loudness = {event.loudness for event in scene.events}
            assert "loud" in loudness or not re.search(r"\bloud(ly)?\b", text), text
            assert "quiet" in loudness or not re.search(r"\b(quiet|soft|faint)(ly)?\b", text), text
            if len(scene.events) == 1 and re.search(r"\b(twice|two)\b", text):
                assert scene.events[0].count == 2, text


def read(text: str) -> str:
    """What a text encoder reads, without marks."""
    return re.sub(r"[\s.,:;!?]+", " ", text.lower()).strip()


def test_training_and_held_out_wordings_never_coincide() -> None:
    rng = np.random.default_rng(1)
    for label in LABELS:
        seen: set[str] = set()
        held: set[str] = set()
        for _ in range(6):
            scene = draw_scene(rng, SECONDS, label)
            seen |= {read(text) for _ in range(12) for text in captions(scene, rng, 6)}
            held |= {read(text) for _ in range(6) for text in captions(scene, rng, 2, held_out=True)}
        assert not seen & held, label
    for _ in range(150):
        scene = draw_scene(rng, SECONDS)
        seen = {read(text) for _ in range(8) for text in captions(scene, rng, 6)}
        assert not seen & {read(text) for _ in range(4) for text in captions(scene, rng, 2, held_out=True)}


def test_held_out_wordings_use_the_words_of_training() -> None:
    rng = np.random.default_rng(2)
    vocabulary = {
        word
        for _ in range(5000)
        for text in captions(draw_scene(rng, SECONDS), rng, 2)
        for word in re.findall(r"[a-z]+", text.lower())
    }
    words = [word for text, _ in prompts(600, seed=3) for word in re.findall(r"[a-z]+", text.lower())]
    unknown = {word for word in words if word not in vocabulary}
    assert unknown <= {"who"}


def test_prompts_spread_over_all_labels_and_follow_the_seed() -> None:
    pairs = prompts(2 * len(LABELS), seed=5)
    assert sorted(label for _, label in pairs) == sorted(2 * LABELS)
    assert pairs == prompts(2 * len(LABELS), seed=5) != prompts(2 * len(LABELS), seed=6)


def test_a_clip_does_not_depend_on_the_clips_before_it(synthesizer: synthesizer_module.Synthesizer) -> None:
    arguments = (SECONDS, 11, RATE, 2)
    forward = [render_module.render_clip(synthesizer, index, *arguments) for index in range(8)]
    for index in reversed(range(8)):
        clip, row = render_module.render_clip(synthesizer, index, *arguments)
        assert np.array_equal(clip, forward[index][0]) and row == forward[index][1]


def test_nothing_rings_on_after_a_clip(synthesizer: synthesizer_module.Synthesizer) -> None:
    loud = synthesizer.play(("gm", 0, 19), [(0.0, 9.0, 48, 120)], 1.0)  # an organ key that is never released
    assert np.abs(loud).max() > 0.01
    assert np.abs(synthesizer.play(("gm", 0, 19), [], 1.0)).max() == 0.0


def test_three_barks_are_three_bursts(synthesizer: synthesizer_module.Synthesizer) -> None:
    scene = Scene((Event("dog", 3, speed="slow", pattern="strike"),))
    wave = render_module.render_scene(synthesizer, np.random.default_rng(0), scene, SECONDS, RATE)
    assert wave is not None and wave.shape == (round(SECONDS * RATE),) and wave.dtype == np.float32
    frames = np.abs(wave[: len(wave) // 800 * 800]).reshape(-1, 800).max(axis=1) > 0.1 * np.abs(wave).max()
    assert np.sum(np.diff(np.r_[0, frames.astype(int)]) == 1) == 3


@pytest.mark.parametrize(
    ("loudness", "low", "high"), [("quiet", 0.13, 0.29), ("normal", 0.5, 0.8), ("loud", 0.87, 0.98)]
)
def test_loudness_is_the_peak(
    synthesizer: synthesizer_module.Synthesizer, loudness: str, low: float, high: float
) -> None:
    scene = Scene((Event("violin", pitch="high", loudness=loudness, pattern="note"),))
    wave = render_module.render_scene(synthesizer, np.random.default_rng(1), scene, SECONDS, RATE)
    assert wave is not None and low <= np.abs(wave).max() <= high


def test_pitch_words_are_the_pitch(synthesizer: synthesizer_module.Synthesizer) -> None:
    tops = []
    for pitch in ("low", "middle", "high"):
        scene = Scene((Event("flute", pitch=pitch, pattern="note"),))
        wave = render_module.render_scene(synthesizer, np.random.default_rng(2), scene, SECONDS, RATE)
        assert wave is not None
        spectrum = np.abs(np.fft.rfft(wave))
        tops.append(int(np.argmax(spectrum > 0.2 * spectrum.max())))  # the fundamental
    assert tops[0] < tops[1] < tops[2]


def test_then_means_one_after_the_other(synthesizer: synthesizer_module.Synthesizer) -> None:
    scene = Scene((Event("rain"), Event("dog", 1, pattern="strike")), "then")
    wave = render_module.render_scene(synthesizer, np.random.default_rng(3), scene, SECONDS, RATE)
    assert wave is not None
    half = len(wave) // 2
    assert np.median(np.abs(wave[:half])) > 0.01 and np.abs(wave[half:]).max() > 0.3
    assert np.median(np.abs(wave[half:])) < 1e-3  # the rain has stopped


def test_a_rendered_folder_is_complete_and_the_same_for_any_number_of_workers(
    tmp_path: Path, synthesizer: synthesizer_module.Synthesizer
) -> None:
    import soundfile

    one, two = tmp_path / "one", tmp_path / "deep" / "two"
    render_module.render_soundbank(one, 34, 2.0, seed=4, workers=1, captions_per_clip=3, progress=False)
    render_module.render_soundbank(two, 34, 2.0, seed=4, workers=2, captions_per_clip=3, progress=False)
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len(files) == 35
    assert all((one / path).read_bytes() == (two / path).read_bytes() for path in files)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "one"]  # no staging folder stays
    rows = [json.loads(line) for line in (one / "metadata.jsonl").read_text().splitlines()]
    for row in rows:
        wave, rate = soundfile.read(one / row["file_name"])
        assert rate == RATE and wave.shape == (2 * RATE,) and 0.01 < np.abs(wave).max() < 1.0
        assert len(row["text"]) == 3 and all(label in BY_LABEL for label in row["sources"])
    with pytest.raises(InputError, match="not empty"):
        render_module.render_soundbank(one, 1, 2.0, seed=4, progress=False)
    render_module.render_soundbank(one, 1, 2.0, seed=4, workers=1, overwrite=True, progress=False)
    assert len(list((one / "audio").iterdir())) == 1


def test_a_missing_sound_font_names_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesizer_module, "FONT_FOLDER", tmp_path)
    monkeypatch.setenv(synthesizer_module.FONT_VARIABLE, str(tmp_path))
    with pytest.raises(InputError, match="fluid-soundfont-gm fluid-soundfont-gs"):
        render_module.render_soundbank(tmp_path / "out", 1, 2.0, seed=0, progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", [{"clips": 0}, {"seconds": 0.0}, {"sampling_rate": 10}, {"captions_per_clip": 0}])
def test_bad_arguments_are_refused(tmp_path: Path, change: dict[str, float]) -> None:
    arguments = {
        "clips": 1,
        "seconds": 2.0,
        "seed": 0,
        "sampling_rate": RATE,
        "captions_per_clip": 1,
        **change,
    }
    with pytest.raises(InputError, match=next(iter(change))):
        render_module.render_soundbank(tmp_path / "out", **arguments)
