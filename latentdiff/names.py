"""Names and bounds that the command line checks before anything heavy is imported."""

from pathlib import Path

from latentdiff.errors import InputError

SAMPLER_NAMES = ("ddim", "ddpm", "dpmsolver++", "unipc", "heun", "euler")
"""The keys of `latentdiff.diffusion.samplers.SAMPLERS`, which imports diffusers."""

MAX_SECONDS = 600.0
"""The longest sound that is made at once."""

BUNDLED = {"starter-audio": "audio"}
"""Models inside the package, by the name of their folder under ``latentdiff/starter``."""


def bundled_folder(name: str) -> Path:
    """The pipeline folder of a bundled model.

    Args:
        name: One of `BUNDLED`.

    Raises:
        InputError: if this installation came without its weights.
    """
    folder = Path(__file__).parent / "starter" / BUNDLED[name]
    if not (folder / "model_index.json").is_file():
        raise InputError(
            f"the bundled model {name} is not in this installation ({folder} has no model_index.json); "
            "install latentdiff again, from a complete checkout."
        )
    return folder
