"""The verb ``generate``: check everything, then load the model, then write one file a sound or picture."""

import os
import re
import secrets
import sys
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentdiff import __version__
from latentdiff.commands.medium import MEDIA, Medium
from latentdiff.commands.outputs import is_made, plan_outputs, require_same_recipe
from latentdiff.errors import InputError
from latentdiff.interop import folder as folders
from latentdiff.interop.hub import is_hub_id, peek
from latentdiff.names import (
    BUNDLED,
    FEW_STEP_SAMPLER_NAMES,
    LORA_FILE,
    MAX_SECONDS,
    MAX_SIDE,
    PIPELINES,
    SAMPLER_NAMES,
    bundled_folder,
)

if TYPE_CHECKING:
    import torch

MAX_STEPS = 1000
MAX_FILES = 10_000_000
MAX_SEED = 2**63 - 1
MAX_CANDIDATES = 64
KINDS = ("cuda", "mps", "xpu", "cpu")
"""Devices, best first; each is a module of torch with ``device_count``."""
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


def generate(request: Request) -> None:
    """Write the files and print each one's name, length or size, and seed.

    Raises:
        InputError: for anything that cannot be done, before any weights load if it can be known then.
    """
    check(request)
    if share()[1] > 1 and not request.resume:
        raise InputError("several processes share a request only with --resume, so that each file has one name.")
    prompted = hears_prompts(request)
    if not prompted:
        request = replace(request, prompts=["sample"])  # what the files are named after
    medium = MEDIA[medium_of(request.model)](request)
    if request.candidates is not None:
        require_clap(request)
    plot = request.plot
    files = plan_outputs(request.output, request.prompts, request.num, request.replaces, plot, medium.suffixes)
    medium.plan(files)
    seed = secrets.randbelow(2**31) if request.seed is None else request.seed
    pipe = load_pipeline(request)
    prompts = [prompt for prompt in request.prompts for _ in range(request.num)] if prompted else None
    batch = max(1, medium.batch(pipe) // request.each)
    rank, processes = share()
    for first in range(rank * batch, len(files), processes * batch):  # whole batches: what one process would compute
        part = slice(first, first + batch)
        some = prompts and prompts[part]
        if left_over(request, medium, pipe, some, files[part], seed + first * request.each):
            write_batch(request, medium, pipe, some, files[part], seed + first * request.each)
    said = request.prompts if prompted else None
    shared = {**recipe_of(request, pipe), "prompt": said, "seed": seed, "num": request.num}
    if sheet := medium.finish(shared):
        print(f"{sheet}  all of them", flush=True)


def share() -> tuple[int, int]:
    """Which of how many processes this is, as torchrun and accelerate launch say."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def left_over(
    request: Request, medium: Medium, pipe: Any, prompts: list[str] | None, files: list[Path], seed: int
) -> list[Path]:
    """The files of a batch that are still to be made: all of them, unless the run is resumed.

    Raises:
        InputError: one that is there was made from something else.
    """
    made = [is_made(file, request.plot) for file in files] if request.resume else [False] * len(files)
    shared = recipe_of(request, pipe)
    for number, file in enumerate(files):
        if made[number]:
            found = medium.read(file)
            seeds = range(seed + number * request.each, seed + (number + 1) * request.each)
            kept = found["seed"] if found and found.get("seed") in seeds else seeds[0]
            of_this = {"prompt": prompts[number] if prompts else None, "seed": kept}
            require_same_recipe(file, found, {**shared, **of_this})
    return [file for file, there in zip(files, made, strict=True) if not there]


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


def load_pipeline(request: Request) -> Any:
    """The model on its device, with the sampler that was asked for."""
    from latentdiff.doctor import check_torch_pair

    check_torch_pair()
    device, dtype = _device_and_dtype(request)
    import diffusers.utils.logging
    import transformers.utils.logging
    from safetensors import SafetensorError

    import latentdiff

    kind: Any = getattr(latentdiff, PIPELINES[medium_of(request.model)])
    diffusers.utils.logging.disable_progress_bar()  # of loading: a second's worth, in two layers
    transformers.utils.logging.disable_progress_bar()
    try:
        pipe = kind.from_pretrained(request.model, dtype=dtype)
    except InputError:
        raise
    except (
        OSError,
        ValueError,
        SafetensorError,
    ) as error:  # not to be fetched, or not such a model, or broken
        raise InputError(f"cannot load the model '{request.model}': {_reason(error)}.") from error
    for source in request.lora:
        pipe.load_lora_weights(source)
    pipe.set_progress_bar_config(disable=not sys.stderr.isatty())
    if request.sampler is not None:
        from latentdiff.diffusion.samplers import few_step_sampler, make_scheduler

        if request.sampler in FEW_STEP_SAMPLER_NAMES and few_step_sampler(pipe.scheduler.config) != request.sampler:
            raise InputError(f"--sampler {request.sampler} is for another kind of model than {request.model}.")
        pipe.scheduler = make_scheduler(request.sampler, pipe.scheduler.config)
    return pipe.to(device)


def write_batch(
    request: Request, medium: Medium, pipe: Any, prompts: list[str] | None, files: list[Path], seed: int
) -> None:
    """Generate some media at once, each with a generator of its own, and write them; without prompts, only pictures."""
    import torch

    from latentdiff.pipelines.base import GenerationError

    seeds = range(seed, seed + len(files) * request.each)
    generators = [torch.Generator().manual_seed(number) for number in seeds]  # on the CPU: alike on any device
    unprompted = {} if prompts else {"num_images_per_prompt": len(files)}
    try:
        out = pipe(
            prompts,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            negative_prompt=request.negative,
            generator=generators,
            **medium.arguments(),
            **unprompted,
        )
    except GenerationError as error:
        raise InputError(f"nothing was written: {error}") from error
    said: list[str | None] = [*prompts] if prompts else [None] * len(files)
    kept = seeds if request.candidates is None else [seeds[place] for place in out.chosen]
    more = [medium.facts(out, place) for place in range(len(files))]
    for prompt, file, its_seed, one, own in zip(said, files, kept, medium.media(out), more, strict=True):
        if request.resume and is_made(file, request.plot):
            continue
        size, facts = medium.size(out, one)
        file.parent.mkdir(parents=True, exist_ok=True)
        facts |= own
        medium.write(file, out, one, {**recipe_of(request, pipe), "prompt": prompt, "seed": its_seed, **facts})
        print(f"{file}  {size}  seed {its_seed}", *(f" {name} {value}" for name, value in own.items()), flush=True)


def recipe_of(request: Request, pipe: Any) -> dict[str, Any]:
    """What all files of a request have in common, in the order in which it is shown."""
    return {
        "prompt": None,
        "negative_prompt": request.negative,
        "seed": None,
        "steps": request.steps if request.steps is not None else pipe.config.default_steps,
        "guidance": request.guidance if request.guidance is not None else pipe.config.default_guidance,
        **({"guidance_interval": [*part]} if (part := pipe.config.default_guidance_interval) else {}),
        "sampler": request.sampler or sampler_name(pipe.scheduler),
        "model": request.model,
        **({"lora": list(request.lora)} if request.lora else {}),
        **{name: value for name in ("candidates", "ranker") if (value := getattr(request, name))},
        "latentdiff": __version__,
    }


def sampler_name(scheduler: Any) -> str:
    """The name under which ``--sampler`` gives this scheduler; its class for a foreign one."""
    from latentdiff.diffusion.samplers import name_of

    return name_of(scheduler)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")


def _require_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        near = get_close_matches(value, choices, n=1, cutoff=0.0)[0]
        raise InputError(f"unknown {what} '{value}'; did you mean '{near}'? Choose one of {', '.join(choices)}.")


def _device_and_dtype(request: Request) -> "tuple[str, torch.dtype]":
    """The device that was asked for or the best one, and the dtype, if they go together here."""
    import torch

    device = request.device or next(kind for kind in KINDS if getattr(torch, kind).device_count())
    if request.device is None and share()[1] > 1 and (devices := getattr(torch, device).device_count()) > 1:
        device = f"{device}:{int(os.environ.get('LOCAL_RANK', '0')) % devices}"
    kind, _, index = device.partition(":")
    if int(index or 0) >= getattr(torch, kind).device_count():
        raise InputError(f"there is no device '{device}' on this machine; leave --device out to take the best one.")
    if kind == "cpu" and request.dtype == "float16":
        raise InputError("float16 is not for the CPU; use --dtype float32 or bfloat16.")
    return device, getattr(torch, request.dtype)
