"""English wordings of a scene: a small grammar, a part of which is kept for testing.

A wording is a core ("a dog barks twice", "two barks of a dog") in a frame ("the sound of ..."). Some cores,
some frames and some ways to join two sounds are held out: they are never used unless `held_out=True`, and
then every wording has at least one of them. They are built from words that training wordings use as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latentdiff.data.soundbank.catalogue import LABELS, Source
from latentdiff.data.soundbank.scenes import SEVERAL, Event, Scene, draw_scene
from latentdiff.errors import InputError

MASS = frozenset({"rain", "thunder", "wind", "laughing", "screaming", "applause"})  # no article
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
TIMES = {1: "once", 2: "twice", 3: "three times", 4: "four times"}
COUNT_SHARE = 0.9  # of the wordings that can say how often, those that do
ADJECTIVES = {
    "quiet": ("quiet", "soft", "faint"),
    "loud": ("loud", "very loud"),
    "slow": ("slow",),
    "fast": ("fast", "quick"),
}
ADVERBS = {
    "quiet": ("quietly", "softly", "in the distance", "far away"),
    "loud": ("loudly", "very loudly"),
    "slow": ("slowly",),
    "fast": ("quickly", "fast"),
}

# {} is a noun phrase. Held-out frames reuse the words of the training frames.
FRAMES = (
    "the sound of {}",
    "sound of {}",
    "sounds of {}",
    "an audio clip of {}",
    "there is {}",
    "you hear {}",
    "i hear {}",
    "{} can be heard",
    "a clip that sounds like {}",
    "field recording: {}",
    "listen to {}",
    "close to the microphone, {}",
    "audio of {}",
    "this is {}",
    "up close, {}",
)
HELD_OUT_FRAMES = (
    "a recording of {}",
    "you can hear {}",
    "i can hear {}",
    "{}, close up",
    "an audio recording of {}",
    "there is the sound of {}",
    "the sound of {} can be heard",
    "this sounds like {}",
)
# {0} and {1} are noun phrases, {a} and {b} sentences.
JOINS = {
    "together": (
        "{0} and {1}",
        "{0} with {1}",
        "{0} and {1} at the same time",
        "{a} while {b}",
        "{b} while {a}",
        "{a} and {b}",
        "{a} and at the same time {b}",
        "{0} together with {1}",
        "{1} and {0}",
        "{0} with {1} in the background",
    ),
    "then": (
        "{0} followed by {1}",
        "{0} and then {1}",
        "{0}, then {1}",
        "{a}, then {b}",
        "{a}, and after that {b}",
        "first {0}, then {1}",
        "after {0}, {1}",
        "{a} before {b}",
    ),
}
HELD_OUT_JOINS = {
    "together": ("at the same time {a} and {b}", "while {a}, {b}", "together, {0} and {1}", "{0} while {b}"),
    "then": ("{1} after {0}", "first {a}, and then {b}", "{0}, and after that {1}", "{a}, followed by {1}"),
}
KEYWORD_JOINS = {
    "together": ("{} and {}", "{}, {}", "{} with {}", "{} {}"),
    "then": ("{} then {}", "{}, then {}"),
}


@dataclass
class _Words:
    """Random choices for one wording: which attributes it mentions and which synonyms it takes."""

    rng: np.random.Generator

    def maybe(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def pick(self, options: Sequence[str]) -> str:
        return options[int(self.rng.integers(len(options)))]

    def clause(self, source: Source) -> tuple[str, str, str]:
        return source.clauses[int(self.rng.integers(len(source.clauses)))]

    def adjectives(self, *attributes: str) -> str:
        """Some of the attributes as adjectives, with a space after them."""
        return "".join(
            self.pick(ADJECTIVES[name]) + " " for name in attributes if name in ADJECTIVES and self.maybe(0.5)
        )

    def adverbs(self, *attributes: str) -> str:
        """Some of the attributes as adverbs, with a space before them."""
        return "".join(" " + self.pick(ADVERBS[name]) for name in attributes if name in ADVERBS and self.maybe(0.5))


def with_article(phrase: str) -> str:
    """Puts "a" or "an" before a phrase."""
    return ("an " if phrase[0] in "aeio" else "a ") + phrase


def is_plural(name: str) -> bool:
    """Whether a name takes the plural: "bagpipes" does, "bass" and "chorus" do not."""
    return name == "timpani" or (name.endswith("s") and not name.endswith(("ss", "us")))


def _named(name: str, adjectives: str = "") -> str:
    """A name with the article it needs."""
    if name == "sea":
        return f"the {adjectives}sea"
    if name in MASS or is_plural(name):
        return adjectives + name
    return with_article(adjectives + name)


def _times(count: int, words: _Words) -> str:
    return words.pick(("several times", "many times", "again and again")) if count >= SEVERAL else TIMES[count]


def _effect_noun(event: Event, words: _Words) -> str:
    """A noun phrase about an effect or drums: "two loud dog barks", "rain falling softly"."""
    source = event.source
    if event.pattern == "strike" and words.maybe(0.6):
        singular, plural = source.strikes[int(words.rng.integers(len(source.strikes)))]
        adjectives = words.adjectives(event.loudness, event.speed)
        if not source.countable or not words.maybe(COUNT_SHARE):
            return with_article(adjectives + singular) if event.count == 1 else adjectives + plural
        if event.count >= SEVERAL:
            return f"{words.pick(('several', 'many'))} {adjectives}{plural}"
        if event.count > 1:
            return f"{NUMBERS[event.count]} {adjectives}{plural}"
        return words.pick(
            (
                with_article(adjectives + singular),
                f"one {adjectives}{singular}",
                f"a single {adjectives}{singular}",
            )
        )
    if words.maybe(0.35):
        return _named(source.names[0], words.adjectives(event.loudness, event.speed))
    subject, _, doing = words.clause(source)
    return f"{subject} {doing}{_manner(event, words)}"


def _manner(event: Event, words: _Words) -> str:
    """Adverbs after a verb, each with a space before it: " three times loudly"."""
    times = ""
    if event.source.countable and words.maybe(COUNT_SHARE) and (event.count > 1 or words.maybe(0.4)):
        times = " " + _times(event.count, words)
    return times + words.adverbs(event.speed, event.loudness)


def _music(event: Event, words: _Words, loudness: str = "") -> str:
    """What an instrument plays: "a low note", "three notes", "a fast rising scale"."""
    pitch, middle_share = "", 0.2 if event.pattern in ("note", "chord") else 0.0
    if event.pitch and words.maybe(middle_share if event.pitch == "middle" else 0.6):
        pitch = event.pitch + " "
    if event.pattern == "repeat":
        if words.maybe(0.35):
            return f"the same {pitch}note {_times(event.count, words)}"
        return f"{NUMBERS[event.count]} {words.adjectives(event.speed)}{pitch}notes"
    adjectives = words.adjectives(loudness, event.speed) + pitch
    if event.pattern == "note":
        return words.pick((with_article(adjectives + "note"), f"a single {adjectives}note", f"one {adjectives}note"))
    thing = words.pick(("melody", "tune")) if event.pattern == "melody" else event.pattern
    return with_article(adjectives + thing)


def _instrument_noun(event: Event, words: _Words) -> str:
    """A noun phrase about an instrument: "a high violin note", "a scale on the harp"."""
    source = event.source
    name = words.pick(source.names)
    if words.maybe(0.2):
        return _named(name, words.adjectives(event.loudness))
    if words.maybe(0.35):
        music = f" {_music(event, words)}" if words.maybe(0.7) else ""
        return f"{_named(name)} {source.verb[1]}{music}{words.adverbs(event.loudness)}"
    music = _music(event, words, event.loudness)
    played = "sung by a" if source.verb[0] == "sings" else words.pick(("on the", "played on the"))
    if source.label == "strings":
        played, name = "played by", _named(name)
    if music.startswith("the same"):
        return f"{music} {'by a' if source.verb[0] == 'sings' else 'on the'} {words.pick(source.names)}"
    if is_plural(name) or " with " in name or words.maybe(0.4):
        return f"{music} {played} {name}"
    head, _, last = music.rpartition(" ")
    if head in ("a", "an"):
        return f"{with_article(name)} {last}"
    return f"{head} {name} {last}"


def noun_phrase(event: Event, words: _Words) -> str:
    """One event as a noun phrase."""
    return _instrument_noun(event, words) if event.source.play == "notes" else _effect_noun(event, words)


def sentence(event: Event, words: _Words) -> str:
    """One event as a sentence, without a capital and a full stop."""
    source = event.source
    if source.play != "notes":
        subject, does, _ = words.clause(source)
        return f"{subject} {does}{_manner(event, words)}"
    name = words.pick(source.names)
    verb = source.verb[0].removesuffix("s") if is_plural(name) else source.verb[0]
    music = f" {_music(event, words)}" if words.maybe(0.85) else ""
    return f"{_named(name)} {verb}{music}{words.adverbs(event.loudness)}"


def _held_out_core(event: Event, words: _Words) -> str:
    """A noun phrase of a shape that training never shows, whether or not its marks are read."""
    source = event.source
    if source.play == "notes":
        name = words.pick(source.names)
        return words.pick(
            (
                f"{name}: {_music(event, words, event.loudness)}",
                f"on the {name}, {_music(event, words, event.loudness)}",
            )
        )
    subject, does, doing = words.clause(source)
    who = "who" if subject in ("someone", "a person", "a man", "a drummer", "a dj") else "that"
    manner = words.adverbs(event.speed, event.loudness)
    if source.countable and event.count > 1 and words.maybe(0.7):
        return words.pick(
            (
                f"{_times(event.count, words)}, {subject} {does}{manner}",
                f"{_times(event.count, words)}, {subject} {doing}{manner}",
            )
        )
    return f"{subject} {who} {does}{manner}"


def _tags(event: Event, words: _Words) -> str:
    """What sounds and how as a list in any order: "loud, three times, dog bark". Never a name and then its music, which
    is a core that is held out."""
    source = event.source
    loudness, speed = ([words.pick(ADJECTIVES[n])] if n in ADJECTIVES else [] for n in (event.loudness, event.speed))
    if source.play == "notes":  # how fast is in the music
        music, name = _music(event, words), words.pick(source.names)
        return ", ".join([music, *loudness, name] if words.maybe(0.6) else [*loudness, music, name])
    manner = [*loudness, *speed]
    if event.pattern == "strike" and source.countable:
        named = source.strikes[int(words.rng.integers(len(source.strikes)))][0]
        tags = [named, _times(event.count, words), *manner]
    else:
        tags = [words.pick(source.names), *manner]
    return ", ".join(tags[int(i)] for i in words.rng.permutation(len(tags)))


def _reordered(event: Event, words: _Words) -> str:
    """A sentence in which how often comes before what, or who plays before what is played."""
    source = event.source
    if source.play == "notes":
        name = words.pick(source.names)
        pattern = words.pick(("someone plays {music} on the {name}", "with the {name} someone plays {music}"))
        if source.verb[0] == "sings" or source.label == "strings":
            pattern = words.pick(("{music} from the {name}", "from the {name} comes {music}"))
        return pattern.format(music=_music(event, words), name=name) + words.adverbs(event.loudness)
    subject, does, doing = words.clause(source)
    adverbs = words.adverbs(event.speed, event.loudness)
    if event.pattern != "strike" or not source.countable:
        return words.pick((f"it is {subject} {doing}{adverbs}", f"what you hear is {subject} {doing}{adverbs}"))
    times = _times(event.count, words)
    return words.pick(
        (
            f"it happens {times}: {subject} {does}{adverbs}",
            f"you hear {times} how {subject} {does}{adverbs}",
            f"{subject} is heard {times}, {doing}{adverbs}",
        )
    )


def _single(event: Event, words: _Words, held_out: bool) -> str:
    if held_out:
        if words.maybe(0.5):
            return _held_out_core(event, words)
        return words.pick(HELD_OUT_FRAMES).format(noun_phrase(event, words))
    shapes = {
        0.14: lambda: words.pick(event.source.names),
        0.34: lambda: sentence(event, words),
        0.6: lambda: noun_phrase(event, words),
        0.8: lambda: words.pick(FRAMES).format(noun_phrase(event, words)),
        0.9: lambda: _tags(event, words),
        1.0: lambda: _reordered(event, words),
    }
    chance = words.rng.random()
    return next(shape() for share, shape in shapes.items() if chance < share)


def _double(scene: Scene, words: _Words, held_out: bool) -> str:
    first, second = scene.events
    if not held_out and words.maybe(0.18):
        names = (words.pick(first.source.names), words.pick(second.source.names))
        return words.pick(KEYWORD_JOINS[scene.relation]).format(*names)
    joins = HELD_OUT_JOINS if held_out else JOINS
    template = words.pick(joins[scene.relation])
    text = template.format(
        noun_phrase(first, words),
        noun_phrase(second, words),
        a=sentence(first, words),
        b=sentence(second, words),
    )
    if not held_out and "{a}" not in template and "{b}" not in template and words.maybe(0.15):
        return words.pick(FRAMES).format(text)
    return text


def _typed(text: str, words: _Words) -> str:
    """Varies the capital and the full stop a little, as people type."""
    if words.maybe(0.2):
        text = text[0].upper() + text[1:]
    return text + "." if words.maybe(0.1) else text


def captions(scene: Scene, rng: np.random.Generator, n: int, held_out: bool = False) -> list[str]:
    """Puts a scene into words.

    Args:
        scene: What sounds.
        rng: Random numbers.
        n: How many wordings.
        held_out: Use only wordings that training never sees, instead of only those that it may see.

    Returns:
        n wordings, no two of them alike (capitals and full stops aside).

    Raises:
        InputError: The grammar has fewer than n wordings of this scene.
    """
    words, found = _Words(rng), dict[str, str]()
    for _ in range(100 * n):
        if len(found) == n:
            break
        text = _single(scene.events[0], words, held_out) if len(scene.events) == 1 else _double(scene, words, held_out)
        found.setdefault(text, _typed(text, words))
    if len(found) < n:
        labels = " and ".join(event.label for event in scene.events)
        raise InputError(f"The caption grammar has only {len(found)} wordings of {labels}; ask for fewer than {n}.")
    return list(found.values())


def prompts(n: int, seed: int, held_out: bool = True, seconds: float = 4.0) -> list[tuple[str, str]]:
    """Writes prompts about one source each, spread evenly over all labels.

    Args:
        n: How many.
        seed: Seed of the wordings and of the order.
        held_out: Use only wordings that training never sees.
        seconds: Length of the clips they are meant for (how often a sound fits).

    Returns:
        (prompt, label) pairs.
    """
    rng = np.random.default_rng(seed)
    order = [LABELS[int(index)] for index in rng.permutation(len(LABELS))]
    labels = [order[i % len(order)] for i in range(n)]
    return [(captions(draw_scene(rng, seconds, label), rng, 1, held_out)[0], label) for label in labels]
