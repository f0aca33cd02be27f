"""What several tests share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole, untrained `TextToAudioPipeline`, very small; its sound is noise."""
    import torch

    from latentdiff.config import GeneratorConfig, NewTextEncoder, NoiseScheduleConfig, UNetConfig
    from latentdiff.diffusion.samplers import make_scheduler
    from latentdiff.media.mel import PRESETS
    from latentdiff.models.autoencoder import PatchAutoencoder
    from latentdiff.models.denoiser import new_denoiser
    from latentdiff.models.text import new_t5, new_tokenizer
    from latentdiff.models.vocoder import new_vocoder
    from latentdiff.pipelines.text_to_audio import TextToAudioPipeline

    torch.manual_seed(0)
    mel = PRESETS["starter-16k-64"]
    text = NewTextEncoder(width=16, layers=1, heads=2, vocabulary=100)
    tokenizer = new_tokenizer(["a dog barks", "rain on a roof"], text.vocabulary)
    unet = UNetConfig(block_out_channels=(8, 16), attention=(False, True), attention_heads=2, norm_num_groups=4)
    generator = GeneratorConfig(
        upsample_rates=(8, 8, 4),
        upsample_kernel_sizes=(16, 16, 8),
        upsample_initial_channel=16,
        resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1,),),
    )
    pipe = TextToAudioPipeline(
        vae=PatchAutoencoder(latent_channels=4, width=8, depth=1, mel=mel.to_dict()),
        unet=new_denoiser(unet, latent_channels=4, tokens_width=text.width, pooled_width=None),
        scheduler=make_scheduler("dpmsolver++", NoiseScheduleConfig().model_dump()),
        vocoder=new_vocoder(generator, mel),
        text_encoder=new_t5(text, len(tokenizer)),
        tokenizer=tokenizer,
        default_steps=3,
        default_seconds=1.0,
    )
    folder = tmp_path_factory.mktemp("tiny") / "pipeline"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_image_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole, untrained `TextToImagePipeline`, very small; its pictures are noise."""
    import torch

    from latentdiff.config import Framing, NewTextEncoder, NoiseScheduleConfig, UNetConfig
    from latentdiff.diffusion.samplers import make_scheduler
    from latentdiff.models.autoencoder import PatchAutoencoder
    from latentdiff.models.denoiser import new_denoiser
    from latentdiff.models.text import new_t5, new_tokenizer
    from latentdiff.pipelines.text_to_image import TextToImagePipeline

    torch.manual_seed(0)
    text = NewTextEncoder(width=16, layers=1, heads=2, vocabulary=100)
    tokenizer = new_tokenizer(["a dog", "a woman astronaut with dark skin"], text.vocabulary)
    unet = UNetConfig(block_out_channels=(8, 16), attention=(False, True), attention_heads=2, norm_num_groups=4)
    framing = Framing(size=32).model_dump(mode="json")
    pipe = TextToImagePipeline(
        vae=PatchAutoencoder(in_channels=3, latent_channels=4, width=8, depth=1, image=framing),
        unet=new_denoiser(unet, latent_channels=4, tokens_width=text.width, pooled_width=None),
        scheduler=make_scheduler("dpmsolver++", NoiseScheduleConfig().model_dump()),
        text_encoder=new_t5(text, len(tokenizer)),
        tokenizer=tokenizer,
        default_steps=3,
        default_height=32,
        default_width=32,
    )
    folder = tmp_path_factory.mktemp("tiny-image") / "pipeline"
    pipe.save_pretrained(folder)
    return folder
