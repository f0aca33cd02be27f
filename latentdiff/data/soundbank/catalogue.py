"""The sound sources of the starter corpus: where each one lives in the sound fonts and how people name it.

The fonts are FluidR3_GM ("gm") and FluidR3_GS ("gs"), Debian packages `fluid-soundfont-gm` and
`fluid-soundfont-gs`. In FluidR3_GS the recorded effects are banks 1 to 8, programs 120 to 127.

Sounds that no ear tells apart share one label:

- "bird": GM Bird Tweet and GS Bird 2.
- "telephone": GM Telephone and GS Telephone 2.
- "piano": Yamaha Grand, Bright Yamaha Grand and Honky Tonk. "guitar": the nylon and the steel string guitar.
- "strings": Strings and Slow Strings. "choir": Ahh Choir and Ohh Voices.
- "trumpet" stands for the open brass (trombone, horns and brass section are left out), "saxophone" for all
  saxophones, "music box" for celesta and glockenspiel, "xylophone" for the marimba, "violin" for viola and
  fiddle, "flute" for piccolo and recorder.
- "gun shot" is also the body of GS Lazergun, but transposed so far that it is heard as something else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["effect", "instrument", "drums"]
Play = Literal["hold", "strike", "steps", "notes", "groove"]
Preset = tuple[str, int, int]


@dataclass(frozen=True)
class Source:
    """One named sound source.

    Attributes:
        label: The name, unique in the catalogue.
        kind: What it is.
        play: How it sounds. "hold": on and on while the key is down. "strike": one-shot, countable.
            "steps": an even series of one-shots. "notes": a pitched instrument. "groove": a drum pattern.
        presets: Where it is, each (font, bank, program). A clip uses one of them.
        keys: Lowest and highest MIDI key. For effects it moves the pitch by a few semitones at most
            (most zones of FluidR3_GS scale a key to 5 to 25 cents).
        gap_s: Shortest time between two strikes; longer than half a clip means that it is not counted.
        length_s: How long one strike is heard.
        lead_s: Quiet beginning of the sample that a clip leaves out.
        names: Bare names, without an article; the first is the label or the commonest word.
        clauses: (subject, finite verb, -ing form) of a sentence about it.
        strikes: (singular, plural) of one strike, without an article.
        chords: An instrument that plays chords.
        verb: (finite, -ing) of what an instrument does with a melody.
    """

    label: str
    kind: Kind
    play: Play
    presets: tuple[Preset, ...]
    keys: tuple[int, int]
    names: tuple[str, ...]
    clauses: tuple[tuple[str, str, str], ...] = ()
    strikes: tuple[tuple[str, str], ...] = ()
    gap_s: float = 0.5
    length_s: float = 0.5
    lead_s: float = 0.0
    chords: bool = False
    verb: tuple[str, str] = ("plays", "playing")

    @property
    def countable(self) -> bool:
        """Whether it is natural to say how often it sounds."""
        return self.play == "strike" and self.gap_s <= 1.5


def _gs(bank: int, program: int) -> Preset:
    return ("gs", bank, program)


def _gm(program: int, bank: int = 0) -> Preset:
    return ("gm", bank, program)


def _list(text: str) -> tuple[str, ...]:
    return tuple(text.split(", ")) if text else ()


def _clauses(text: str) -> tuple[tuple[str, str, str], ...]:
    triples = (clause.split("/") for clause in _list(text))
    return tuple((subject, does, doing) for subject, does, doing in triples)


def _strikes(text: str) -> tuple[tuple[str, str], ...]:
    pairs = (pair.split("/") for pair in _list(text))
    return tuple((singular, plural) for singular, plural in pairs)


def _held(
    label: str,
    presets: tuple[Preset, ...],
    keys: tuple[int, int],
    names: str,
    clauses: str,
    lead: float = 0.0,
    play: Play = "hold",
    gap: float = 0.5,
    length: float = 0.5,
    kind: Kind = "effect",
) -> Source:
    """A sound that goes on; names and clauses as comma-separated lists."""
    return Source(label, kind, play, presets, keys, _list(names), _clauses(clauses), (), gap, length, lead)


def _shot(
    label: str,
    presets: tuple[Preset, ...],
    keys: tuple[int, int],
    gap: float,
    length: float,
    names: str,
    clauses: str,
    strikes: str,
    kind: Kind = "effect",
    lead: float = 0.0,
) -> Source:
    """A one-shot sound; names, clauses and strikes as comma-separated lists."""
    words = _list(names), _clauses(clauses), _strikes(strikes)
    return Source(label, kind, "strike", presets, keys, *words, gap, length, lead)


def _plays(
    label: str,
    programs: tuple[int, ...],
    keys: tuple[int, int],
    names: str = "",
    chords: bool = False,
    verb: tuple[str, str] = ("plays", "playing"),
) -> Source:
    """A pitched instrument of FluidR3_GM; names lists the other names it has."""
    presets = tuple(_gm(program) for program in programs)
    return Source(label, "instrument", "notes", presets, keys, (label, *_list(names)), chords=chords, verb=verb)


# One source a block; a formatter would spread each over twenty lines.
# fmt: off
EFFECTS: tuple[Source, ...] = (
    _shot("dog", (_gs(1, 123),), (52, 68), 0.36, 0.3,
          names="dog, dog barking, barking dog, dog bark, dogs barking",
          clauses="a dog/barks/barking, the dog/barks/barking, a dog/woofs/woofing",
          strikes="dog bark/dog barks, bark of a dog/barks of a dog, woof of a dog/woofs of a dog"),
    _held("rain", (_gs(1, 122),), (40, 80), lead=0.4,
          names="rain, rain falling, falling rain, raining, rain on a roof",
          clauses="rain/falls/falling, rain/pours down/pouring down, the rain/falls/falling"),
    _shot("thunder", (_gs(2, 122),), (57, 62), 2.6, 2.2,
          names="thunder, thunder rumbling, thunderstorm",
          clauses="thunder/rumbles/rumbling, thunder/rolls/rolling, thunder/cracks/cracking",
          strikes="clap of thunder/claps of thunder, thunderclap/thunderclaps"),
    _held("wind", (_gs(3, 122),), (57, 63), lead=0.4,
          names="wind, wind blowing, howling wind, blowing wind",
          clauses="wind/blows/blowing, the wind/howls/howling"),
    _held("stream", (_gs(4, 122),), (45, 75), lead=0.3,
          names="stream, river, running water, flowing water, brook",
          clauses="a stream/flows/flowing, water/runs/running, a river/flows/flowing"),
    _held("bubbles", (_gs(5, 122),), (52, 68),
          names="bubbles, bubbling water, water bubbling, bubbling",
          clauses="water/bubbles/bubbling, bubbles/rise/rising"),
    _shot("bird", (_gs(3, 123), _gm(123)), (58, 62), 0.6, 0.55,
          names="bird, birdsong, bird chirping, birds, chirping bird",
          clauses="a bird/chirps/chirping, a bird/tweets/tweeting, a bird/sings/singing",
          strikes="bird chirp/bird chirps, chirp of a bird/chirps of a bird, bird call/bird calls"),
    _held("horse", (_gs(2, 123),), (48, 72), lead=0.8,
          names="horse, galloping horse, horse galloping, hooves, horse hooves",
          clauses="a horse/gallops/galloping, a horse/runs/running"),
    _held("car engine", (_gs(1, 125),), (48, 70),
          names="car engine, engine, engine idling, motor, car engine running",
          clauses="a car engine/starts/starting, an engine/runs/running, a motor/idles/idling"),
    _shot("car passing", (_gs(3, 125),), (57, 63), 2.0, 1.6, lead=0.3,
          names="car passing, passing car, car passing by, traffic",
          clauses="a car/passes by/passing by, a car/drives past/driving past",
          strikes="car passing by/cars passing by, passing car/passing cars"),
    _shot("car skid", (_gs(2, 125),), (46, 74), 1.2, 1.1,
          names="car skid, skidding car, car braking, screeching tires, car skidding",
          clauses="a car/skids/skidding, a car/brakes hard/braking hard, tires/screech/screeching",
          strikes="skid of a car/skids of a car, tire screech/tire screeches"),
    _shot("car crash", (_gs(4, 125),), (54, 66), 1.2, 1.1,
          names="car crash, car accident, crashing car, car crashing",
          clauses="a car/crashes/crashing, a car/crashes into something/crashing into something",
          strikes="car crash/car crashes, crash of a car/crashes of a car"),
    _held("siren", (_gs(5, 125),), (50, 70), lead=0.5,
          names="siren, police siren, ambulance siren, siren wailing, wailing siren",
          clauses="a siren/wails/wailing, a police siren/sounds/sounding"),
    _held("train", (_gs(6, 125),), (52, 68), lead=1.2,
          names="train, train passing, railway, steam train, train on the tracks",
          clauses="a train/rolls along/rolling along, a train/passes/passing"),
    _held("jet", (_gs(7, 125),), (57, 63), lead=0.4,
          names="jet, jet plane, airplane, jet engine, plane taking off",
          clauses="a jet plane/flies over/flying over, an airplane/takes off/taking off"),
    _held("helicopter", (_gm(125),), (45, 75), lead=0.9,
          names="helicopter, helicopter flying, chopper, flying helicopter",
          clauses="a helicopter/flies/flying, a helicopter/hovers/hovering"),
    _shot("door creak", (_gs(2, 124),), (52, 68), 1.4, 1.3,
          names="door creak, creaking door, squeaky door, door creaking",
          clauses="a door/creaks/creaking, a door/opens with a creak/opening with a creak",
          strikes="door creak/door creaks, creak of a door/creaks of a door"),
    _shot("door slam", (_gs(3, 124),), (48, 72), 0.55, 0.5,
          names="door slam, slamming door, door slamming, door shutting",
          clauses="a door/slams/slamming, a door/slams shut/slamming shut, a door/bangs/banging",
          strikes="door slam/door slams, slam of a door/slams of a door"),
    _held("footsteps", (_gs(5, 126),), (45, 75), play="steps", gap=0.28, length=0.3,
          names="footsteps, walking, steps, person walking, foot steps",
          clauses="someone/walks/walking, a person/walks/walking, footsteps/approach/approaching"),
    _shot("laughing", (_gs(1, 126),), (54, 66), 1.1, 1.0,
          names="laughing, laughter, laugh, man laughing, person laughing",
          clauses="someone/laughs/laughing, a man/laughs/laughing, a person/laughs/laughing",
          strikes="laugh of a person/laughs of a person, burst of laughter/bursts of laughter"),
    _shot("screaming", (_gs(2, 126),), (45, 75), 1.2, 1.1,
          names="screaming, scream, person screaming, shouting",
          clauses="someone/screams/screaming, a person/screams/screaming, a person/yells/yelling",
          strikes="scream/screams, scream of a person/screams of a person"),
    _shot("punch", (_gs(3, 126),), (52, 68), 0.4, 0.35,
          names="punch, punching, fist punch, fist hitting",
          clauses="a fist/punches/punching, someone/throws a punch/throwing a punch",
          strikes="punch/punches, punch with a fist/punches with a fist"),
    _held("heartbeat", (_gs(4, 126),), (45, 75), play="steps", gap=0.6, length=0.45,
          names="heartbeat, beating heart, heart beating, heart, pulse",
          clauses="a heart/beats/beating, a heart/pounds/pounding"),
    _shot("telephone", (_gs(1, 124), _gm(124)), (54, 66), 1.0, 0.9,
          names="telephone, phone, phone ringing, ringing telephone, phone call",
          clauses="a telephone/rings/ringing, a phone/rings/ringing",
          strikes="telephone ring/telephone rings, ring of a phone/rings of a phone"),
    _shot("explosion", (_gs(3, 127),), (56, 64), 1.1, 1.0,
          names="explosion, bomb, exploding bomb, bomb exploding, blast",
          clauses="a bomb/explodes/exploding, something/explodes/exploding, a bomb/goes off/going off",
          strikes="explosion/explosions, blast of a bomb/blasts of a bomb"),
    _shot("gun shot", (_gm(127),), (50, 70), 0.5, 0.45,
          names="gun shot, gunshot, gun, pistol shot, gun firing",
          clauses="a gun/fires/firing, a gun/goes off/going off, someone/fires a gun/firing a gun",
          strikes="gun shot/gun shots, gunshot/gunshots, shot from a gun/shots from a gun"),
    _held("machine gun", (_gs(1, 127),), (45, 75),
          names="machine gun, machine gun fire, automatic gunfire, machine gun firing",
          clauses="a machine gun/fires/firing, a machine gun/rattles/rattling"),
    _shot("laser", (_gs(2, 127),), (46, 74), 0.36, 0.3,
          names="laser, laser gun, ray gun, laser shot, laser gun firing",
          clauses="a laser gun/fires/firing, a ray gun/shoots/shooting",
          strikes="laser shot/laser shots, shot from a laser gun/shots from a laser gun, "
                  "laser zap/laser zaps"),
    _held("wind chimes", (_gs(5, 124),), (52, 68),
          names="wind chimes, chimes, wind chimes ringing, chimes in the wind",
          clauses="wind chimes/ring/ringing, chimes/tinkle/tinkling"),
    _shot("scratch", (_gs(4, 124),), (50, 70), 0.24, 0.2,
          names="scratch, record scratch, scratching a record, turntable scratch",
          clauses="a dj/scratches a record/scratching a record, "
                  "someone/scratches a record/scratching a record",
          strikes="record scratch/record scratches, scratch of a record/scratches of a record"),
    _held("sea", (_gm(122),), (48, 72), lead=0.2,
          names="sea, ocean, sea waves, ocean waves, waves on the shore",
          clauses="waves/roll onto the shore/rolling onto the shore, the sea/roars/roaring"),
    _held("applause", (_gm(126),), (48, 72), lead=0.3,
          names="applause, clapping audience, crowd applauding, audience clapping",
          clauses="an audience/applauds/applauding, a crowd/claps/clapping"),
)

INSTRUMENTS: tuple[Source, ...] = (
    _plays("piano", (0, 1, 3), (33, 93), "grand piano", chords=True),
    _plays("harpsichord", (6,), (41, 84), chords=True),
    _plays("music box", (10,), (67, 96), "celesta"),
    _plays("vibraphone", (11,), (53, 84), "vibes", chords=True),
    _plays("xylophone", (13,), (65, 96), "marimba"),
    _plays("tubular bells", (14,), (55, 76), "bell, church bell"),
    _plays("church organ", (19,), (40, 84), "organ, pipe organ", chords=True),
    _plays("accordion", (21,), (53, 86), chords=True),
    _plays("harmonica", (22,), (60, 86), "mouth organ"),
    _plays("guitar", (24, 25), (40, 76), "acoustic guitar, nylon guitar", chords=True),
    _plays("electric guitar", (30,), (40, 72), "distorted guitar, distorted electric guitar", chords=True),
    _plays("slap bass", (36,), (28, 50), "bass guitar, bass"),
    _plays("violin", (40,), (56, 93), "fiddle"),
    _plays("cello", (42,), (36, 60)),
    _plays("pizzicato strings", (45,), (43, 84), "plucked strings, pizzicato violins"),
    _plays("harp", (46,), (40, 91), chords=True),
    _plays("timpani", (47,), (38, 57), "kettledrum"),
    _plays("strings", (48, 49), (43, 88), "string orchestra, string section", chords=True),
    _plays("choir", (52, 53), (48, 79), "chorus, choir of voices", chords=True, verb=("sings", "singing")),
    _shot("orchestra hit", (_gm(55),), (48, 72), 0.5, 0.6, kind="instrument",
          names="orchestra hit, orchestral hit, orchestra stab",
          clauses="an orchestra/plays a hit/playing a hit, an orchestra/hits a chord/hitting a chord",
          strikes="orchestra hit/orchestra hits, orchestral hit/orchestral hits"),
    _plays("trumpet", (56,), (55, 84)),
    _plays("tuba", (58,), (29, 53)),
    _plays("muted trumpet", (59,), (58, 84), "trumpet with a mute"),
    _plays("saxophone", (65,), (49, 80), "sax, alto saxophone"),
    _plays("oboe", (68,), (60, 88)),
    _plays("clarinet", (71,), (50, 86)),
    _plays("flute", (73,), (62, 93)),
    _plays("pan flute", (75,), (60, 88), "panpipes"),
    _plays("whistle", (78,), (67, 91), "human whistle"),
    _plays("square synth", (80,), (45, 84), "square wave synth, video game synth"),
    _plays("saw synth", (81,), (40, 79), "sawtooth synth, synthesizer"),
    _plays("sitar", (104,), (48, 77)),
    _plays("banjo", (105,), (48, 81)),
    _plays("kalimba", (108,), (55, 88), "thumb piano"),
    _plays("bagpipe", (109,), (55, 77), "bagpipes"),
    _plays("steel drums", (114,), (55, 84), "steel drum"),
    _shot("woodblock", (_gm(115),), (58, 82), 0.22, 0.2, kind="instrument",
          names="woodblock, wood block, wooden block",
          clauses="someone/taps a woodblock/tapping a woodblock, a woodblock/sounds/sounding",
          strikes="woodblock hit/woodblock hits, tap on a woodblock/taps on a woodblock"),
    _shot("taiko", (_gm(116),), (45, 66), 0.4, 0.6, kind="instrument",
          names="taiko, taiko drum, big drum, taiko drumming",
          clauses="someone/beats a taiko drum/beating a taiko drum, a big drum/booms/booming",
          strikes="taiko hit/taiko hits, beat on a taiko drum/beats on a taiko drum"),
    _shot("reverse cymbal", (_gm(119),), (54, 70), 1.6, 1.5, kind="instrument",
          names="reverse cymbal, reversed cymbal, reverse cymbal swell",
          clauses="a reversed cymbal/swells/swelling, a reverse cymbal/rises/rising",
          strikes="reverse cymbal/reverse cymbals, reversed cymbal swell/reversed cymbal swells"),
)

DRUMS: tuple[Source, ...] = (
    _held("drum kit", tuple(_gm(kit, 128) for kit in (0, 8, 16, 32)), (35, 57), kind="drums", play="groove",
          names="drum kit, drums, drum beat, drumming, drum set",
          clauses="a drummer/plays a beat/playing a beat, a drum kit/plays a groove/playing a groove, "
                  "drums/play a rhythm/playing a rhythm"),
    _shot("hand claps", (_gm(0, 128),), (39, 39), 0.28, 0.25, kind="drums",
          names="hand claps, clapping hands, hands clapping, clap",
          clauses="someone/claps their hands/clapping their hands, hands/clap/clapping",
          strikes="hand clap/hand claps, clap of the hands/claps of the hands"),
    _shot("cowbell", (_gm(0, 128),), (56, 56), 0.26, 0.25, kind="drums",
          names="cowbell, cow bell, cowbell ringing",
          clauses="someone/hits a cowbell/hitting a cowbell, a cowbell/rings/ringing",
          strikes="cowbell hit/cowbell hits, hit on a cowbell/hits on a cowbell"),
    _shot("cymbal crash", (_gm(0, 128),), (49, 49), 0.9, 1.6, kind="drums",
          names="cymbal crash, crash cymbal, cymbal, cymbal crashing",
          clauses="a cymbal/crashes/crashing, someone/hits a cymbal/hitting a cymbal",
          strikes="cymbal crash/cymbal crashes, crash of a cymbal/crashes of a cymbal"),
)
# fmt: on

CATALOGUE: tuple[Source, ...] = EFFECTS + INSTRUMENTS + DRUMS
LABELS: tuple[str, ...] = tuple(source.label for source in CATALOGUE)
BY_LABEL: dict[str, Source] = {source.label: source for source in CATALOGUE}
