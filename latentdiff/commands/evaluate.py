"""The verb ``evaluate``: check everything, then load, then measure, then write one JSON and one HTML page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentdiff.commands import request as generation
from latentdiff.commands.generate import load_pipeline, recipe_of
from latentdiff.commands.outputs import require_writable
from latentdiff.errors import InputError
from latentdiff.names import BUNDLED, METRIC_NAMES, bundled_folder

if TYPE_CHECKING:
    from accelerate import PartialState

    from latentdiff.evaluation.generated import Making
    from latentdiff.evaluation.sets import MediaSet

MAX_REPLICATES = 10_000


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for, in the words of the command line; None leaves a choice to the model or the data."""

    subject: str
    data: Path
    reference: Path | None
    metrics: list[str] | None
    extractors: list[str]
    count: int | None
    seed: int
    replicates: int
    duration: float | None
    steps: int | None
    guidance: float | None
    sampler: str | None
    device: str | None
    output: Path
    cache: Path | None
    against: Path | None
    shown: int
    keep_faulty: bool
    overwrite: bool


def evaluate(request: Request) -> None:
    """Write OUTPUT/report.json and OUTPUT/report.html and print the figures.

    Raises:
        InputError: for anything that cannot be done, before any weights load if it can be known then; what was
            computed until then stays in OUTPUT.
    """
    generating = check(request)
    from latentdiff.doctor import check_torch_pair

    check_torch_pair()
    from accelerate import PartialState

    from latentdiff.evaluation.report import read_report

    against = (read_report(request.against), request.against.parent) if request.against else None
    state = PartialState(cpu=request.device == "cpu")
    report = _measure(request, generating, state)
    if not state.is_main_process:
        return
    from latentdiff.evaluation.report import Page, write_json

    page, values = request.output / "report.html", request.output / "report.json"
    Page(report, request.output, against).write(page)
    write_json(report, values)
    print(render(report), end="")
    print(f"{values}\n{page}", flush=True)


def check(request: Request) -> generation.Request | None:
    """Refuse what can be refused without the model.

    Returns:
        For a model how it generates; None for a folder of media.

    Raises:
        InputError: naming the argument, its value and what it may be.
    """
    for name in request.metrics or []:
        if name not in METRIC_NAMES:
            near = get_close_matches(name, METRIC_NAMES, n=1, cutoff=0.0)[0]
            raise InputError(f"unknown metric '{name}'; did you mean '{near}'? Choose of {', '.join(METRIC_NAMES)}.")
    if request.count is not None and request.count < 2:
        raise InputError(f"--count is {request.count}; one sample is no distribution, give at least 2.")
    if not 20 <= request.replicates <= MAX_REPLICATES:
        raise InputError(f"--bootstrap is {request.replicates}; it must be from 20 to {MAX_REPLICATES}.")
    if request.shown < 0:
        raise InputError(f"--show is {request.shown}; it must be 0 or more.")
    for folder in filter(None, (request.data, request.reference)):
        if not folder.is_dir():
            raise InputError(f"there is no folder {folder}; give one of captioned media.")
    if request.against is not None and not request.against.is_file():
        raise InputError(f"there is no report {request.against}; --against takes another run's report.json.")
    if (request.output / "report.json").exists() and not request.overwrite:
        raise InputError(f"{request.output / 'report.json'} exists; choose another --output or pass --overwrite.")
    require_writable(request.output)
    options = generation.Request(
        prompts=["a check"],
        model=request.subject,
        output=None,
        duration=request.duration,
        size=None,
        num=1,
        steps=request.steps,
        guidance=request.guidance,
        negative=None,
        seed=request.seed,
        sampler=request.sampler,
        device=request.device,
        dtype="float32",
        overwrite=False,
        plot=False,
    )
    generation.check(options)
    folder = Path(request.subject)
    if request.subject not in BUNDLED and folder.is_dir() and not (folder / "model_index.json").is_file():
        for name in ("steps", "guidance", "sampler"):
            if getattr(request, name) is not None:
                raise InputError(f"--{name} is for a model, and {folder} is a folder of media (no model_index.json).")
        return None
    medium = generation.medium_of(request.subject)
    if medium == "image" and request.duration is not None:
        raise InputError(f"--duration is not for pictures, and {request.subject} makes pictures.")
    return options


def _measure(request: Request, generating: generation.Request | None, state: PartialState) -> dict[str, Any]:
    """The report, in full on the main process."""
    from latentdiff.evaluation import sets
    from latentdiff.evaluation.bootstrap import Bootstrap
    from latentdiff.evaluation.extractors import load_extractor
    from latentdiff.evaluation.report import samples_of
    from latentdiff.evaluation.run import Evaluation, Sets

    real, reference = sets.real_sets(request.data, request.reference, request.count)
    if generating is not None and (medium := generation.medium_of(request.subject)) != real.kind:
        raise InputError(f"{request.subject} makes {medium} and {request.data} holds {real.kind}; name other data.")
    names: list[str | None] = [*request.extractors]
    extractors = [load_extractor(name, real.kind, state.device) for name in names or [None]]
    facts: dict[str, Any] = {}

    def inspect(media: MediaSet, strict: bool) -> MediaSet:
        if state.is_main_process:
            facts[media.name] = sets.inspect(media, strict and not request.keep_faulty)
        return media

    subject = _ready(request, real, reference) if generating is None else _model(request, generating, real, state)
    real, reference = replace(real, **subject.form), replace(reference, **subject.form)
    inspect(real, strict=True)
    inspect(reference, strict=True)

    def made() -> tuple[MediaSet, list[int] | None]:
        media, pairs = subject.made(real)
        return inspect(media, strict=generating is None), pairs  # silence of a model is a finding

    bootstrap, cache = Bootstrap(request.replicates, seed=request.seed), request.cache or request.output / "features"
    run = Evaluation(Sets(real, reference, made), extractors, request.metrics, bootstrap, cache, state)
    found = run.run(subject.pipe)
    if not state.is_main_process:
        return {}
    lists = {one.name: {"test_list": one.test_list(), **facts[one.name]} for one in (real, reference)}
    other = request.reference or f"the other half of {request.data}"
    return {
        **found.report,
        "subject": {"name": request.subject, **subject.facts},
        "made": facts[found.made.name],
        "data": {"kind": real.kind, "folder": str(request.data), "caption_rule": sets.CAPTION_RULE, **lists[real.name]},
        "reference": {"folder": str(other), **lists[reference.name]},
        "samples": samples_of(found, real, reference, request.shown, request.output),
        "times": run.times,
    }


