"""What is said when torch and torchaudio do not fit, in processes with a stand-in on the path."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from latentdiff import doctor

ROOT = Path(__file__).parents[1]
FIX = 'pip install "torch>=2.11,<2.15" "torchaudio>=2.11,<2.12"'
BROKEN = 'raise OSError("libc10_cuda.so: cannot open shared object file: No such file or directory")\n'
VAE = """
stage: vae
data: {path: sounds}
output: out
train: {max_steps: 1, batch_size: 1}
optimizer: {lr: 1e-3}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder to run in, with ``stand-ins`` before everything else on the path."""
    (tmp_path / "stand-ins").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model_index.json").write_text('{"_class_name": "TextToAudioPipeline"}')
    (tmp_path / "vae.yaml").write_text(VAE)
    return tmp_path


def run(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(place / "stand-ins"), str(ROOT)])
    command = [sys.executable, "-m", "latentdiff.cli", *arguments]
    return subprocess.run(
        command, cwd=place, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=120
    )


def break_torchaudio(place: Path) -> None:
    (place / "stand-ins/torchaudio").mkdir()
    (place / "stand-ins/torchaudio/__init__.py").write_text(BROKEN)


def install(place: Path, name: str, version: str) -> None:
    """The record of an installed package, without the package."""
    record = place / f"stand-ins/{name}-{version}.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.parametrize("arguments", [["generate", "a dog", "-m", "model"], ["train", "vae.yaml"]], ids=" ".join)
def test_a_broken_torchaudio_is_one_sentence(place: Path, arguments: list[str]) -> None:
    break_torchaudio(place)
    done = run(place, *arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    for part in (f"latentdiff: torch {doctor._version('torch')} and torchaudio 2.", "libc10_cuda.so", FIX):
        assert part in done.stderr
    assert not (place / "out").exists()


@pytest.mark.parametrize("arguments", [["generate", "a dog", "-m", "model"], ["train", "vae.yaml"]], ids=" ".join)
def test_a_pair_of_wrong_versions_is_one_sentence(place: Path, arguments: list[str]) -> None:
    install(place, "torch", "2.15.0")
    done = run(place, *arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "torch 2.15.0 and torchaudio 2." in done.stderr
    assert "torch must be >=2.11,<2.15" in done.stderr and FIX in done.stderr


def test_a_cpu_build_and_a_release_candidate_are_in_range(place: Path) -> None:
    install(place, "torch", "2.14.1+cpu")
    install(place, "torchaudio", "2.11.1rc1")
    program = "from latentdiff.doctor import check_torch_pair; check_torch_pair()"
    path = os.pathsep.join([str(place / "stand-ins"), str(ROOT)])
    subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": path}, check=True, timeout=120)


def test_doctor_names_what_is_broken_and_the_fix(place: Path) -> None:
    break_torchaudio(place)
    install(place, "diffusers", "0.38.0")
    done = run(place, "doctor")
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    lines = done.stdout.splitlines()
    pair = next(i for i, line in enumerate(lines) if line.startswith("broken   torch pair"))
    assert "libc10_cuda.so" in lines[pair] and lines[pair + 1].strip() == f"fix: {FIX}"
    old = next(i for i, line in enumerate(lines) if line.startswith("broken   diffusers"))
    assert "0.38.0, wanted >=0.42" in lines[old] and 'pip install "diffusers>=0.42"' in lines[old + 1]
    assert any(line.startswith("ok       device") for line in lines)
    assert lines[-1].startswith("Not working: diffusers, torch pair")


def test_doctor_is_content_with_this_machine(place: Path) -> None:
    done = run(place, "doctor")
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("All of the core works.\n")


def test_the_floors_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
    for name, wanted in (doctor.PAIR | doctor.FLOORS).items():
        assert declared[name] == Requirement(name + wanted).specifier, name
