"""What several tests share."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from latentdiff.data.folder import Row, read_folder

if "PYTEST_XDIST_WORKER" in os.environ:  # `pytest -n 2`: each takes one core, and so do the processes that it starts
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--launch", action="store_true", help="train the papers' configurations by accelerate launch")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For what is compared bit by bit with processes of one thread: more of them round sums in another order."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


class Digits(NamedTuple):
    """Handwritten digits and a model of their pixels, trained for seconds."""

    folder: Path
    pipeline: Path
    held_out: list[Row]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """400 real 8x8 scans with 17 levels of grey, and a pixel diffusion pipeline of them (`data.size` 8)."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    from latentdiff.config import load_config
    from latentdiff.data.items import split_rows
    from latentdiff.training.loop import Trainer
    from latentdiff.training.recipes import RECIPES

    root = tmp_path_factory.mktemp("digits")
    scans, lines = load_digits(), ["file_name,text"]
    for number in range(400):
        Image.fromarray(np.rint(scans.images[number] * 255 / 16).astype(np.uint8)).save(root / f"{number:03d}.png")
        lines.append(f"{number:03d}.png,the digit {scans.target[number]}")
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    config = load_config(
        Path(__file__).parents[1] / "configs" / "debug" / "image_diffusion.yaml",
        [f"data.path={root}", "data.held_out=0.2", "data.size=8", "data.channels=1", "vae=none",
         f"output={root / 'run'}", "objective={kind: simple, prediction: v_prediction}", "train.batch_size=32",
         "train.max_steps=120", "train.validate_every=120", "train.checkpoint_every=120", "train.trackers=[]",
         "train.overfit_check_steps=0", "train.ema_decay=0", "default_guidance=1.5",
         "optimizer.lr=3e-3", "optimizer.schedule=cosine", "optimizer.warmup_steps=10"],
    )  # fmt: skip
    Trainer(config, RECIPES[config.stage]).run()
    return Digits(root, root / "run" / "pipeline", split_rows(read_folder(root), 0.2)[1][:32])
