"""FluidSynth inside this process, playing one sound after the other without a trace of the one before.

Every preset has a channel of its own, so that no sample is loaded twice. Reverb and chorus are off and
whole blocks of 64 samples are rendered. One thing remains: a voice keeps the last gain of its previous note
and starts the next one from there, which changes the first 64 samples. So all voices play one inaudible
note before each sound, which leaves them alike. The same sound is then the same to the last bit, whatever
came before.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import numpy as np

from latentdiff.data.soundbank.catalogue import CATALOGUE, Preset
from latentdiff.errors import InputError

FONT_FILES = {"gm": "FluidR3_GM.sf2", "gs": "FluidR3_GS.sf2"}
FONT_FOLDER = Path("/usr/share/sounds/sf2")
FONT_VARIABLE = "LATENTDIFF_SOUNDFONTS"
INSTALL = (
    'Install it with "apt-get install fluidsynth fluid-soundfont-gm fluid-soundfont-gs" '
    'and pip install "latentdiff[corpus]".'
)
SYNTH_RATE = 44_100  # FluidSynth does not filter when it plays a sample at a lower rate: reduce the rate after it
VOICES = 64  # more than any sound of the catalogue takes
MUTED: Preset = ("gm", 0, 19)  # an organ: one voice a key
BLOCK = 64  # samples that FluidSynth computes at once

Note = tuple[float, float, int, int]  # start and end in seconds, key, velocity


def font_path(font: str) -> Path:
    """Finds a sound font ("gm" or "gs").

    Raises:
        InputError: It is not installed.
    """
    folders = [Path(os.environ[FONT_VARIABLE])] if os.environ.get(FONT_VARIABLE) else []
    for folder in (*folders, FONT_FOLDER):
        if (folder / FONT_FILES[font]).is_file():
            return folder / FONT_FILES[font]
    raise InputError(
        f"The sound font {FONT_FILES[font]} is neither in {FONT_FOLDER} nor in the folder that "
        f"{FONT_VARIABLE} names. {INSTALL}"
    )


class Synthesizer:
    """FluidSynth with both fonts, kept open."""

    def __init__(self) -> None:
        paths = {font: font_path(font) for font in FONT_FILES}
        try:
            import fluidsynth
        except ImportError as error:
            raise InputError(f"The FluidSynth library is missing ({error}). {INSTALL}") from None
        presets = sorted({preset for source in CATALOGUE for preset in source.presets})
        settings = {
            "synth.polyphony": VOICES,
            "synth.reverb.active": 0,
            "synth.chorus.active": 0,
            "synth.dynamic-sample-loading": 1,
        }
        self._synth = fluidsynth.Synth(
            gain=0.4, samplerate=SYNTH_RATE, channels=16 * (len(presets) // 16 + 1), **settings
        )
        fonts = {font: self._synth.sfload(str(path)) for font, path in paths.items()}
        self._channels: dict[Preset, int] = {}
        for channel, (font, bank, program) in enumerate(presets):
            if fonts[font] < 0 or self._synth.program_select(channel, fonts[font], bank, program) < 0:
                raise InputError(
                    f"{paths[font]} has no bank {bank} program {program}, so it is not the font that the "
                    f"corpus needs. {INSTALL}"
                )
            self._channels[(font, bank, program)] = channel
        self._muted = len(presets)
        self._synth.program_select(self._muted, fonts[MUTED[0]], *MUTED[1:])
        self._synth.cc(self._muted, 7, 0)
        self._write = fluidsynth._fl.fluid_synth_write_float  # write_s16 adds dither that depends on the past
        pointer, integer = ctypes.c_void_p, ctypes.c_int
        self._write.argtypes = [pointer, integer, pointer, integer, integer, pointer, integer, integer]

    def _advance(self, blocks: int) -> np.ndarray:
        count = blocks * BLOCK
        both = np.zeros((2, count), dtype=np.float32)
        if count:
            self._write(self._synth.synth, count, both[0].ctypes.data, 0, 1, both[1].ctypes.data, 0, 1)
        return both.mean(axis=0)

    def _silence(self) -> None:
        """Ends everything and leaves all voices in one state."""
        for key in range(30, 30 + VOICES):
            self._synth.noteon(self._muted, key, 1)
        self._advance(1)
        self._synth.all_sounds_off(self._muted)
        self._advance(2)

    def play(self, preset: Preset, notes: list[Note], seconds: float, bend: int = 0) -> np.ndarray:
        """Plays notes from silence.

        Args:
            preset: What plays them.
            notes: The notes.
            seconds: How much to render.
            bend: Pitch bend, -8192 to 8191 for two semitones down to two up.

        Returns:
            (samples,) float32 at 44.1 kHz.
        """
        channel, total = self._channels[preset], int(seconds * SYNTH_RATE / BLOCK) + 1
        self._silence()
        self._synth.pitch_bend(channel, bend)
        actions = [(int(end * SYNTH_RATE / BLOCK), 0, key, 0) for _, end, key, _ in notes]
        actions += [(int(start * SYNTH_RATE / BLOCK), 1, key, velocity) for start, _, key, velocity in notes]
        pieces, now = [], 0
        for block, begins, key, velocity in sorted(actions):
            if block >= total:
                break
            pieces.append(self._advance(block - now))
            now = block
            if begins:
                self._synth.noteon(channel, key, velocity)
            else:
                self._synth.noteoff(channel, key)
        pieces.append(self._advance(total - now))
        self._synth.all_sounds_off(channel)
        self._advance(2)
        return np.concatenate(pieces)
