"""The command line: quick, torch-free, and one sentence with exit code 2 for every bad argument."""

import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

# Exit code + 100 if torch was imported on the way.
PROGRAM = (
    "import sys; from latentdiff.cli import main; "
    "code = main(sys.argv[1:]); sys.exit(code + 100 * ('torch' in sys.modules))"
)
VERBS = [
    [],
    ["generate"],
    ["train"],
    ["data"],
    ["data", "scan"],
    ["data", "soundbank"],
    ["data", "emoji"],
    ["evaluate"],
    ["info"],
    ["doctor"],
]
HEADER = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
BOMB = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + HEADER + struct.pack(">I", zlib.crc32(HEADER)) + b"\0\0\0\0IDAT"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with one of each thing that can be in the way."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model_index.json").write_text('{"_class_name": "TextToAudioPipeline"}')
    (tmp_path / "image").mkdir()
    (tmp_path / "image/model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    (tmp_path / "painter").mkdir()
    (tmp_path / "painter/model_index.json").write_text('{"_class_name": "TextToImagePipeline"}')
    (tmp_path / "empty").mkdir()
    (tmp_path / "bomb.png").write_bytes(BOMB)
    (tmp_path / "there.png").write_bytes(b"")
    (tmp_path / "none.txt").write_text("\n  \n")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    soundfile.write(tmp_path / "there.wav", np.zeros(100), 16000)
    (tmp_path / "unknown.yaml").write_text(
        "stage: vae\ndata: {path: empty}\noutput: out\noptimizer: {lr: 1e-3}\ntrain: {max_step: 1, batch_size: 1}\n"
    )
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/config.json").write_text('{"_class_name": "AutoencoderKL"}')
    (tmp_path / "broken/model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    return tmp_path


@pytest.fixture
def run(place: Path) -> Run:
    """Runs a command line in `place`, in a process of its own."""

    def run_in_place(*arguments: str | bytes) -> subprocess.CompletedProcess[str]:
        command: list[str | bytes] = [sys.executable, "-c", PROGRAM, *arguments]
        return subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=60)

    return run_in_place


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_help_has_an_example_and_no_torch(run: Run, verb: list[str]) -> None:
    done = run(*verb, "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage: latentdiff" in done.stdout
    if verb not in ([], ["data"]):
        assert f"latentdiff {' '.join(verb)} " in done.stdout.partition("Example")[2].replace("\n", " ")


def test_nothing_imports_torch_behind_the_help(run: Run) -> None:
    heavy = ["torch", "transformers", "diffusers", "librosa", "matplotlib", "numpy"]
    program = f"import sys, latentdiff.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_version_and_bare_command(run: Run) -> None:
    from latentdiff import __version__

    assert run("--version").stdout == f"latentdiff {__version__}\n"
    assert "generate" in run().stdout


MINE = ("-m", "model")
BAD = {
    "unknown model": (("generate", "a dog", "-m", "starter-adio"), "did you mean 'starter-audio'"),
    "missing model folder": (("generate", "a dog", "-m", "./nowhere/pipeline"), "unknown model './nowhere"),
    "folder without pipeline": (("generate", "a dog", "-m", "empty"), "without model_index.json"),
    "foreign pipeline": (("generate", "a dog", "-m", "image"), "of the class FluxPipeline"),
    "no prompt": (("generate", *MINE), "nothing to generate"),
    "empty prompt": (("generate", "", *MINE), "prompt is empty"),
    "blank prompt": (("generate", "a dog", "  ", *MINE), "prompt is empty"),
    "prompt that is no text": (("generate", b"caf\xe9", *MINE), "not valid UTF-8"),
    "duration 0": (("generate", "a dog", *MINE, "-d", "0"), "--duration is 0 s"),
    "duration -1": (("generate", "a dog", *MINE, "-d", "-1"), "--duration is -1 s"),
    "duration 10 hours": (("generate", "a dog", *MINE, "-d", "36000"), "at most 600 s"),
    "duration nan": (("generate", "a dog", *MINE, "-d", "nan"), "--duration is nan"),
    "duration inf": (("generate", "a dog", *MINE, "-d", "inf"), "--duration is inf"),
    "duration word": (("generate", "a dog", *MINE, "-d", "long"), "--duration"),
    "steps 0": (("generate", "a dog", *MINE, "--steps", "0"), "--steps is 0"),
    "steps 10 million": (("generate", "a dog", *MINE, "--steps", "10000000"), "from 1 to 1000"),
    "steps word": (("generate", "a dog", *MINE, "--steps", "many"), "--steps"),
    "guidance nan": (("generate", "a dog", *MINE, "--guidance", "nan"), "--guidance is nan"),
    "unknown sampler": (("generate", "a dog", *MINE, "--sampler", "dpmsolver"), "did you mean 'dpmsolver++'"),
    "seed -1": (("generate", "a dog", *MINE, "--seed", "-1"), "--seed is -1"),
    "seed 2^70": (("generate", "a dog", *MINE, "--seed", str(2**70)), "--seed is 1180591620717411303424"),
    "seed runs over": (("generate", "a dog", *MINE, "--seed", str(2**63 - 1), "-n", "2"), "seeds after it"),
    "num 0": (("generate", "a dog", *MINE, "-n", "0"), "--num is 0"),
    "num a billion": (("generate", "a dog", *MINE, "-n", "1000000000"), "from 1 to 10000"),
    "unknown device": (("generate", "a dog", *MINE, "--device", "gpu"), "unknown --device 'gpu'"),
    "unknown dtype": (("generate", "a dog", *MINE, "--dtype", "float8"), "unknown dtype 'float8'"),
    "existing file": (("generate", "a dog", *MINE, "-o", "there.wav"), "there.wav exists"),
    "existing picture": (("generate", "a dog", *MINE, "-o", "there.flac", "--plot"), "there.png exists"),
    "unwritable format": (("generate", "a dog", *MINE, "-o", "dog.mp3"), "must end in .wav, .flac, .ogg"),
    "pictures with a duration": (("generate", "a dog", "-m", "painter", "-d", "3"), "--duration is not for pictures"),
    "pictures with a plot": (("generate", "a dog", "-m", "painter", "--plot"), "--plot is not for pictures"),
    "pictures as a sound file": (("generate", "a dog", "-m", "painter", "-o", "dog.wav"), "must end in .png"),
    "an existing single picture": (("generate", "a dog", "-m", "painter", "-o", "there.png"), "there.png exists"),
    "sounds with a size": (("generate", "a dog", *MINE, "--size", "64"), "--size is not for sounds"),
    "sounds as a picture file": (("generate", "a dog", *MINE, "-o", "dog.png"), "must end in .wav, .flac, .ogg"),
    "size word": (("generate", "a dog", "-m", "painter", "--size", "large"), "WIDTHxHEIGHT such as 96x64"),
    "size 0": (("generate", "a dog", "-m", "painter", "--size", "0"), "from 1 to 2048 pixels"),
    "tiny emoji": (("data", "emoji", "emoji", "--size", "2"), "--size is 2"),
    "emoji over a full folder": (("data", "emoji", "broken"), "broken is not empty"),
    "info of a header bomb": (("info", "bomb.png"), "too large"),
    "file as folder": (("generate", "a dog", *MINE, "-o", "there.wav/dog.wav"), "there.wav is not a folder"),
    "unwritable folder": (("generate", "a dog", *MINE, "-o", "/proc/1/dog.wav"), "cannot write into /proc/1"),
    "missing prompt file": (("generate", *MINE, "--prompts", "no.txt"), "cannot read the prompts of no.txt"),
    "empty prompt file": (("generate", *MINE, "--prompts", "none.txt"), "none.txt holds no prompt"),
    "prompt file in Latin 1": (("generate", *MINE, "--prompts", "latin.txt"), "not UTF-8"),
    "unknown option": (("generate", "a dog", "--step", "3", "--speed", "2"), "No such option"),
    "unknown verb": (("generat", "a dog"), "No such command"),
    "missing verb": (("data",), "Missing command"),
    "missing config": (("train", "no.yaml"), "no configuration file no.yaml"),
    "unknown config key": (("train", "unknown.yaml"), "did you mean 'max_steps'"),
    "bad override": (("train", "unknown.yaml", "seed"), "'seed' is not of the form"),
    "config that is no text": (("train", "binary.yaml"), "binary.yaml"),
    "scan of nothing": (("data", "scan", "nowhere"), "nowhere"),
    "no clips": (("data", "soundbank", "bank", "--clips", "0"), "clips"),
    "endless clips": (("data", "soundbank", "bank", "--seconds", "1e9"), "seconds"),
    "evaluation of nothing": (("evaluate", "starter-audoi", "--data", "empty"), "did you mean 'starter-audio'?"),
    "evaluation without data": (("evaluate", "starter-audio", "--data", "nowhere"), "no folder nowhere"),
    "unknown metric": (
        ("evaluate", "starter-audio", "--data", "empty", "--metrics", "kid,fad"),
        "unknown metric 'fad'",
    ),
    "evaluation of one": (("evaluate", "starter-audio", "--data", "empty", "--count", "1"), "--count is 1"),
    "against nothing": (("evaluate", "empty", "--data", "empty", "--against", "a.json"), "no report a.json"),
    "steps of files": (("evaluate", "empty", "--data", "empty", "--steps", "3"), "--steps is for a model"),
    "info of nothing": (("info", "starter"), "there is no 'starter'"),
    "info of a folder": (("info", "empty"), "holds no model"),
    "info of a foreign sound": (("info", "there.wav"), "carries no recipe"),
    "info of broken weights": (("info", "broken"), "not a whole safetensors file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_exit_code_2(run: Run, place: Path, case: str) -> None:
    arguments, part = BAD[case]
    before = sorted(place.rglob("*"))
    done = run(*arguments)
    assert done.returncode == 2, (done.returncode, done.stderr)  # 102 would mean: torch was imported first
    assert done.stderr.startswith("latentdiff: ") and part in done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""
    assert sorted(place.rglob("*")) == before, "something was written"


def test_scan_reports_and_counts_faults(run: Run, place: Path) -> None:
    folder = place / "sounds"
    folder.mkdir()
    soundfile.write(folder / "a.wav", np.full(1600, 0.1), 16000)
    (folder / "metadata.csv").write_text("file_name,text\na.wav,a tone\n")
    assert run("data", "scan", "sounds").returncode == 0
    (folder / "metadata.csv").write_text("file_name,text\na.wav,a tone\nb.wav,not there\n")
    done = run("data", "scan", "sounds")
    assert done.returncode == 1 and "b.wav" in done.stdout


def test_info_shows_a_recipe_as_plain_text(run: Run, place: Path) -> None:
    from latentdiff.media.audio import write_audio

    recipe = {"prompt": "a \x1b[31mdog", "seed": 7}
    write_audio(place / "dog.wav", np.full(1600, 0.1, np.float32), 16000, recipe)
    done = run("info", "dog.wav")
    assert done.returncode == 0 and "a \\x1b[31mdog" in done.stdout and "\x1b" not in done.stdout


def test_info_counts_parameters_from_the_headers(run: Run, place: Path) -> None:
    tensors = {"a": {"dtype": "F16", "shape": [3, 4], "data_offsets": [0, 24]}}
    header = json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode()
    folder = place / "model"
    (folder / "vae").mkdir()
    (folder / "vae/config.json").write_text('{"mel": {"sampling_rate": 16000, "n_mels": 64}}')
    data = len(header).to_bytes(8, "little") + header + bytes(24)
    (folder / "vae/diffusion_pytorch_model.safetensors").write_bytes(data)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    index = {
        "_class_name": "TextToAudioPipeline",
        "vae": ["diffusers", "AutoencoderKL"],
        "clap": [None, None],
        "default_steps": 20,
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    done = run("info", "model")
    assert done.returncode == 0, done.stderr
    for words in (
        ["vae", "AutoencoderKL", "0.000", "M", "parameters", "0.00", "MB", "F16"],
        ["default_steps", "20"],
        ["licence", "mit"],
        ["sampling", "rate", "16000", "Hz"],
    ):
        assert words in [line.split() for line in done.stdout.splitlines()], done.stdout


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_is_130(place: Path) -> None:
    program = (
        "import sys, latentdiff.cli as cli, latentdiff.commands.info as info\n"
        "def interrupted(subject): raise KeyboardInterrupt\n"
        "info.describe = interrupted\n"
        "sys.exit(cli.main(['info', 'x']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130 and "Traceback" not in done.stderr
