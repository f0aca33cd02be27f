"""The verb generate: around a stand-in for the model (seeds, batches, recipes), and with a whole tiny one."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image
from safetensors.torch import load_file, save_file

from latentdiff import TextToImagePipeline, __version__
from latentdiff.cli import main
from latentdiff.commands import generate as verb
from latentdiff.commands.generate import generate
from latentdiff.commands.request import DTYPES, Request, medium_of, read_prompts, read_size
from latentdiff.diffusion.samplers import CONSISTENCY_SAMPLERS, SAMPLERS, make_scheduler
from latentdiff.errors import InputError
from latentdiff.media.audio import read_audio, read_recipe
from latentdiff.media.image import read_png_recipe
from latentdiff.names import BUNDLED, PIPELINES, SAMPLER_NAMES

RATE = 16000


class NoisePipe:
    """What `generate` needs of a pipeline: noise of each clip's own generator."""

    config = SimpleNamespace(
        default_steps=20, default_guidance=3.0, default_guidance_interval=None, default_guidance_rescale=0.0
    )

    def __init__(self) -> None:
        self.scheduler = make_scheduler("dpmsolver++", {"num_train_timesteps": 1000})
        self.batches: list[list[str]] = []

    def __call__(self, prompts: list[str], **options: Any) -> SimpleNamespace:
        self.batches.append(prompts)
        samples = int((options["audio_length_in_s"] or 0.5) * RATE)
        waves = [torch.rand(samples, generator=generator).numpy() * 0.1 for generator in options["generator"]]
        assert len(waves) == len(prompts)
        return SimpleNamespace(audios=np.stack(waves), sampling_rate=RATE, parts=None)


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> NoisePipe:
    stand_in = NoisePipe()
    monkeypatch.setattr(verb, "load_pipeline", lambda request: stand_in)
    (tmp_path / "model_index.json").write_text('{"_class_name": "TextToAudioPipeline"}')
    return stand_in


def request(tmp_path: Path, *prompts: str, **options: Any) -> Request:
    defaults: dict[str, Any] = {
        "model": str(tmp_path), "output": f"{tmp_path}/out/", "duration": None, "size": None, "num": 1, "steps": None,
        "guidance": None, "negative": None, "seed": None, "sampler": None, "device": None, "dtype": "float32",
        "overwrite": False, "plot": False,
    }  # fmt: skip
    return Request(prompts=list(prompts), **defaults | options)


