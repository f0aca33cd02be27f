"""MusicLDM (Chen et al. 2023): AudioLDM with the whole CLAP, which also ranks."""

from latentdiff.interop.family import FEATURES, SCHEDULER, UNET, VAE, VOCODER, Family, Part, tokenizer

MUSICLDM = Family(
    pipelines=("MusicLDMPipeline",),
    medium="audio",
    parts={
        "vae": VAE,
        "unet": UNET,
        "scheduler": SCHEDULER,
        "vocoder": VOCODER,
        "clap": Part("text_encoder", ("ClapModel",)),
        "clap_tokenizer": tokenizer("tokenizer"),
        "feature_extractor": FEATURES,
    },
    mels=("audioldm-16k-64",),
    defaults={"default_steps": 200, "default_guidance": 2.0},
)
