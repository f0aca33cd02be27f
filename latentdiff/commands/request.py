"""What ``generate`` was asked for, read and checked by what can be known without any weights."""

import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from latentdiff.errors import InputError
from latentdiff.interop import folder as folders
from latentdiff.interop.hub import is_hub_id, peek
from latentdiff.names import (
    BUNDLED,
    FEW_STEP_SAMPLER_NAMES,
    LORA_FILE,
    MAX_SECONDS,
    MAX_SIDE,
    SAMPLER_NAMES,
    bundled_folder,
)

MAX_STEPS = 1000
MAX_FILES = 10_000_000
MAX_SEED = 2**63 - 1
MAX_CANDIDATES = 64
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for, in the words of the command line; None leaves a choice to the model."""

    prompts: list[str]
    model: str
    output: str | None
    duration: float | None
    size: tuple[int, int] | None
    """(width, height)."""
    num: int
    steps: int | None
    guidance: float | None
    negative: str | None
    seed: int | None
    sampler: str | None
    device: str | None
    dtype: str
    overwrite: bool
    plot: bool
    resume: bool = False
    """Keep the files that are there already; they must be those that would be made."""
    candidates: int | None = None
    """Sounds made for each file, of which CLAP chooses one."""
    ranker: str | None = None
    """A CLAP that chooses; None: the model's own."""
    lora: tuple[str, ...] = ()
    """Folders of LoRAs, all added to the model."""

    @property
    def each(self) -> int:
        """Seeds of a file."""
        return self.candidates or 1

    @property
    def replaces(self) -> bool:
        """Whether a file that is written may replace one; a resumed run writes only what is not whole."""
        return self.overwrite or self.resume


