"""Auffusion (Xue et al. 2024): Stable Diffusion over 256-band mels as pictures, with HiFi-GAN behind.

Two layouts are published: with a text encoder and an adapter a condition, named in ``condition_config.json``, and a
Stable Diffusion folder with a vocoder beside it.
"""

from dataclasses import replace

from latentdiff.interop.family import SCHEDULER, UNET, VAE, VOCODER, Family, Part, tokenizer
from latentdiff.interop.stable_diffusion import STABLE_DIFFUSION

AUFFUSION = Family(
    pipelines=("AuffusionPipeline",),
    medium="audio",
    parts={
        "vae": VAE,
        "unet": UNET,
        "scheduler": SCHEDULER,
        "vocoder": VOCODER,
        "text_encoder": Part("text_encoder_0", ("CLIPTextModel",)),
        "tokenizer": tokenizer("text_encoder_0"),
        "adapter": Part("condition_adapter_0", ("ConditionAdapter",)),
    },
    mels=("auffusion-16k-256",),
    defaults={"default_steps": 100, "default_guidance": 7.5},
    ignored=("safety_checker", "feature_extractor"),
)
AUFFUSION_WITHOUT_ADAPTER = replace(
    AUFFUSION,
    pipelines=STABLE_DIFFUSION.pipelines,
    parts={**STABLE_DIFFUSION.parts, "vocoder": VOCODER},
    ignored=STABLE_DIFFUSION.ignored,
)
