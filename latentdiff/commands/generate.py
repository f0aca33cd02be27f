"""The verb ``generate``: check everything, then load the model, then write one file a sound or picture."""

import os
import secrets
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentdiff import __version__
from latentdiff.commands.medium import MEDIA, Medium
from latentdiff.commands.outputs import is_made, plan_outputs, require_same_recipe
from latentdiff.commands.request import Request, check, hears_prompts, medium_of, require_clap
from latentdiff.errors import InputError
from latentdiff.names import FEW_STEP_SAMPLER_NAMES, PIPELINES

if TYPE_CHECKING:
    import torch

KINDS = ("cuda", "mps", "xpu", "cpu")
"""Devices, best first; each is a module of torch with ``device_count``."""


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
    except (OSError, ValueError, SafetensorError) as error:  # not to be fetched, or no such model, or broken
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
        **({"guidance_rescale": share} if (share := pipe.config.default_guidance_rescale) else {}),
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
