"""Names and bounds that the command line checks before anything heavy is imported."""

from pathlib import Path

from latentdiff.errors import InputError

SAMPLER_NAMES = ("ddim", "ddpm", "dpmsolver++", "dpmsolver++-karras", "unipc", "heun", "euler", "lcm", "cm")
"""The samplers of `latentdiff.diffusion.samplers`, which imports diffusers; the last two are of few-step students."""

FEW_STEP_SAMPLER_NAMES = ("lcm", "cm")
"""The keys of `CONSISTENCY_SAMPLERS` there: each the one sampler of a kind of few-step student."""

METRIC_NAMES = ("frechet", "kid", "kl", "inception", "clap", "prdc", "nearest", "judge", "round_trip", "nll")
"""The keys of `latentdiff.evaluation.registry`, which imports torch."""

LORA_FILE = "pytorch_lora_weights.safetensors"
"""diffusers' name for what a LoRA's folder holds."""

MAX_SECONDS = 600.0
"""The longest sound that is made at once."""

MAX_SIDE = 2048
"""The longest side of a picture that is made, in pixels."""

BUNDLED = {"starter-audio": "audio", "starter-image": "image"}
"""Models inside the package, with their medium, which is also their folder's name under ``latentdiff/starter``."""

PIPELINES = {"audio": "TextToAudioPipeline", "image": "TextToImagePipeline"}
"""The classes of `latentdiff`, by medium."""


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
