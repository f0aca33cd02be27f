"""All metrics by name. A new one is a function of its own family's file and one line here (and in `names`)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from latentdiff.evaluation.alignment import clap
from latentdiff.evaluation.bootstrap import Bootstrap
from latentdiff.evaluation.distributions import frechet, kid
from latentdiff.evaluation.evidence import Case, Evidence, Figures, NotComputableError
from latentdiff.evaluation.neighbours import nearest_distances, prdc
from latentdiff.evaluation.nll import nll
from latentdiff.evaluation.posteriors import inception, judge, kl
from latentdiff.evaluation.round_trips import round_trip
from latentdiff.evaluation.sets import MediaSet


@dataclass(frozen=True)
class Metric:
    """A figure from what an extractor found.

    Args:
        title: what it is called in reports.
        measure: the function.
        better: which way; "floor" where neither way but the floor's value is the aim.
        pairs: it compares each media with the real one that it answers.
        logits: it takes an extractor with classes.
        text: it takes an extractor that embeds captions too.
    """

    title: str
    measure: Callable[[Case, Bootstrap], Figures]
    better: str
    pairs: bool = False
    logits: bool = False
    text: bool = False

    def fits(self, evidence: Evidence) -> bool:
        """Whether an extractor gives what it takes."""
        return (bool(evidence.logits) or not self.logits) and (evidence.text is not None or not self.text)

    def __call__(self, case: Case, bootstrap: Bootstrap) -> Figures:
        """The figures of a case.

        Raises:
            NotComputableError: if the sets do not allow it.
        """
        if self.pairs and case.paired is None:
            raise NotComputableError("no media pairs with a real one")
        if self.text and case.subject.text is None:
            raise NotComputableError("the media carry no prompts and pair with no captioned ones")
        return self.measure(case, bootstrap)


METRICS: dict[str, Metric] = {
    "frechet": Metric("FD", frechet, "lower"),
    "kid": Metric("KID", kid, "lower"),
    "kl": Metric("KL", kl, "lower", pairs=True, logits=True),
    "inception": Metric("IS", inception, "floor", logits=True),
    "clap": Metric("CLAP score", clap, "higher", text=True),
    "prdc": Metric("", prdc, "higher"),
    "nearest": Metric("nearest", nearest_distances, "floor"),
    "judge": Metric("judge", judge, "higher", logits=True),
}
"""Of features and logits."""

MODEL_METRICS: dict[str, Callable[[Any, MediaSet, Bootstrap], Figures]] = {"round_trip": round_trip, "nll": nll}
"""Of a pipeline and held-out real media, without an extractor."""