def read_prompts(file: Path) -> list[str]:
    """The prompts of a text file, one a line; blank lines are left out.

    Raises:
        InputError: if it cannot be read as text or holds no prompt.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"cannot read the prompts of {file}: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise InputError(f"cannot read the prompts of {file}: it is not UTF-8 text.") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise InputError(f"{file} holds no prompt; write one a line.")
    return prompts


def read_size(size: str) -> tuple[int, int]:
    """(width, height) of ``--size``: WIDTHxHEIGHT, or one number for a square.

    Raises:
        InputError: if it is neither, or out of range.
    """
    match = re.fullmatch(r"(\d{1,6})(?:[xX](\d{1,6}))?", size)
    if match is None:
        raise InputError(f"--size is '{size}'; it must be one number, or WIDTHxHEIGHT such as 96x64.")
    width, height = int(match[1]), int(match[2] or match[1])
    if not 0 < min(width, height) <= max(width, height) <= MAX_SIDE:
        raise InputError(f"--size is {size}; each side must be from 1 to {MAX_SIDE} pixels.")
    return width, height


def check(request: Request) -> None:
    """Refuse what can be refused without the model.

    Raises:
        InputError: naming the argument, its value and what it may be.
    """
    for prompt in request.prompts:
        if not prompt.strip():
            raise InputError("the prompt is empty; say in words what should be heard or seen.")
        if any("\ud800" <= character <= "\udfff" for character in prompt):
            raise InputError(f"the prompt {prompt!r} is not valid UTF-8 text.")
    if request.duration is not None and not 0 < request.duration <= MAX_SECONDS:
        raise InputError(f"--duration is {request.duration:g} s; it must be more than 0 and at most {MAX_SECONDS:g} s.")
    if request.steps is not None and not 1 <= request.steps <= MAX_STEPS:
        raise InputError(f"--steps is {request.steps}; it must be from 1 to {MAX_STEPS}.")
    if request.guidance is not None and not 0 <= request.guidance <= 100:
        raise InputError(f"--guidance is {request.guidance:g}; it must be from 0 to 100.")
    if request.resume and request.overwrite:
        raise InputError("--resume keeps the files that are there and --overwrite replaces them; give one of the two.")
    if request.resume and request.seed is None:
        raise InputError("--resume needs a --seed: what goes on must begin with the same one.")
    files = max(1, len(request.prompts)) * request.num
    if request.num < 1 or files > MAX_FILES:
        raise InputError(f"--num is {request.num}, {files} files in all; it must give from 1 to {MAX_FILES}.")
    if request.candidates is not None and not 2 <= request.candidates <= MAX_CANDIDATES:
        raise InputError(f"--candidates is {request.candidates}; it must be from 2 to {MAX_CANDIDATES}.")
    if request.ranker is not None and request.candidates is None:
        raise InputError("--ranker chooses among candidates; say by --candidates how many are made.")
    for source in request.lora:
        require_lora(source)
    if request.seed is not None and not 0 <= request.seed <= MAX_SEED - files * request.each + 1:
        raise InputError(f"--seed is {request.seed}; it and the seeds after it must stay from 0 to {MAX_SEED}.")
    if request.sampler is not None:
        _require_choice("sampler", request.sampler, (*SAMPLER_NAMES, *FEW_STEP_SAMPLER_NAMES))
    _require_choice("dtype", request.dtype, DTYPES)
    if request.device is not None and not re.fullmatch(r"cpu|mps|(cuda|xpu)(:\d{1,3})?", request.device):
        raise InputError(f"unknown --device '{request.device}'; use cpu, cuda, cuda:1 or mps.")


def medium_of(model: str) -> str:
    """Whether a model makes "audio" or "image", by its ``model_index.json`` alone.

    Raises:
        InputError: as `folder_of`, and if it is neither a pipeline of ours nor of a published family.
    """
    return folders.medium_of_folder(folder_of(model))


def hears_prompts(request: Request) -> bool:
    """Whether the model has what reads a prompt, by its ``model_index.json``.

    Raises:
        InputError: if there are prompts that nothing would hear, or none that could be heard.
    """
    index = folders.read_index(folder_of(request.model)) or {}
    if index.get("text_encoder") != [None, None] or index.get("clap", [None, None]) != [None, None]:
        if not request.prompts:
            raise InputError('nothing to generate: give a prompt, for example latentdiff generate "dog barking".')
        return True
    if request.prompts or request.negative is not None:
        raise InputError(f"{request.model} hears no prompt; leave it out, -n says how many are made.")
    return False


def require_lora(source: str) -> None:
    """Refuse what is no LoRA.

    Raises:
        InputError: naming it.
    """
    path = Path(source)
    if not (path / LORA_FILE).is_file() and not (path.is_file() and path.suffix == ".safetensors"):
        raise InputError(f"--lora {source} is no folder with {LORA_FILE}; training with lora writes OUTPUT/lora.")


def require_clap(request: Request) -> None:
    """Refuse to rank with a model that has no whole CLAP, by its ``model_index.json``.

    Raises:
        InputError: if no other ranker is named either.
    """
    index = folders.read_index(folder_of(request.model)) or {}
    kinds = [entry[1] for entry in index.values() if isinstance(entry, list) and len(entry) == 2]
    if request.ranker is None and not {"ClapModel", "ClapFeatureExtractor"} <= set(map(str, kinds)):
        raise InputError(
            f"--candidates are ranked by a CLAP for text and sound, and {request.model} has none; name one by --ranker."
        )


def folder_of(model: str) -> Path:
    """A folder with what names a model's parts; of a hub model no more than that is fetched.

    Raises:
        InputError: if it is neither bundled, nor a folder, nor a hub id; with the nearest bundled name.
    """
    if model in BUNDLED:
        return bundled_folder(model)
    if Path(model).is_dir():
        return Path(model)
    if not is_hub_id(model):
        near = get_close_matches(model, BUNDLED, n=1, cutoff=0.0)[0]
        raise InputError(
            f"unknown model '{model}'; did you mean '{near}'? "
            "A model is a bundled name, a pipeline folder or a hub id (owner/name)."
        )
    return peek(model)


def _require_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        near = get_close_matches(value, choices, n=1, cutoff=0.0)[0]
        raise InputError(f"unknown {what} '{value}'; did you mean '{near}'? Choose one of {', '.join(choices)}.")
