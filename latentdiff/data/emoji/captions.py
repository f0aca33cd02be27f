"""Wordings of an emoji: its name, its aliases, and for people who, what and which skin tone in several orders."""

from __future__ import annotations

from latentdiff.data.emoji.catalogue import Emoji

_FRAMES = ("an emoji of {}", "a picture of {}", "a drawing of {}", "icon of {}")
_PLURALS = ("men", "women", "people")
_LOOKS = {"beard": "a beard", "bald": "a bald head"}  # what else "person: ..." means is some kind of hair
_ADJECTIVES = {"man": "male", "woman": "female"}


def wordings(emoji: Emoji) -> list[str]:
    """Captions of one picture, all different, the plainest first."""
    if emoji.gender is not None:
        said = _person(emoji, emoji.gender)
    elif emoji.tones:
        said = _toned(emoji.untoned, emoji.tones)
    else:
        said = [emoji.name, _with_article(emoji.name)]
        said += [f"{emoji.name} emoji", *(frame.format(_with_article(emoji.name)) for frame in _FRAMES)]
        said += [wording for alias in emoji.aliases for wording in (alias, f"a picture of {alias}")]
        if emoji.tonal:
            said += [f"yellow {emoji.name}", f"{emoji.name} with yellow skin"]
    return list(dict.fromkeys(said))


def _person(emoji: Emoji, gender: str) -> list[str]:
    """Someone of a role, a gender and perhaps a skin tone."""
    who = _readable(emoji.untoned)
    what = _readable(emoji.base)
    said = [who, _with_article(who)]
    is_noun = "person" not in emoji.base
    if is_noun and gender in _ADJECTIVES:  # "running" is no such thing, an astronaut is
        said += [f"{_with_article(what)} who is a {gender}", f"{_ADJECTIVES[gender]} {what}"]
    if not emoji.tones:
        said += [frame.format(_with_article(who)) for frame in _FRAMES]
        return [*said, f"{who} emoji", *([f"yellow {who}", f"{who} with yellow skin"] if emoji.tonal else [])]
    (tone,) = emoji.tones
    toned = [wording for plain in said for wording in (f"{plain}, {tone} skin tone", f"{plain} with {tone} skin")]
    if is_noun and gender in _ADJECTIVES:
        toned.append(f"{_with_article(what)} who is a {gender} with {tone} skin")
    return _toned(who, emoji.tones) + toned


def _toned(name: str, tones: tuple[str, ...]) -> list[str]:
    both = " and ".join(tones)
    plain = [
        f"{name}, {both} skin tone",
        f"{name} with {both} skin",
        f"{both} skinned {name}",
        f"{both} skin tone, {name}",
    ]
    return plain + [frame.format(f"{_with_article(name)} with {both} skin tone") for frame in _FRAMES[:3]]


def _readable(name: str) -> str:
    """ "man red hair" -> "man with red hair"."""
    who, _, look = name.partition(" ")
    if look in _LOOKS or look.endswith(" hair"):
        return f"{who} with {_LOOKS.get(look, look)}"
    return name


def _with_article(name: str) -> str:
    """ "astronaut" -> "an astronaut"; what seems to be a plural, or is no noun, stays as it is."""
    first, last = name.split()[0], name.split(" with ")[0].split()[-1]
    if (
        not first[0].isalpha()
        or first.isupper()
        or first in _PLURALS
        or (last.endswith("s") and not last.endswith("ss"))
    ):
        return name
    return f"{'an' if first[0].lower() in 'aeiou' else 'a'} {name}"
