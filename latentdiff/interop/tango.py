"""Tango (Ghosal et al. 2023): FLAN-T5's tokens and Stable Diffusion's U-Net over AudioLDM's latents.

It is published as three files of weights, so there is nothing to recognise; see `latentdiff.interop.compvis.tango`.
"""

from latentdiff.interop.family import SCHEDULER, UNET, VAE, VOCODER, Family, Part, tokenizer

TANGO = Family(
    pipelines=(),
    medium="audio",
    parts={
        "vae": VAE,
        "unet": UNET,
        "scheduler": SCHEDULER,
        "vocoder": VOCODER,
        "text_encoder": Part("text_encoder", ("T5EncoderModel",)),
        "tokenizer": tokenizer("tokenizer"),
    },
    mels=("audioldm-16k-64",),
    defaults={"default_steps": 200, "default_guidance": 3.0},
)
