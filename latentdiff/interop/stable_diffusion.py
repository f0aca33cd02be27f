"""Stable Diffusion 1.x and 2.x (Rombach et al. 2022): CLIP's tokens, pictures in [-1, 1]."""

from latentdiff.interop.family import SCHEDULER, UNET, VAE, Family, Part, tokenizer

STABLE_DIFFUSION = Family(
    pipelines=("StableDiffusionPipeline",),
    medium="image",
    parts={
        "vae": VAE,
        "unet": UNET,
        "scheduler": SCHEDULER,
        "text_encoder": Part("text_encoder", ("CLIPTextModel",)),
        "tokenizer": tokenizer("tokenizer"),
    },
    defaults={"default_steps": 50, "default_guidance": 7.5},
    ignored=("safety_checker", "feature_extractor", "image_encoder"),
)