@dataclass(frozen=True)
class _Subject:
    """What is judged: its media, the form that real ones are brought to (fields of a `MediaSet`), and its facts."""

    made: Callable[[MediaSet], tuple[MediaSet, list[int] | None]]
    form: dict[str, Any]
    facts: dict[str, Any]
    pipe: Any | None = None


def _ready(request: Request, real: MediaSet, reference: MediaSet) -> _Subject:
    """Media that are there already."""
    from latentdiff.evaluation import sets

    media, pairs = sets.made_set(Path(request.subject), real.kind, real, reference)
    form: dict[str, Any] = {"seconds": request.duration}
    if real.kind == "image":
        form = {"framing": sets.own_framing(media.rows[0].path)}
    return _Subject(lambda _: (replace(media, **form), pairs), form, {"seconds": request.duration})


def _model(request: Request, generating: generation.Request, real: MediaSet, state: PartialState) -> _Subject:
    """A model, which will be asked for one medium for each real one."""
    from latentdiff.evaluation.generated import generate as make

    pipe = load_pipeline(replace(generating, device=str(state.device)))
    pipe.set_progress_bar_config(disable=True)
    form = _as_generated(pipe, real.kind, request.duration)
    making = _making(generating, pipe, form.get("seconds"))

    def made(asked: MediaSet) -> tuple[MediaSet, list[int] | None]:
        media = make(pipe, asked, making, request.output / "generated", state)
        return media, list(range(len(media)))

    return _Subject(made, form, asdict(making), pipe)


def _as_generated(pipe: Any, kind: str, duration: float | None) -> dict[str, Any]:
    """The length or the framing at which real media are like those that a pipeline makes, as fields of a `MediaSet`."""
    if kind == "audio":
        return {"seconds": duration if duration is not None else pipe.config.default_seconds}
    from latentdiff.config import Framing

    carried = getattr(pipe.vae.config, "image", None) if pipe.vae is not None else None
    framing = Framing.model_validate(carried or {})
    return {"framing": framing.model_copy(update={"size": (pipe.config.default_height, pipe.config.default_width)})}


def _making(options: generation.Request, pipe: Any, seconds: float | None) -> Making:
    from latentdiff.evaluation.generated import Making, pipeline_hash

    recipe = recipe_of(options, pipe)
    folder = bundled_folder(options.model) if options.model in BUNDLED else Path(pipe.config._name_or_path)
    assert options.seed is not None
    return Making(
        seed=options.seed,
        steps=recipe["steps"],
        guidance=recipe["guidance"],
        seconds=seconds,
        sampler=recipe["sampler"],
        model=options.model,
        weights=pipeline_hash(folder),
    )


def render(report: dict[str, Any]) -> str:
    """The figures as plain text, and what makes them what they are."""
    from latentdiff.evaluation.report import interval, number

    lines = [f"{'figure':28s}{'value':>10s}  {'interval':24s}{'floor':>10s}  {'interval':24s}{'count':>6s}  extractor"]
    for figure in report["figures"]:
        floor = figure["floor"]
        line = f"{figure['name']:28s}{number(figure['value']):>10s}  {interval(figure):24s}"
        line += f"{number(floor['value']):>10s}  {interval(floor):24s}" if floor else f"{'-':>10s}  {'':24s}"
        lines.append(f"{line}{figure['count']:6d}  {figure['extractor'] or '-'}")
    lines += [f"left out: {one['metric']} {one['extractor']}: {one['reason']}" for one in report["left_out"]]
    extractors = {one["extractor"]: one for one in report["figures"] if one["extractor"]}
    for name, one in extractors.items():
        rate = f", {one['sampling_rate']} Hz by {one['resampler']}" if one["sampling_rate"] else ""
        lines.append(f"extractor {name}: weights {one['extractor_hash'][:16]}{rate}")
    data, bootstrap = report["data"], report["bootstrap"]
    lines.append(
        f"{data['files']} real media of {data['folder']}, test list {data['test_list'][:16]}, {data['caption_rule']}; "
        f"reference: {report['reference']['files']} of {report['reference']['folder']}"
    )
    lines.append(
        f"seed {bootstrap['seed']}; intervals hold {100 * bootstrap['level']:g} %, from {bootstrap['replicates']} "
        "bootstrap replicates"
    )
    return "\n".join(lines) + "\n"