def test_every_file_carries_its_recipe(pipe: NoisePipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate(request(tmp_path, "a dog", num=2, seed=7, steps=5, negative="rain", duration=0.25, plot=True))
    recipe = read_recipe(tmp_path / "out/a-dog-2.wav")
    assert recipe == {
        "prompt": "a dog", "negative_prompt": "rain", "seed": 8, "steps": 5, "guidance": 3.0,
        "sampler": "dpmsolver++", "duration": 0.25, "model": str(tmp_path), "latentdiff": __version__,
    }  # fmt: skip
    assert (tmp_path / "out/a-dog-2.png").stat().st_size > 1000
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split("  ") == [f"{tmp_path}/out/a-dog-2.wav", "0.25 s", "seed 8"]


def test_a_clip_is_the_same_alone_and_among_others(pipe: NoisePipe, tmp_path: Path) -> None:
    generate(request(tmp_path, "a", "b", "c", num=4, seed=100, output=f"{tmp_path}/many.wav"))
    generate(request(tmp_path, "b", seed=106, output=f"{tmp_path}/one.wav"))
    assert [len(batch) for batch in pipe.batches] == [8, 4, 1]
    many, one = (read_audio(tmp_path / name)[0] for name in ("many-7.wav", "one.wav"))
    assert np.array_equal(many, one)


def test_long_clips_go_one_by_one(pipe: NoisePipe, tmp_path: Path) -> None:
    generate(request(tmp_path, "a", num=2, duration=60.0))
    assert [len(batch) for batch in pipe.batches] == [1, 1]


def test_the_seed_is_drawn_and_recorded(pipe: NoisePipe, tmp_path: Path) -> None:
    generate(request(tmp_path, "a"))
    generate(request(tmp_path, "a"))
    first, second = (read_recipe(tmp_path / "out" / name) for name in ("a.wav", "a-2.wav"))
    assert first and second and first["seed"] != second["seed"]


def test_the_shell_with_a_whole_pipeline(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def shell(*arguments: str) -> tuple[int, str]:
        code = main(["generate", *arguments, "-m", str(tiny_pipeline), "--device", "cpu"])
        return code, capsys.readouterr().out

    code, out = shell("a dog", "rain", "--seed", "3", "-o", f"{tmp_path}/")
    assert code == 0
    assert out == f"{tmp_path}/a-dog.wav  1.00 s  seed 3\n{tmp_path}/rain.wav  1.00 s  seed 4\n"
    shell("rain", "--seed", "4", "-o", f"{tmp_path}/alone.wav")
    both, alone = (read_audio(tmp_path / name)[0] for name in ("rain.wav", "alone.wav"))
    assert len(both) == RATE and np.abs(both).max() > 0
    assert np.abs(both - alone).max() < 2e-4

    options = ["--steps", "2", "--guidance", "1", "--sampler", "euler", "-d", "0.3", "--dtype", "bfloat16"]
    code, _ = shell("a dog", *options, "-o", f"{tmp_path}/x.flac")
    recipe = read_recipe(tmp_path / "x.flac")
    assert code == 0 and recipe
    assert (recipe["steps"], recipe["guidance"], recipe["sampler"]) == (2, 1.0, "euler")
    assert len(read_audio(tmp_path / "x.flac")[0]) == 0.3 * RATE
    assert main(["info", str(tiny_pipeline)]) == 0
    shown = capsys.readouterr().out
    assert "PatchAutoencoder" in shown and "default_steps           3" in shown


def test_a_model_that_makes_nan_is_one_sentence(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = shutil.copytree(tiny_pipeline, tmp_path / "broken")
    weights = broken / "unet/diffusion_pytorch_model.safetensors"
    save_file({name: tensor * float("nan") for name, tensor in load_file(weights).items()}, weights)
    assert main(["generate", "a dog", "-m", str(broken), "-o", f"{tmp_path}/x.wav"]) == 2
    assert "latentdiff: nothing was written: " in capsys.readouterr().err
    assert not (tmp_path / "x.wav").exists()


def test_cut_weights_are_one_sentence(tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("unet/diffusion_pytorch_model.safetensors", "vocoder/model.safetensors"):
        broken = shutil.copytree(tiny_pipeline, tmp_path / part.partition("/")[0])
        (broken / part).write_bytes((broken / part).read_bytes()[:-100])
        assert main(["generate", "a dog", "-m", str(broken), "-o", f"{tmp_path}/x.wav"]) == 2
        assert f"{part} is not a whole safetensors file" in capsys.readouterr().err.splitlines()[-1]


def test_a_hub_id_that_cannot_be_fetched_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["generate", "a dog", "-m", "nobody/nothing", "-o", f"{tmp_path}/x.wav"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("latentdiff: cannot load the model 'nobody/noth")


# ---------------------------------------------------------------- pictures


class ColourPipe:
    """What `generate` needs of a pipeline of pictures: one colour from each picture's own generator."""

    config = SimpleNamespace(
        default_steps=20,
        default_guidance=3.0,
        default_guidance_interval=None,
        default_guidance_rescale=0.0,
        default_height=16,
        default_width=24,
    )

    def __init__(self) -> None:
        self.scheduler = make_scheduler("dpmsolver++", {"num_train_timesteps": 1000})
        self.batches: list[list[str]] = []

    def __call__(self, prompts: list[str], **options: Any) -> SimpleNamespace:
        self.batches.append(prompts)
        size = (options["width"] or 24, options["height"] or 16)
        colours = [tuple(torch.randint(256, (3,), generator=g).tolist()) for g in options["generator"]]
        return SimpleNamespace(images=[Image.new("RGB", size, colour) for colour in colours])


@pytest.fixture
def painter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ColourPipe:
    stand_in = ColourPipe()
    monkeypatch.setattr(verb, "load_pipeline", lambda request: stand_in)
    (tmp_path / "model_index.json").write_text('{"_class_name": "TextToImagePipeline"}')
    return stand_in


def test_nine_pictures_and_a_grid(painter: ColourPipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate(request(tmp_path, "a dog", num=9, seed=7, output=f"{tmp_path}/dog.png"))
    single = [Image.open(tmp_path / f"dog-{i}.png") for i in range(1, 10)]
    sheet = Image.open(tmp_path / "dog-grid.png")
    assert sheet.size == (3 * 26 - 2, 3 * 18 - 2)
    places = [(26 * (i % 3) + 5, 18 * (i // 3) + 5) for i in range(9)]
    assert [sheet.getpixel(place) for place in places] == [picture.getpixel((5, 5)) for picture in single]
    assert len({picture.getpixel((5, 5)) for picture in single}) == 9
    assert read_png_recipe(tmp_path / "dog-3.png") == {
        "prompt": "a dog", "negative_prompt": None, "seed": 9, "steps": 20, "guidance": 3.0, "sampler": "dpmsolver++",
        "model": str(tmp_path), "latentdiff": __version__, "width": 24, "height": 16,
    }  # fmt: skip
    recipe = read_png_recipe(tmp_path / "dog-grid.png")
    assert recipe and (recipe["prompt"], recipe["seed"], recipe["num"]) == (["a dog"], 7, 9)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ") == [f"{tmp_path}/dog-1.png", "24 x 16", "seed 7"] and "dog-grid.png" in lines[-1]


def test_a_grid_has_a_row_for_each_of_several_prompts(painter: ColourPipe, tmp_path: Path) -> None:
    generate(request(tmp_path, "a", "b", num=5, size=(16, 8)))
    assert Image.open(tmp_path / "out/a-grid.png").size == (5 * 18 - 2, 2 * 10 - 2)
    generate(request(tmp_path, "c", "d"))
    assert not list((tmp_path / "out").glob("c-grid*"))  # one of each needs none


def test_large_pictures_go_few_at_once(painter: ColourPipe, tmp_path: Path) -> None:
    generate(request(tmp_path, "a", num=3, size=(1024, 1024)))
    assert [len(batch) for batch in painter.batches] == [1, 1, 1]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"duration": 2.0}, "--duration is not for pictures, and .* makes pictures"),
        ({"plot": True}, "--plot is not for pictures"),
        ({"output": "dog.wav"}, r"must end in \.png"),
    ],
)
def test_a_model_of_pictures_takes_no_options_of_sounds(
    painter: ColourPipe, tmp_path: Path, option: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        generate(request(tmp_path, "a dog", **option))
    assert not painter.batches


def test_a_model_of_sounds_takes_no_options_of_pictures(pipe: NoisePipe, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--size is not for sounds, and .* makes sounds"):
        generate(request(tmp_path, "a dog", size=(64, 64)))
    assert not pipe.batches


@pytest.mark.parametrize(
    ("text", "size"), [("64", (64, 64)), ("96x64", (96, 64)), ("8X2048", (8, 2048)), ("0064", (64, 64))]
)
def test_sizes(text: str, size: tuple[int, int]) -> None:
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "64x0", "x64", "-64", "64x64x64", "big", "2049", "64 x 64", "1e3"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="--size is"):
        read_size(text)


def test_the_shell_with_a_whole_pipeline_of_pictures(
    tiny_image_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def shell(*arguments: str) -> tuple[int, str]:
        code = main(["generate", *arguments, "-m", str(tiny_image_pipeline), "--device", "cpu"])
        return code, capsys.readouterr().out

    code, out = shell("a dog", "a cat", "--seed", "3", "-o", f"{tmp_path}/")
    assert code == 0
    assert out == f"{tmp_path}/a-dog.png  32 x 32  seed 3\n{tmp_path}/a-cat.png  32 x 32  seed 4\n"
    shell("a cat", "--seed", "4", "-o", f"{tmp_path}/alone.png")
    both, alone = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("a-cat.png", "alone.png"))
    assert both.std() > 5 and np.abs(both - alone).max() <= 1
    options = ["--steps", "2", "--guidance", "1", "--sampler", "euler", "--size", "48x16", "--dtype", "bfloat16"]
    assert shell("a dog", *options, "-o", f"{tmp_path}/x.png")[0] == 0
    assert Image.open(tmp_path / "x.png").size == (48, 16)
    assert main(["info", f"{tmp_path}/x.png"]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    for words in (["size", "48", "x", "16", "pixels"], ["prompt", "a", "dog"], ["sampler", "euler"], ["width", "48"]):
        assert words in shown
    assert main(["info", str(tiny_image_pipeline)]) == 0
    assert "background white, channels 3, fit crop, size [32, 32]" in capsys.readouterr().out
    assert main(["generate", "a dog", "-m", str(tiny_image_pipeline), "--size", "36", "-o", f"{tmp_path}/y.png"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "latentdiff: a height of 36 pixels is not divisible by 8, the model's compression; try 32."
    )
    assert not (tmp_path / "y.png").exists()


def test_the_medium_of_a_model_is_known_before_it_is_loaded(tiny_pipeline: Path, tiny_image_pipeline: Path) -> None:
    import latentdiff

    assert (medium_of(str(tiny_pipeline)), medium_of(str(tiny_image_pipeline))) == ("audio", "image")
    assert set(BUNDLED.values()) == set(PIPELINES)
    assert all(getattr(latentdiff, name).__name__ == name for name in PIPELINES.values())


def test_prompts_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"\xef\xbb\xbfa dog\r\n\r\n  rain \n")
    assert read_prompts(tmp_path / "p.txt") == ["a dog", "rain"]


def test_names_checked_without_torch_are_the_real_ones() -> None:
    assert (*SAMPLERS, *CONSISTENCY_SAMPLERS) == SAMPLER_NAMES
    assert all(isinstance(getattr(torch, name), torch.dtype) for name in DTYPES)


def test_device_and_dtype_must_go_together(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="float16 is not for the CPU"):
        verb._device_and_dtype(request(tmp_path, "a", device="cpu", dtype="float16"))
    with pytest.raises(InputError, match="no device 'cuda:99'"):
        verb._device_and_dtype(request(tmp_path, "a", device="cuda:99"))
    assert verb._device_and_dtype(request(tmp_path, "a", device="cpu")) == ("cpu", torch.float32)


def test_a_model_that_hears_no_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = TextToImagePipeline(
        vae=None,
        unet=UNet2DModel(
            block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=4
        ),
        scheduler=make_scheduler("ddim", {"prediction_type": "sample"}),
        default_steps=2,
        default_guidance=1.0,
        default_height=8,
        default_width=8,
    )
    pipe.save_pretrained(tmp_path / "model")
    model = str(tmp_path / "model")
    assert main(["generate", "-m", model, "-n", "3", "--seed", "5", "-o", f"{tmp_path}/made/"]) == 0
    made = sorted(path.name for path in (tmp_path / "made").iterdir())
    assert made == ["sample-2.png", "sample-3.png", "sample-grid.png", "sample.png"]
    assert main(["generate", "-m", model, "--seed", "7", "-o", f"{tmp_path}/again.png"]) == 0
    pixels = [np.asarray(Image.open(path)) for path in (tmp_path / "made/sample-3.png", tmp_path / "again.png")]
    assert np.array_equal(*pixels)
    assert read_png_recipe(tmp_path / "again.png")["prompt"] is None
    capsys.readouterr()
    assert main(["generate", "a dog", "-m", model]) == 2
    assert f"{model} hears no prompt; leave it out, -n says how many are made." in capsys.readouterr().err
