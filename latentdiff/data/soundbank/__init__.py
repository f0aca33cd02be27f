"""The starter corpus: captioned sounds rendered from the FluidR3 General MIDI / GS sound fonts."""

from latentdiff.data.soundbank.captions import captions, prompts
from latentdiff.data.soundbank.catalogue import BY_LABEL, CATALOGUE, LABELS, Source
from latentdiff.data.soundbank.scenes import Event, Scene, draw_scene

__all__ = ["BY_LABEL", "CATALOGUE", "LABELS", "Event", "Scene", "Source", "captions", "draw_scene", "prompts"]
