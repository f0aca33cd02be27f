"""AudioLDM (Liu et al. 2023): FiLM on CLAP's text embedding, no cross-attention."""

from latentdiff.interop.family import SCHEDULER, UNET, VAE, VOCODER, Family, Part, tokenizer

AUDIOLDM = Family(
    pipelines=("AudioLDMPipeline",),
    medium="audio",
    parts={
        "vae": VAE,
        "unet": UNET,
        "scheduler": SCHEDULER,
        "vocoder": VOCODER,
        "clap": Part("text_encoder", ("ClapTextModelWithProjection",)),
        "clap_tokenizer": tokenizer("tokenizer"),
    },
    mels=("audioldm-16k-64", "audioldm-48k-256"),
    defaults={"default_steps": 10, "default_guidance": 2.5},
)
