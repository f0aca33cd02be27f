"""`latentdiff data encode`: by one process, by two, again, and what training makes of it when something changed."""

import json
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from latentdiff.cli import main
from latentdiff.config import AnyRecipe, NewTextEncoder, save_config
from latentdiff.data.items import Draw, WaveItems, collate
from latentdiff.errors import InputError
from latentdiff.models.text import new_t5, new_tokenizer
from latentdiff.training.conditioning import Listener
from latentdiff.training.recipes import RECIPES
from tests.training.child import run_as_two
from tests.training.conftest import debug_config, diffusion_parts

Configure = Callable[..., AnyRecipe]


@pytest.fixture(scope="module")
def parts(stages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a diffusion run whose text encoder and CLAP are frozen and heard, so that all is cached."""
    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(1)
    tokenizer = new_tokenizer(["a low tone", "a high tone"], 100)
    for part in (tokenizer, new_t5(NewTextEncoder(width=24, layers=1, heads=2), len(tokenizer))):
        part.save_pretrained(folder)
    return [*diffusion_parts(stages), f"text_encoder={folder}", "clap_condition=audio"]


@pytest.fixture(scope="module")
def encoded(parts: list[str], tones: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root of caches that two processes have filled."""
    work = tmp_path_factory.mktemp("two")
    save_config(debug_config("diffusion", tones, work / "run", *parts, f"latents={work / 'cache'}"), work / "it.yaml")
    first, second = run_as_two(["data", "encode", str(work / "it.yaml")], work)
    assert first.count("20 latents to train on and 4 held out, 5 captions") == 1  # 4 wordings and the empty one
    assert "20 latents" not in second
    return work / "cache"


def files(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.usefixtures("one_thread")
def test_two_processes_encode_what_one_does(encoded: Path, parts: list[str], tones: Path, tmp_path: Path) -> None:
    config = debug_config("diffusion", tones, tmp_path / "run", *parts)
    save_config(config, tmp_path / "it.yaml")
    assert main(["data", "encode", str(tmp_path / "it.yaml")]) == 0
    one, two = files(tmp_path / "run" / "latents"), files(encoded)
    assert one.keys() == two.keys() and {name.partition("-")[0] for name in one} == {"rows", "latents", "prompts"}
    assert [name for name in one if one[name] != two[name]] == []


def test_training_reads_them_and_encodes_nothing(
    encoded: Path, parts: list[str], tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it look at the media, which may be on another machine."""
    before = files(encoded)
    config = debug_config("diffusion", tones, tmp_path / "run", *parts, f"latents={encoded}")
    for name in ("embed", "hear"):
        monkeypatch.setattr(Listener, name, lambda listener, given: pytest.fail("encoded again"))
    recipe = RECIPES["diffusion"](config, torch.device("cpu"))
    elsewhere = config.model_copy(update={"data": config.data.model_copy(update={"path": tmp_path / "not here"})})
    other = RECIPES["diffusion"](elsewhere, torch.device("cpu"))
    for draw in (Draw(0, 1), Draw(9, 4)):
        one, two = (r.items[draw] for r in (recipe, other))
        assert one["caption"] == two["caption"] and torch.equal(one["tokens"], two["tokens"])
    assert files(encoded) == before


def test_cached_prompts_are_what_the_encoders_say(encoded: Path, parts: list[str], tones: Path, tmp_path: Path) -> None:
    """The prediction on cached embeddings is that on fresh ones, dropped captions included."""
    config = debug_config("diffusion", tones, tmp_path, *parts, f"latents={encoded}", "clap_condition=text")
    config = config.model_copy(update={"latents": None})
    recipe = RECIPES["diffusion"](config, torch.device("cpu"))
    batch = collate([recipe.items[Draw(i, i)] for i in range(6)])
    dropped = torch.tensor([True, False, False, True, False, False])
    captions = ["" if drop else caption for drop, caption in zip(dropped, batch["caption"], strict=True)]
    network = recipe.networks["denoiser"].eval()
    for parameter in network.unet.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    z, t = torch.randn(batch["mean"].shape), torch.arange(6) * 100
    told = partial(recipe.listener.told, batch, empty=recipe.latents.prompts.empty())
    with torch.no_grad():
        fresh, cached = recipe.predict(z, t, captions), recipe.predict(z, t, captions, told(dropped))
        wrong = recipe.predict(z, t, captions, told(~dropped))
    scale = fresh.std()
    assert (fresh - cached).abs().max() < 2e-3 * scale < (fresh - wrong).abs().max()


def test_sounds_are_heard_unless_captions_dropped(encoded: Path, parts: list[str], tones: Path, tmp_path: Path) -> None:
    recipe = RECIPES["diffusion"](
        debug_config("diffusion", tones, tmp_path, *parts, f"latents={encoded}"), torch.device("cpu")
    )
    batch = collate([recipe.items[Draw(i, i)] for i in (0, 3)])
    told = recipe.listener.told(batch, torch.tensor([True, False]), recipe.latents.prompts.empty())
    features = recipe.listener.parts["feature_extractor"]
    waves = WaveItems(recipe.latents.rows, features.sampling_rate, features.nb_max_samples)
    heard = recipe.listener.hear([waves.crop(waves.rows[row]) for row in batch["row"]])
    torch.testing.assert_close(told.pooled[1], heard[1], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(told.pooled[:1], recipe.listener.read([""]).pooled, atol=1e-3, rtol=1e-3)


CHANGES = {
    "vae": (["vae={other}"], "vae is"),
    "window": (["data.seconds=0.256"], "media is"),
    "held out": (["data.held_out=0.4"], "held_out is 0.2 there and 0.4 here"),
    "text encoder": (["text_encoder={other_text}"], "text_encoder is"),
    "CLAP": (["clap_condition=text"], "sounds is true there and false here"),
    "captions": (["data.path={other_captions}"], "captions is"),
    "a file": (["data.path={other_file}"], "files is"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_stale_is_refused_with_both_keys(
    change: str, encoded: Path, parts: list[str], stages: dict[str, Path], tones: Path, tmp_path: Path
) -> None:
    before = files(encoded)
    text = next(part for part in parts if part.startswith("text_encoder=")).partition("=")[2]
    places = {name: tmp_path / name for name in ("other", "other_text", "other_captions", "other_file")}
    for name, source in zip(places, (stages["vae"] / "vae", text, tones, tones), strict=True):
        shutil.copytree(source, places[name], copy_function=shutil.copy2)
    for name, key in (("other", "scaling_factor"), ("other_text", "dropout_rate")):
        config = places[name] / "config.json"
        facts = json.loads(config.read_text())
        config.write_text(json.dumps(facts | {key: facts[key] + 0.01}))
    metadata = places["other_captions"] / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("a low tone", "something low"))
    os.utime(places["other_file"] / "00.wav", (0, 0))
    overrides, words = CHANGES[change]
    overrides = [override.format(**places) for override in overrides]
    config = debug_config("diffusion", tones, tmp_path / "run", *parts, f"latents={encoded}", *overrides)
    with pytest.raises(InputError) as refused:
        RECIPES["diffusion"](config, torch.device("cpu"))
    said = str(refused.value)
    assert words in said and "latentdiff data encode" in said
    assert len(set(re.findall(r"with the key ([0-9a-f]{16})", said))) == 2
    assert files(encoded) == before


def test_an_empty_folder_says_what_to_do(parts: list[str], tones: Path, tmp_path: Path) -> None:
    config = debug_config("diffusion", tones, tmp_path / "run", *parts, f"latents={tmp_path / 'none'}")
    with pytest.raises(InputError, match="holds no rows, .* run `latentdiff data encode` with it first"):
        RECIPES["diffusion"](config, torch.device("cpu"))


def test_other_stages_have_nothing_to_encode(tones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_config(debug_config("vae", tones, tmp_path / "run"), tmp_path / "it.yaml")
    assert main(["data", "encode", str(tmp_path / "it.yaml")]) == 2
    assert "has the stage vae; only the stage diffusion" in capsys.readouterr().err
