"""AudioLDM2 (Liu et al. 2023): T5's tokens, and GPT-2's continuation of CLAP and T5, in two cross-attention streams."""

from latentdiff.interop.family import FEATURES, SCHEDULER, VAE, VOCODER, Family, Part, tokenizer

AUDIOLDM2 = Family(
    pipelines=("AudioLDM2Pipeline",),
    medium="audio",
    parts={
        "vae": VAE,
        "unet": Part("unet", ("AudioLDM2UNet2DConditionModel",)),
        "scheduler": SCHEDULER,
        "vocoder": VOCODER,
        "clap": Part("text_encoder", ("ClapModel",)),
        "clap_tokenizer": tokenizer("tokenizer"),
        "feature_extractor": FEATURES,
        "text_encoder": Part("text_encoder_2", ("T5EncoderModel",)),
        "tokenizer": tokenizer("tokenizer_2"),
        "projection_model": Part("projection_model", ("AudioLDM2ProjectionModel",)),
        # Newer folders have it without its head; the head is the embedding once more, so nothing is missing.
        "language_model": Part("language_model", ("GPT2LMHeadModel", "GPT2Model")),
    },
    mels=("audioldm-16k-64", "audioldm-48k-256"),
    defaults={"default_steps": 200, "default_guidance": 3.5},
)
