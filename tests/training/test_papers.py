"""Every file of configs/papers trains two steps, small, on the sound bank or on digits, and its result generates."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5EncoderModel

from latentdiff.cli import main
from latentdiff.config import GeneratorConfig, KLAutoencoderConfig
from latentdiff.data.soundbank.render import render_soundbank
from latentdiff.data.soundbank.synthesizer import Synthesizer
from latentdiff.errors import InputError
from latentdiff.media.mel import resolve_mel
from latentdiff.models.autoencoder import build_autoencoder
from latentdiff.models.loading import load_autoencoder, load_vocoder
from latentdiff.models.vocoder import ShortHifiGan, new_vocoder
from latentdiff.training import launch
from tests.interop import published

ROOT = Path(__file__).parents[2]
PAPERS = ROOT / "configs" / "papers"


class Small(NamedTuple):
    """How a file is made small, and what it makes."""

    overrides: list[str]
    makes: str = "picture"
    """sound, picture, or the component that its stage ends in."""
    prompt: bool = False
    steps: int = 2


COMMON = ["train.max_steps=2", "train.batch_size=2", "train.gradient_accumulation=1", "train.validate_every=2",
          "train.checkpoint_every=2", "train.log_every=1", "train.trackers=[]",
          "train.overfit_check_steps=0"]  # fmt: skip
FOUR = ["unet.block_out_channels=[8, 8, 16, 16]", "unet.layers_per_block=1", "unet.norm_num_groups=8"]
HEADS = [*FOUR, "unet.attention_heads=2", "default_steps=2"]
SOUNDS = ["data={path: SOUNDS, seconds: 0.64, held_out: 0.125}"]
PICTURES = ["data.path=PICTURES", "data.held_out=0.125"]
AUDIOLDM = [*SOUNDS, *HEADS, "vae=mel-vae", "vocoder=mel-vocoder"]
AUDIOLDM2 = [*AUDIOLDM, "text_encoder=t5", "clap=clap", "language_model=gpt2"]
HIFIGAN = ["data={path: SOUNDS, seconds: 0.3715, held_out: 0.125}", "generator.upsample_initial_channel=16",
           "discriminator_width=4"]  # fmt: skip
PIXELS = [*PICTURES, "default_steps=2"]
CIFAR = [*PIXELS, *FOUR, "data.size=16"]
DIGITS = [*PIXELS, "unet.block_out_channels=[8, 16]", "unet.layers_per_block=1", "unet.norm_num_groups=8"]
TEXT2IMG = [*PICTURES, *HEADS, "data.size=32", "vae=picture-vae"]
SMALL = {
    "audioldm_s": Small([*AUDIOLDM, "clap=clap"], "sound", True),
    "audioldm_m": Small([*AUDIOLDM, "clap=clap"], "sound", True),
    "audioldm_l": Small([*AUDIOLDM, "clap=clap"], "sound", True),
    "audioldm2": Small(AUDIOLDM2, "sound", True),
    "audioldm2_large": Small(AUDIOLDM2, "sound", True),
    "auffusion": Small(
        [*SOUNDS, *HEADS, "vae=rgb-mel-vae", "vocoder=rgb-mel-vocoder", "text_encoder=clip", "adapter=12"],
        "sound", True,
    ),
    "tango": Small([*AUDIOLDM, "text_encoder=t5"], "sound", True),
    "hifigan_v1": Small(HIFIGAN, "vocoder"),
    "hifigan_v2": Small(HIFIGAN, "vocoder"),
    "hifigan_v3": Small(HIFIGAN, "vocoder"),
    "ldm_kl_f8": Small(
        [*PICTURES, "data.size=32", "autoencoder.block_out_channels=[8, 8, 16, 16]", "autoencoder.norm_num_groups=8",
         "statistics_items=8", "adversarial_start=1"],
        "vae",
    ),
    "ldm_text2img": Small(
        [*TEXT2IMG, "text_encoder={width: 16, layers: 1, heads: 2, vocabulary: 100}"], prompt=True,
    ),
    "stable_diffusion_v1": Small([*TEXT2IMG, "text_encoder=clip"], prompt=True),
    "consistency_cifar10": Small(
        [*PIXELS, "data.size=16", "unet.block_out_channels=[8, 8, 16]", "unet.layers_per_block=1",
         "unet.norm_num_groups=8", "unet.time_width=16"],
    ),
    "ddpm_cifar10": Small(CIFAR),
    "improved_ddpm_cifar10": Small([*CIFAR, "unet.head_width=8"]),
    "vdm_cifar10": Small(
        [*PIXELS, "data.size=8", "unet.block_out_channels=[8]", "unet.layers_per_block=2", "unet.norm_num_groups=8"]
    ),
    "mnist_x0": Small(
        [*PIXELS, "unet.block_out_channels=[8, 8, 16]", "unet.layers_per_block=1", "unet.norm_num_groups=8"]
    ),
    "ddpm_digits": Small(DIGITS),
    "vdm_digits": Small(DIGITS),
    "sohl_dickstein_swissroll": Small(
        [*PIXELS, "data.fit=stretch", "unet.block_out_channels=[8]", "unet.layers_per_block=1"]
    ),
    "vae_one_step_digits": Small([*DIGITS, "default_steps=1"], steps=1),
}  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the media, and the published components by the names in the table, very small."""
    root = tmp_path_factory.mktemp("papers")
    torch.manual_seed(0)
    scans, lines = load_digits(), ["file_name,text"]
    (root / "PICTURES").mkdir()
    for number in range(16):
        picture = Image.fromarray(np.rint(scans.images[number] * 255 / 16).astype(np.uint8))
        picture.save(root / "PICTURES" / f"{number:02d}.png")
        lines.append(f"{number:02d}.png,the digit {scans.target[number]}")
    (root / "PICTURES" / "metadata.csv").write_text("\n".join(lines) + "\n")
    for name, preset, widths in (("mel", "audioldm-16k-64", (8, 8, 8)), ("rgb-mel", "auffusion-16k-256", (8,) * 4)):
        mel = resolve_mel(preset)
        sizes = KLAutoencoderConfig(kind="kl", block_out_channels=widths, layers_per_block=1, norm_num_groups=8)
        build_autoencoder(sizes, mel.channels, mel).save_pretrained(root / f"{name}-vae")
        voice = GeneratorConfig(
            upsample_rates=(16, 10), upsample_kernel_sizes=(32, 20), upsample_initial_channel=8,
            resblock_kernel_sizes=(3,), resblock_dilation_sizes=((1,),),
        )  # fmt: skip
        new_vocoder(voice, mel).save_pretrained(root / f"{name}-vocoder")
    published.vae(3).save_pretrained(root / "picture-vae")
    clap, t5 = published.clap(16), T5Config(vocab_size=100, d_model=24, d_ff=32, d_kv=8, num_heads=1, num_layers=1)
    folders = {
        "clap": (clap, published.roberta(), published.clap_features()),
        "t5": (T5EncoderModel(t5), published.t5_tokenizer()),
        "clip": (published.clip_text(), published.clip_tokenizer()),
        "gpt2": (GPT2LMHeadModel(GPT2Config(n_embd=16, n_head=1, n_layer=1, vocab_size=100, n_positions=99)),),
    }
    for name, parts in folders.items():
        for part in parts:
            part.save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def sounds(small: Path) -> None:
    try:
        Synthesizer()
    except InputError as error:
        pytest.skip(str(error))
    render_soundbank(small / "SOUNDS", clips=8, seconds=1.0, seed=0, workers=1)


