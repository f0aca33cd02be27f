"""An evaluation from sets to figures: floors first, so that what cannot be had is known before anything is made."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from accelerate import PartialState
from tqdm import tqdm

from latentdiff import __version__
from latentdiff.errors import InputError
from latentdiff.evaluation.bootstrap import Bootstrap, Estimate
from latentdiff.evaluation.evidence import Case, Evidence, Figures, NotComputableError
from latentdiff.evaluation.extractors import Extractor
from latentdiff.evaluation.features import extract
from latentdiff.evaluation.registry import METRICS, MODEL_METRICS, Metric
from latentdiff.evaluation.sets import CAPTION_RULE, MediaSet

FORMAT = 1
"""Of the report."""


@dataclass(frozen=True)
class Sets:
    """What an evaluation compares; ``made`` is a function because it may still have to be generated."""

    real: MediaSet
    reference: MediaSet
    made: Callable[[], tuple[MediaSet, list[int] | None]]
    """The media to judge, and for each the number of the real one that it answers."""


@dataclass
class Found:
    """What an evaluation gives: the report's plain values, and the sets for those who want to show them."""

    report: dict[str, Any]
    made: MediaSet
    pairs: list[int] | None
    nearest: list[tuple[int, float]] = field(default_factory=list)
    """For each of the media the number of the nearest reference item, by the first extractor, and its distance."""


class Evaluation:
    """One evaluation.

    Args:
        sets: what is compared.
        extractors: what looks at it.
        metrics: names that were asked for; None takes what these sets and extractors allow, and says what they do not.
        bootstrap: of the intervals.
        cache: folder of the features.
        state: of the processes; the figures are the main one's.
    """

    def __init__(
        self,
        sets: Sets,
        extractors: list[Extractor],
        metrics: list[str] | None,
        bootstrap: Bootstrap,
        cache: Path,
        state: PartialState,
    ) -> None:
        self.sets, self.extractors, self.bootstrap, self.cache, self.state = sets, extractors, bootstrap, cache, state
        self.insisted = metrics is not None
        self.metrics = {name: metric for name, metric in METRICS.items() if metrics is None or name in metrics}
        wanted_of_model = [name for name in MODEL_METRICS if metrics is None or name in metrics]
        self.model_metrics = {name: MODEL_METRICS[name] for name in wanted_of_model}
        self.left_out: list[dict[str, str]] = []
        self.times: dict[str, float] = {}

    def run(self, pipe: Any | None) -> Found:
        """All figures.

        Args:
            pipe: the pipeline that is judged; None for media that are there already.

        Raises:
            InputError: for a metric that was asked for and cannot be had.
        """
        with self._timed("features of real media"):
            evidence = [
                (each, self._extract(self.sets.real, each), self._extract(self.sets.reference, each))
                for each in self.extractors
            ]
        self._require_extractors([real for _, real, _ in evidence])
        main = self.state.is_main_process
        with self._timed("floors"):
            floors = [self._floors(*each) for each in evidence] if main else []
        with self._timed("generation"):
            made, pairs = self.sets.made()
        figures: list[dict[str, Any]] = []
        nearest: list[tuple[int, float]] = []
        for number, (extractor, real, reference) in enumerate(evidence):
            with self._timed("features of generated media"):
                subject = self._extract(made, extractor)
            if main:
                with self._timed("figures"):
                    figures += self._figures(extractor, subject, pairs, real, reference, floors[number])
                nearest = nearest or _nearest(subject, reference)
        if main:
            with self._timed("round trips"):
                figures += self._of_model(pipe)
        report = {"format": FORMAT, "latentdiff": __version__, "figures": figures, "left_out": self.left_out}
        return Found({**report, "bootstrap": asdict(self.bootstrap)}, made, pairs, nearest)

    def _extract(self, media: MediaSet, extractor: Extractor) -> Evidence:
        return extract(media, extractor, self.cache, self.state)

    def _require_extractors(self, evidence: list[Evidence]) -> None:
        """Refuse, or note, a metric that no extractor serves."""
        for name, metric in list(self.metrics.items()):
            if not any(metric.fits(one) for one in evidence):
                needs = "embeds captions too, a CLAP" if metric.text else "has classes, a judge or a classifier"
                self._leave_out(name, "", f"it takes an extractor that {needs}; name one with --extractor")
                del self.metrics[name]

    def _leave_out(self, metric: str, extractor: str, reason: str) -> None:
        if self.insisted:
            raise InputError(f"--metrics {metric} cannot be had{f' by {extractor}' if extractor else ''}: {reason}.")
        self.left_out.append({"metric": metric, "extractor": extractor, "reason": reason})

    def _floors(self, extractor: Extractor, real: Evidence, reference: Evidence) -> dict[str, Figures]:
        """By metric the figures of the real media; what raises here could not be had of the generated ones either."""
        floors: dict[str, Figures] = {}
        for name, metric in self._shown("floors", real):
            case = Case(real, real, reference)
            if metric.pairs:
                twins = _twins(real, reference)
                if len(twins) < 2:
                    floors[name] = {}
                    continue
                ours, others = ([pair[side] for pair in twins] for side in (0, 1))
                case = Case(real.take(ours), real, reference, reference.take(others))
            try:
                floors[name] = metric(case, self.bootstrap)
            except NotComputableError as error:
                self._leave_out(name, extractor.name, str(error))
        return floors

    def _figures(
        self,
        extractor: Extractor,
        subject: Evidence,
        pairs: list[int] | None,
        real: Evidence,
        reference: Evidence,
        floors: dict[str, Figures],
    ) -> list[dict[str, Any]]:
        records = []
        paired = None if pairs is None else real.take(pairs)
        for name, metric in self._shown("figures", real):
            if name not in floors:
                continue
            case, floor = Case(subject, real, reference, paired), floors[name]
            try:
                if not metric.pairs and len(subject) != len(real):  # one count for a figure and its floor
                    count = min(len(subject), len(real))
                    some, ours = (_some(len(one), count, self.bootstrap.seed) for one in (subject, real))
                    case = Case(subject.take(some), real.take(ours), reference)
                    if count < len(real):
                        floor = metric(Case(case.real, case.real, reference), self.bootstrap)
                found = metric(case, self.bootstrap)
            except NotComputableError as error:
                self._leave_out(name, extractor.name, str(error))
                continue
            facts = self._made_by(extractor)
            for key, one in found.items():
                records.append(_record(name, _called(name, key, extractor), metric.better, one, floor.get(key), facts))
        return records

    def _of_model(self, pipe: Any | None) -> list[dict[str, Any]]:
        records = []
        for name, measure in self.model_metrics.items():
            if pipe is None:
                self._leave_out(name, "", "it takes a model, and these are files")
                continue
            real = self.sets.real
            rate = pipe.mel.config.sampling_rate if real.kind == "audio" else None
            try:
                found = measure(pipe, real, self.bootstrap)
            except NotComputableError as error:
                self._leave_out(name, "", str(error))
                continue
            facts = self._made_by(None) | {"sampling_rate": rate, "resampler": _resampler(rate)}
            for key, one in found.items():
                better = "higher" if key == "PSNR" else "lower"
                records.append(_record(name, f"{name.replace('_', ' ')} {key}", better, one, None, facts))
        return records

    def _made_by(self, extractor: Extractor | None) -> dict[str, Any]:
        """What makes a figure what it is, beside its count."""
        rate = extractor.sampling_rate if extractor else None
        return {
            "extractor": extractor.name if extractor else None,
            "extractor_hash": extractor.identity if extractor else None,
            "sampling_rate": rate,
            "resampler": _resampler(rate),
            "test_list": self.sets.real.test_list(),
            "reference_list": self.sets.reference.test_list(),
            "caption_rule": CAPTION_RULE,
            "seed": self.bootstrap.seed,
        }

    def _shown(self, what: str, evidence: Evidence) -> Iterator[tuple[str, Metric]]:
        fitting = [(name, metric) for name, metric in self.metrics.items() if metric.fits(evidence)]
        yield from tqdm(fitting, what, unit="metric", disable=None)

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.times[what] = round(self.times.get(what, 0.0) + time.perf_counter() - start, 2)


