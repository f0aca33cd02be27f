"""Components by folder: the right class, and one plain sentence for everything else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from latentdiff.config import GeneratorConfig, KLAutoencoderConfig, PatchAutoencoderConfig
from latentdiff.errors import InputError
from latentdiff.media.mel import PRESETS
from latentdiff.models.autoencoder import PatchAutoencoder, build_autoencoder
from latentdiff.models.loading import load_autoencoder, load_vocoder, require_component, weights_hash
from latentdiff.models.vocoder import new_vocoder, vocoder_mel

MEL = PRESETS["starter-16k-64"]


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    folder = tmp_path / "runs/vae/vae"
    build_autoencoder(PatchAutoencoderConfig(width=8, depth=1), 1, MEL).save_pretrained(folder)
    return folder


@pytest.fixture
def kl(tmp_path: Path) -> Path:
    config = KLAutoencoderConfig(
        kind="kl", block_out_channels=(8,), layers_per_block=1, latent_channels=4, norm_num_groups=4
    )
    build_autoencoder(config, 1, MEL).save_pretrained(tmp_path / "kl")
    return tmp_path / "kl"


@pytest.fixture
def vocoder(tmp_path: Path) -> Path:
    config = GeneratorConfig(
        upsample_rates=(16, 16),
        upsample_kernel_sizes=(32, 32),
        upsample_initial_channel=8,
        resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1,),),
    )
    new_vocoder(config, MEL).save_pretrained(tmp_path / "vocoder")
    return tmp_path / "vocoder"


def test_an_autoencoder_is_loaded_as_what_it_is(ours: Path, kl: Path) -> None:
    assert isinstance(load_autoencoder(str(ours)), PatchAutoencoder)
    assert isinstance(load_autoencoder(str(kl)), diffusers.AutoencoderKL)


def test_a_vocoder_is_loaded_with_its_mel(vocoder: Path) -> None:
    assert vocoder_mel(load_vocoder(str(vocoder))) == MEL


def test_half_precision_is_for_the_disk(ours: Path, kl: Path, vocoder: Path) -> None:
    """What trains or is trained on computes in float32, also where the folder holds less."""
    for load, folder in ((load_autoencoder, ours), (load_autoencoder, kl), (load_vocoder, vocoder)):
        load(str(folder)).half().save_pretrained(folder)
        assert {value.dtype for value in load_file(next(folder.glob("*.safetensors"))).values()} == {torch.float16}
        assert {parameter.dtype for parameter in load(str(folder)).parameters()} == {torch.float32}


@pytest.mark.parametrize("load", [load_autoencoder, load_vocoder, weights_hash])
@pytest.mark.parametrize("source", ["nowhere", "runs/vae/vae", "./runs/vae", "/nowhere/vae", ""])
def test_no_folder_there(load: Callable[[str], Any], source: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="has no config.json"):
        load(source)


def test_a_run_and_not_its_component(ours: Path, monkeypatch: Any, tmp_path: Path) -> None:
    """The commonest slip: runs/vae instead of runs/vae/vae. It must not be taken for a hub id."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="runs/vae is no component folder"):
        load_autoencoder("runs/vae")
    assert require_component("runs/vae/vae", "config.json") == Path("runs/vae/vae/config.json")


def test_the_wrong_kind_is_named(ours: Path, kl: Path, vocoder: Path) -> None:
    with pytest.raises(InputError, match="holds a SpeechT5HifiGan and not an autoencoder"):
        load_autoencoder(str(vocoder))
    with pytest.raises(InputError, match="holds a PatchAutoencoder and not a vocoder"):
        load_vocoder(str(ours))
    with pytest.raises(InputError, match="holds a AutoencoderKL and not a vocoder"):
        load_vocoder(str(kl))


def break_json(folder: Path) -> None:
    (folder / "config.json").write_text("<html>")


def remove_weights(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.unlink()


def cut_weights(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty_config(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


@pytest.mark.parametrize("damage", [break_json, remove_weights, cut_weights, empty_config])
@pytest.mark.parametrize("kind", ["ours", "kl", "vocoder"])
def test_a_broken_folder_is_one_sentence(
    kind: str, damage: Callable[[Path], None], request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    damage(folder)
    load: Callable[[str], Any] = load_vocoder if kind == "vocoder" else load_autoencoder
    with pytest.raises(InputError) as error:
        load(str(folder))
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_hub_id_that_is_not_there(monkeypatch: Any) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for load in (load_autoencoder, load_vocoder):
        with pytest.raises(InputError, match="latentdiff-nobody/nothing"):
            load("latentdiff-nobody/nothing")


def test_weights_hash_follows_the_content(ours: Path, tmp_path: Path) -> None:
    first = weights_hash(str(ours))
    copy = tmp_path / "copy"
    ours.rename(copy)
    assert weights_hash(str(copy)) == first  # the place does not matter
    load_autoencoder(str(copy)).save_pretrained(tmp_path / "again")  # notes from where it was loaded
    assert str(copy) in (tmp_path / "again" / "config.json").read_text()
    assert weights_hash(str(tmp_path / "again")) == first
    (copy / "notes.txt").write_text("of no weight")
    assert weights_hash(str(copy)) == first
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.5}))
    second = weights_hash(str(copy))
    weights = copy / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert len({first, second, weights_hash(str(copy))}) == 3
    assert weights_hash("someone/vae") == "someone/vae"