def arguments(name: str, small: Path, output: Path) -> list[str]:
    """Of train.py."""
    given = [*COMMON, *SMALL[name].overrides]
    for folder in small.iterdir():
        given = [re.sub(rf"(=|path: ){folder.name}(?=,|$)", rf"\g<1>{folder}", part) for part in given]
    return [str(PAPERS / f"{name}.yaml"), *given, f"output={output}"]


def accelerate_launch(given: list[str]) -> int:
    """train.py, as its users start it."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "train.py", *given]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    print(done.stderr[-9000:])
    return done.returncode


def generates(name: str, output: Path) -> None:
    """What the run has made is usable by the command line."""
    row = SMALL[name]
    if row.makes == "vocoder":
        vocoder = load_vocoder(str(output / "vocoder"))
        assert isinstance(vocoder, ShortHifiGan) == (name == "hifigan_v3")
        assert vocoder(torch.randn(1, 5, vocoder.config.model_in_dim)).shape == (1, 5 * 256)
    elif row.makes == "vae":
        assert load_autoencoder(str(output / "vae")).config.scaling_factor > 0
    else:
        prompt = ["dog barking" if row.makes == "sound" else "the digit 3"] if row.prompt else []
        made = output / ("made.wav" if row.makes == "sound" else "made.png")
        length = ["-d", "0.3"] if row.makes == "sound" else []
        pipeline = str(output / "pipeline")
        command = ["generate", *prompt, "-m", pipeline, "--steps", str(row.steps), "-o", str(made), *length]
        assert main(command) == 0 and made.stat().st_size > 100


def test_every_file_has_a_row() -> None:
    assert {path.stem for path in PAPERS.glob("*.yaml")} == set(SMALL)


@pytest.mark.parametrize("name", [name for name in SMALL if name != "audioldm2"])
def test_two_steps(name: str, small: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """In this process, where a start costs nothing; with ``--launch`` each by `accelerate launch`, as in CI."""
    if any("SOUNDS" in part for part in SMALL[name].overrides):
        request.getfixturevalue("sounds")
    run = accelerate_launch if request.config.getoption("--launch") else launch.main
    assert run(arguments(name, small, tmp_path)) == 0
    generates(name, tmp_path)


def test_accelerate_launch(small: Path, sounds: None, tmp_path: Path) -> None:
    """The command itself; GPT-2 and its projection learn with the U-Net, CLAP, T5 and words stay as they were."""
    given = [*arguments("audioldm2", small, tmp_path), "optimizer.warmup_steps=0", "train.ema_decay=0"]
    assert accelerate_launch(given) == 0
    generates("audioldm2", tmp_path)
    for name, source in (("text_encoder", "t5"), ("clap", "clap"), ("language_model", "gpt2")):
        before = load_file(small / source / "model.safetensors")
        after = load_file(tmp_path / "pipeline" / name / "model.safetensors")
        moved = {key for key in before if not torch.equal(before[key], after[key])}
        if name == "language_model":
            # Nothing is read from the embedding of words, nor do keys have a use for a bias that all of them share.
            assert "transformer.h.0.attn.c_attn.weight" in moved and "transformer.wte.weight" not in moved
        else:
            assert not moved, name
