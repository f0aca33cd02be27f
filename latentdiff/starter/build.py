"""Make a bundled model out of a trained pipeline: half-precision weights, and a check of its size.

python -m latentdiff.starter.build runs/diffusion/pipeline latentdiff/starter/audio --vae runs/decoder/vae
python -m latentdiff.starter.build runs/image-diffusion/pipeline latentdiff/starter/image
"""

import argparse
import json
from pathlib import Path

import torch

import latentdiff
from latentdiff.models.loading import load_autoencoder, load_vocoder

LIMIT_BYTES = 24_000_000
"""Of starter-audio's weights: wheels and clones stay small."""
IMAGE_LIMIT_BYTES = 12_000_000
"""Of starter-image's."""


def build(pipeline: Path, output: Path, vae: str | None = None, vocoder: str | None = None) -> int:
    """Save the pipeline, of sounds or of pictures, in half precision; returns the bytes of its weights."""
    kind = json.loads((pipeline / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    pipe = getattr(latentdiff, kind).from_pretrained(pipeline)
    if vae is not None:
        pipe.register_modules(vae=load_autoencoder(vae))
    if vocoder is not None:
        pipe.register_modules(vocoder=load_vocoder(vocoder))
    pipe.to(torch.float16, silence_dtype_warnings=True)
    pipe.save_pretrained(output)
    for config in output.rglob("*.json"):  # diffusers notes there from which folder of this machine a part was loaded
        facts = json.loads(config.read_text(encoding="utf-8"))
        if facts.pop("_name_or_path", None) is not None:
            config.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return sum(path.stat().st_size for path in output.rglob("*.safetensors"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--vae", help="a VAE whose decoder was trained longer than the pipeline's")
    parser.add_argument("--vocoder", help="a vocoder trained longer than the pipeline's")
    options = parser.parse_args()
    size = build(options.pipeline, options.output, options.vae, options.vocoder)
    limit = LIMIT_BYTES if (options.output / "vocoder").is_dir() else IMAGE_LIMIT_BYTES
    print(f"{size / 1e6:.2f} MB of weights in {options.output} (limit {limit / 1e6:.0f} MB)")
    raise SystemExit(size > limit)