def _resampler(rate: int | None) -> str | None:
    return None if rate is None else f"soxr {soxr.__version__} HQ, mean of the channels"


def _some(size: int, count: int, seed: int) -> np.ndarray:
    """``count`` of ``size`` numbers, drawn without repetition and in order."""
    return np.sort(np.random.default_rng(seed).permutation(size)[:count])


def _twins(real: Evidence, reference: Evidence) -> list[tuple[int, int]]:
    """Pairs of a real item and another real one, of the same names, each of which is taken once."""
    by_truth: dict[Any, list[int]] = {}
    for number, truth in enumerate(reference.truths):
        if truth:
            by_truth.setdefault(frozenset(truth.items()), []).append(number)
    pairs = []
    for number, truth in enumerate(real.truths):
        if truth and (others := by_truth.get(frozenset(truth.items()))):
            pairs.append((number, others.pop()))
    return pairs


def _nearest(subject: Evidence, reference: Evidence) -> list[tuple[int, float]]:
    from latentdiff.evaluation.neighbours import nearest

    distances, numbers = nearest(subject.features, reference.features)
    return list(zip(numbers.tolist(), distances.tolist(), strict=True))


def _called(metric: str, key: str, extractor: Extractor) -> str:
    """A figure's name; that of the Frechet distance says what field it comes from."""
    title = METRICS[metric].title
    if metric == "frechet" and extractor.kind == "audio":
        title = "FAD"
    elif metric == "frechet" and "inception" in extractor.name.lower():
        title = "FID"
    return f"{title} {key}".strip()


def _record(
    metric: str, name: str, better: str, one: Estimate, floor: Estimate | None, facts: dict[str, Any]
) -> dict[str, Any]:
    numbers = {**_numbers(one), "floor": None if floor is None else _numbers(floor)}
    return {"metric": metric, "name": name, "better": better, **numbers, **facts}


def _numbers(one: Estimate) -> dict[str, Any]:
    return {"value": one.value, "interval": [one.low, one.high], "count": one.count}


def without_times(report: dict[str, Any]) -> dict[str, Any]:
    """All of a report that must come out the same when the evaluation is run again."""
    return {key: value for key, value in report.items() if key != "times"}
