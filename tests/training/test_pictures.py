"""Pictures through the recipes of sounds: the VAE, the denoiser on its latents and on pixels, and somebody's own."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from latentdiff import InputError, TextToImagePipeline
from latentdiff.cli import main
from latentdiff.config import AnyRecipe, load_config
from latentdiff.evaluation.judging import rank_names, top_accuracy
from latentdiff.media.image import from_x
from latentdiff.models.judge import PictureJudge
from latentdiff.models.loading import load_autoencoder
from latentdiff.training.recipes import RECIPES
from latentdiff.training.recipes.judge import augment_pictures
from tests.training.child import launch
from tests.training.conftest import debug_config, train

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "debug"
COLOURS = ("red", "green", "blue")


def draw(folder: Path, count: int, size: Callable[[int], tuple[int, int]] = lambda _: (32, 32)) -> Path:
    """Circles and squares of three colours on transparent ground, with captions in metadata.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["file_name,text"]
    for i in range(count):
        shape, colour = ("circle", "square")[i % 2], COLOURS[i % 3]
        picture = Image.new("RGBA", size(i))
        box = (4, 4, picture.width - 5 - i % 3, picture.height - 5)
        pen = ImageDraw.Draw(picture)
        (pen.ellipse if shape == "circle" else pen.rectangle)(box, fill=colour)
        picture.save(folder / f"{i:02d}.png")
        lines.append(f"{i:02d}.png,a {colour} {shape}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


def describe(folder: Path) -> Path:
    """The same captions as metadata.jsonl, with the attributes that a judge learns; the first picture has no colour."""
    lines = (folder / "metadata.csv").read_text().splitlines()[1:]
    (folder / "metadata.csv").unlink()
    rows = []
    for number, line in enumerate(lines):
        name, caption = line.split(",")
        _, colour, shape = caption.split()
        attributes = {"shape": shape} | ({"colour": colour} if number else {})
        rows.append(json.dumps({"file_name": name, "text": caption, "attributes": attributes}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("shapes") / "train", 12)


def image_config(stage: str, data: Path, output: Path, *overrides: str) -> AnyRecipe:
    """A debug configuration on the shapes, six steps long."""
    common = [f"data.path={data}", f"output={output}", "data.held_out=0.2", "train.batch_size=4", "train.max_steps=6",
              "train.validate_every=6", "train.checkpoint_every=3", "train.log_every=2", "train.trackers=[]",
              "train.overfit_check_steps=0"]  # fmt: skip
    common += ["adversarial_start=2"] if stage == "vae" else []
    return load_config(CONFIGS / f"image_{stage}.yaml", [*common, *overrides])


@pytest.fixture(scope="module")
def runs(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The three kinds of run, in order: name -> output folder."""
    root = tmp_path_factory.mktemp("runs")
    vae = train(image_config("vae", shapes, root / "vae"))
    diffusion = train(image_config("diffusion", shapes, root / "diffusion", f"vae={vae / 'vae'}"))
    pixels = train(image_config("diffusion", shapes, root / "pixels", "vae=none", "data.size=8", "data.fit=stretch"))
    return {"vae": vae, "diffusion": diffusion, "pixels": pixels}


def test_each_run_leaves_what_can_be_looked_at(runs: dict[str, Path]) -> None:
    pairs = Image.open(runs["vae"] / "validation/step-00000006/pictures.png")
    assert pairs.size == (4 * 34 - 2, 34 - 2)  # two held-out pictures, each with its reconstruction at its right
    assert np.asarray(pairs)[2, 2].tolist() == [255, 255, 255]  # transparent ground is the stated background
    for name in ("diffusion", "pixels"):
        folder = runs[name] / "validation/step-00000006"
        assert {path.name for path in folder.iterdir()} == {"0.png", "1.png", "prompts.txt"}


def test_the_vae_carries_what_its_pictures_are(runs: dict[str, Path]) -> None:
    vae = load_autoencoder(str(runs["vae"] / "vae"))
    assert vae.config.image == {"size": [32, 32], "fit": "crop", "background": "white", "channels": 3}
    assert vae.config.mel is None and vae.config.in_channels == 3 and 0.3 < vae.config.scaling_factor < 3.0


def test_both_pipelines_make_pictures(runs: dict[str, Path]) -> None:
    for name, size in (("diffusion", (32, 32)), ("pixels", (8, 8))):
        pipe = TextToImagePipeline.from_pretrained(runs[name] / "pipeline")
        pipe.set_progress_bar_config(disable=True)
        assert (pipe.vae is None) == (name == "pixels")
        (picture,) = pipe("a red circle", generator=torch.Generator().manual_seed(0)).images
        assert picture.size == size and np.asarray(picture).std() > 1


def test_pixels_are_the_pictures_themselves(shapes: Path, tmp_path: Path) -> None:
    """Without a VAE nothing is scaled, and what is cached comes back to the same 8 bits."""
    config = image_config("diffusion", shapes, tmp_path, "vae=none")
    recipe = RECIPES["diffusion"](config, torch.device("cpu"))
    row = recipe.latents.rows[0]
    real = Image.open(row.path).convert("RGBA")
    on_white = Image.alpha_composite(Image.new("RGBA", real.size, "white"), real).convert("RGB")
    assert np.array_equal(from_x(recipe.latents.mean[:1])[0].permute(1, 2, 0).numpy(), np.asarray(on_white))
    assert not recipe.latents.deviation[:].any() and recipe.check() == []


@pytest.mark.parametrize("name", ["vae", "diffusion"])
def test_resumed_equals_unbroken(name: str, runs: dict[str, Path], shapes: Path, tmp_path: Path) -> None:
    parts = ["train.max_steps=3"] if name == "vae" else ["train.max_steps=3", f"vae={runs['vae'] / 'vae'}"]
    schedule = "optimizer.schedule=constant"  # a cosine would know how long the run is to be
    whole = train(image_config(name, shapes, tmp_path / "whole", *parts, schedule, "train.max_steps=6"))
    train(image_config(name, shapes, tmp_path / "halves", *parts, schedule))
    halves = train(image_config(name, shapes, tmp_path / "halves", *parts, schedule, "train.max_steps=6"))
    first, second = (load_file(run / "checkpoints/step-00000006/model.safetensors") for run in (whole, halves))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_an_adversarial_step_reaches_the_autoencoder(shapes: Path, tmp_path: Path) -> None:
    recipe = RECIPES["vae"](image_config("vae", shapes, tmp_path), torch.device("cpu"))
    assert set(recipe.networks) == {"vae", "discriminator"} and set(recipe.phases) == {"discriminator", "vae"}


def test_one_channel(shapes: Path, tmp_path: Path) -> None:
    vae = train(image_config("vae", shapes, tmp_path / "vae", "data.channels=1"))
    output = train(image_config("diffusion", shapes, tmp_path / "run", "data.channels=1", f"vae={vae / 'vae'}"))
    pipe = TextToImagePipeline.from_pretrained(output / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a red circle").images[0].mode == "L"


@pytest.mark.parametrize(
    ("stage", "overrides", "words"),
    [
        ("vae", ["data.size=30"], r"data.size is \[30, 30\], .*compression of 4 .* choose \[28, 28\] or \[32, 32\]"),
        ("vae", ["data.size=[2, 32]"], r"choose \[4, 36\]"),
        ("diffusion", ["data.size=30"], r"compression of 4 does not divide"),
        ("diffusion", ["data.channels=1"], "with 3 channels, and data.channels is 1"),
        ("diffusion", ["vae=nowhere/at/all"], "nowhere/at/all"),
    ],
)
def test_bad_configurations(
    stage: str, overrides: list[str], words: str, runs: dict[str, Path], shapes: Path, tmp_path: Path
) -> None:
    parts = [f"vae={runs['vae'] / 'vae'}"] if stage == "diffusion" else []
    with pytest.raises(InputError, match=words):
        RECIPES[stage](image_config(stage, shapes, tmp_path, *parts, *overrides), torch.device("cpu"))


def test_sounds_and_pictures_do_not_mix(
    stages: dict[str, Path], tones: Path, runs: dict[str, Path], shapes: Path, tmp_path: Path
) -> None:
    sounds = f"vae={stages['vae'] / 'vae'}"
    with pytest.raises(InputError, match="is one of sounds, and data.kind is image"):
        RECIPES["diffusion"](image_config("diffusion", shapes, tmp_path, sounds), torch.device("cpu"))
    with pytest.raises(InputError, match="holds audio files, and data.kind is image"):
        RECIPES["vae"](image_config("vae", tones, tmp_path), torch.device("cpu"))
    with pytest.raises(InputError, match="holds image files, and data.kind is audio"):
        RECIPES["vae"](debug_config("vae", shapes, tmp_path), torch.device("cpu"))
    parts = [f"vae={runs['vae'] / 'vae'}", f"vocoder={stages['vocoder'] / 'vocoder'}", "clap=null"]
    with pytest.raises(InputError, match="has no mel definition"):
        RECIPES["diffusion"](debug_config("diffusion", tones, tmp_path, *parts), torch.device("cpu"))


def test_own_pictures_become_a_generator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of drawings of all sizes: scan, a stage through `accelerate launch`, the other, a grid of pictures."""
    monkeypatch.chdir(tmp_path)
    drawings = draw(tmp_path / "drawings", 9, lambda i: (30 + 5 * i, 50))
    assert main(["data", "scan", str(drawings)]) == 0
    scan = capsys.readouterr().out
    assert "Usable files     9" in scan and "Modes            RGBA: 9" in scan
    asked = [f"data.path={drawings}", "data.held_out=0.2", "data.size=[32, 24]", "data.fit=pad", "train.batch_size=4",
             "train.max_steps=6", "train.overfit_check_steps=2"]  # fmt: skip
    launch(str(CONFIGS / "image_vae.yaml"), *asked, cwd=tmp_path)
    assert main(["train", str(CONFIGS / "image_diffusion.yaml"), *asked]) == 0
    pipeline = tmp_path / "runs/debug/image-diffusion/pipeline"
    assert json.loads((pipeline / "model_index.json").read_text())["_class_name"] == "TextToImagePipeline"
    wanted = ["generate", "a red circle", "-m", str(pipeline), "-n", "4", "--seed", "3"]
    assert main([*wanted, "-o", str(tmp_path / "made.png")]) == 0
    sizes = {path.name: Image.open(path).size for path in tmp_path.glob("*.png")}
    assert sizes == {**{f"made-{i}.png": (24, 32) for i in (1, 2, 3, 4)}, "made-grid.png": (50, 66)}


def judge_config(data: Path, output: Path, *overrides: str) -> AnyRecipe:
    common = [f"data.path={data}", f"output={output}", "data.held_out=0.2", "data.size=32", "width=8",
              "train.batch_size=12", "train.max_steps=60", "train.validate_every=60", "train.trackers=[]",
              "optimizer.lr=1e-2"]  # fmt: skip
    return load_config(ROOT / "configs" / "image" / "judge.yaml", [*common, *overrides])


def test_a_judge_learns_each_attribute(tmp_path: Path) -> None:
    """On pictures that it has not seen; the one without a colour is no colour's example."""
    data = describe(draw(tmp_path / "data", 30))
    output = train(judge_config(data, tmp_path / "run"))
    judge = PictureJudge.from_pretrained(output / "judge").eval()
    assert judge.config.labels == {"colour": ["blue", "green", "red"], "shape": ["circle", "square"]}
    recipe = RECIPES["judge"](judge_config(data, tmp_path / "again"), torch.device("cpu"))
    rows = recipe.held_out.rows
    ranked = rank_names(judge, recipe.held_out.stack(rows))
    for attribute, least in (("colour", 0.9), ("shape", 0.8)):
        told = [dict(row.attributes).get(attribute) for row in rows]
        pairs = [(names, name) for names, name in zip(ranked[attribute], told, strict=True) if name]
        assert top_accuracy([names for names, _ in pairs], [name for _, name in pairs], 1) >= least, attribute
        assert top_accuracy([names for names, _ in pairs], [name for _, name in pairs], 3) == 1


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "no row of the metadata has 'attributes'"),
        (["data.size=8"], "even sides of 16"),
        (["data.size=33"], "even"),
    ],
)
def test_what_a_judge_cannot_learn_from(overrides: list[str], words: str, tmp_path: Path) -> None:
    data = draw(tmp_path / "data", 6)
    with pytest.raises(InputError, match=words):
        RECIPES["judge"](judge_config(describe(data) if overrides else data, tmp_path, *overrides), torch.device("cpu"))


def test_augmented_pictures_are_others_of_the_same(tmp_path: Path) -> None:
    left_is_dark = torch.full((64, 3, 32, 32), 30.0)
    left_is_dark[..., 16:] = 220.0
    made = augment_pictures(left_is_dark, torch.Generator().manual_seed(0))
    assert made.min() >= 0 and made.max() <= 255
    assert torch.equal(made, augment_pictures(left_is_dark, torch.Generator().manual_seed(0)))
    assert (made[0] - made[1]).abs().mean() > 2  # each has its own draw
    assert (made[..., :8].mean((1, 2, 3)) < made[..., 24:].mean((1, 2, 3)) - 100).all()  # never mirrored
