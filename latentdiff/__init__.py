"""Latent diffusion for sound and pictures: from a folder of captioned media to a generator.

Heavy imports (torch, diffusers, transformers) happen when a name is first used, not here.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["InputError", "TextToAudioPipeline", "TextToImagePipeline", "__version__"]

from latentdiff.errors import InputError

if TYPE_CHECKING:
    from latentdiff.pipelines.text_to_audio import TextToAudioPipeline
    from latentdiff.pipelines.text_to_image import TextToImagePipeline

_HOMES = {
    "TextToAudioPipeline": "latentdiff.pipelines.text_to_audio",
    "TextToImagePipeline": "latentdiff.pipelines.text_to_image",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from latentdiff.doctor import check_torch_pair

        check_torch_pair()  # a broken pair breaks transformers and diffusers too, and says so far less plainly
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'latentdiff' has no attribute '{name}'")
