"""Whether this machine can run latentdiff: versions, the torch/torchaudio pair, fonts, devices, disk."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.specifiers import SpecifierSet

from latentdiff.errors import InputError

PAIR = {"torch": ">=2.11,<2.15", "torchaudio": ">=2.11,<2.12"}
FLOORS = {
    "diffusers": ">=0.42",
    "transformers": ">=5",
    "accelerate": ">=1.15",
    "librosa": ">=0.11",
    "soundfile": ">=0.14",
    "pillow": ">=11",
    "safetensors": "",
    "tensorboard": "",
}
"""As in pyproject.toml; a test keeps them equal."""
MIN_FREE_BYTES = 5e9

_PROBE = """
import json, torch
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
gpus += ["Apple GPU (mps)"] * torch.mps.device_count()
print(json.dumps({"gpus": gpus, "threads": torch.get_num_threads()}))
import torchaudio
"""


@dataclass(frozen=True)
class Finding:
    """One line of the report; only what is broken in the core makes `doctor` fail."""

    name: str
    state: Literal["ok", "missing", "broken"]
    detail: str
    fix: str = ""
    core: bool = True

    def __str__(self) -> str:
        fix = f"\n{'':9s}{'':14s}fix: {self.fix}" if self.fix else ""
        return f"{self.state:9s}{self.name:14s}{self.detail}{fix}"


def check_torch_pair() -> None:
    """Make sure that torch and torchaudio fit each other and load.

    A torchaudio that does not load breaks the import of transformers and diffusers too, with a message that
    names neither the cause nor the cure, so every entry calls this before it imports them.

    Raises:
        InputError: naming both versions and the command that mends them.
    """
    if problem := _version_problem():
        raise InputError(_pair_sentence(problem))
    try:
        import torchaudio  # noqa: F401
    except (
        ImportError,
        OSError,
        RuntimeError,
    ) as error:  # RuntimeError: the two were built for different CUDAs
        raise InputError(_pair_sentence(f"torchaudio does not load ({_last_line(str(error))})")) from error


def examine() -> list[Finding]:
    """Look at everything, importing torch only in a process of its own."""
    findings = [_python(), *(_package(name, wanted) for name, wanted in (PAIR | FLOORS).items())]
    findings += _pair_and_devices()
    findings += [_audio_files(), _starter(), _corpus(), _emoji(), _space()]
    return findings


def report(show: Callable[[str], None] = print) -> int:
    """Show what `examine` found; returns the exit code, 1 if something of the core is not ok."""
    findings = examine()
    for finding in findings:
        show(str(finding))
    bad = [finding.name for finding in findings if finding.core and finding.state != "ok"]
    show("\nAll of the core works." if not bad else f"\nNot working: {', '.join(bad)}.")
    return 1 if bad else 0


def pair_fix() -> str:
    """The command that installs a torch and a torchaudio that fit."""
    return "pip install " + " ".join(f'"{name}{wanted}"' for name, wanted in PAIR.items())


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _version_problem() -> str:
    for name, wanted in PAIR.items():
        version = _version(name)
        if version is None:
            return f"{name} is not installed"
        if not SpecifierSet(wanted).contains(version, prereleases=True):
            return f"{name} must be {wanted}"
    return ""


def _pair_sentence(problem: str) -> str:
    pair = " and ".join(f"{name} {_version(name) or 'missing'}" for name in PAIR)
    return f"{pair} do not work together: {problem}; mend it with: {pair_fix()}"


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1][:200].rstrip(".")


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    return Finding("Python", "ok" if good else "broken", version, "" if good else "use Python 3.11 or newer")


def _package(name: str, wanted: str) -> Finding:
    version = _version(name)
    fix = pair_fix() if name in PAIR else f'pip install "{name}{wanted}"'
    if version is None:
        return Finding(name, "missing", f"wanted {wanted or 'any version'}", fix)
    if not SpecifierSet(wanted).contains(version, prereleases=True):
        return Finding(name, "broken", f"{version}, wanted {wanted}", fix)
    return Finding(name, "ok", version)


def _pair_and_devices() -> list[Finding]:
    probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=False)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    findings = []
    if probe.returncode:
        reason = _last_line(probe.stderr) if probe.stderr else f"the process ended with {probe.returncode}"
        findings.append(Finding("torch pair", "broken", _pair_sentence(reason).partition("; mend")[0], pair_fix()))
    else:
        findings.append(Finding("torch pair", "ok", "torch and torchaudio load together"))
    try:
        seen = json.loads(probe.stdout)
    except ValueError:
        return [*findings, Finding("device", "broken", "torch does not load", pair_fix())]
    device = ", ".join(seen["gpus"]) or "CPU only"
    return [
        *findings,
        Finding("device", "ok", f"{device}; {cores} cores, torch uses {seen['threads']} of them"),
    ]


def _audio_files() -> Finding:
    fix = 'pip install --force-reinstall "soundfile>=0.14"'
    try:
        import soundfile
    except (ImportError, OSError) as error:
        return Finding("audio files", "broken", _last_line(str(error)), fix)
    formats = soundfile.available_formats()
    wanted = [name for name in ("WAV", "FLAC", "OGG", "MP3") if name not in formats]
    if wanted:
        return Finding("audio files", "broken", f"libsndfile lacks {', '.join(wanted)}", fix)
    return Finding("audio files", "ok", f"WAV, FLAC, OGG, MP3 ({soundfile.__libsndfile_version__})")


def _starter() -> Finding:
    from latentdiff.names import BUNDLED, bundled_folder

    found: dict[str, Path] = {}
    missing = ""
    for name in BUNDLED:
        try:
            found[name] = bundled_folder(name)
        except InputError as error:
            missing = str(error)
    if missing:  # with one of them there is still something to begin with
        return Finding("models", "missing", missing, core=not found)
    return Finding("models", "ok", f"{', '.join(found)} in {next(iter(found.values())).parent}")


def _corpus() -> Finding:
    """What `latentdiff data soundbank` needs and nothing else does."""
    from latentdiff.data.soundbank.synthesizer import Synthesizer

    try:
        Synthesizer()
    except InputError as error:
        return Finding("sound bank", "missing", str(error), core=False)
    return Finding("sound bank", "ok", "FluidSynth with both FluidR3 fonts", core=False)


def _emoji() -> Finding:
    """What `latentdiff data emoji` needs and nothing else does."""
    from latentdiff.data.emoji.catalogue import catalogue
    from latentdiff.data.emoji.draw import EmojiFont

    try:
        catalogue()
        EmojiFont()
    except InputError as error:
        return Finding("emoji", "missing", str(error), core=False)
    return Finding("emoji", "ok", "Noto Color Emoji with its names", core=False)


def _space() -> Finding:
    free = shutil.disk_usage(".").free
    good = free >= MIN_FREE_BYTES
    detail = f"{free / 1e9:.1f} GB free in the current folder"
    fix = "" if good else f"training wants {MIN_FREE_BYTES / 1e9:g} GB for checkpoints: set output= to a larger disk"
    return Finding("disk", "ok" if good else "missing", detail, fix, core=False)
