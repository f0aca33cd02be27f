"""KL, inception-type score and the judge's accuracy."""

import pytest
import torch
from torch import Tensor
from torchmetrics import KLDivergence
from torchmetrics.image.inception import InceptionScore

from latentdiff.evaluation.bootstrap import Bootstrap
from latentdiff.evaluation.evidence import Case, Evidence, NotComputableError
from latentdiff.evaluation.posteriors import inception, inception_score, judge, kl

QUICK = Bootstrap(replicates=20)


class Same(torch.nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return logits


def logits(seed: int, count: int = 200) -> Tensor:
    return 3 * torch.randn(count, 10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def evidence(values: Tensor, **more: object) -> Evidence:
    return Evidence(values, {"sources": values}, {"sources": list("abcdefghij")}, **more)  # type: ignore[arg-type]


def test_kl_is_torchmetrics() -> None:
    real, made = logits(0), logits(1)
    theirs = KLDivergence()(real.softmax(1), made.softmax(1))
    found = kl(Case(evidence(made), evidence(real), evidence(real), evidence(real)), QUICK)[""]
    assert found.value == pytest.approx(float(theirs), rel=1e-6) and found.count == 200


def test_kl_of_sure_classifiers_is_finite() -> None:
    sure = torch.eye(10, dtype=torch.float64) * 1e4
    case = Case(evidence(sure.flip(0)), evidence(sure), evidence(sure), evidence(sure))
    assert kl(case, QUICK)[""].value == pytest.approx(1e4)


def test_inception_score_is_torchmetrics() -> None:
    values = logits(2)
    theirs = InceptionScore(feature=Same(), splits=1).set_dtype(torch.float64)
    theirs.update(values)
    case = Case(evidence(values), evidence(values), evidence(values))
    assert inception(case, QUICK)[""].value == pytest.approx(float(theirs.compute()[0]), rel=1e-6)


def test_inception_score_at_its_ends() -> None:
    """As many as there are classes where each is sure and all are used, 1 where nothing is told apart."""
    assert inception_score(torch.eye(10, dtype=torch.float64) * 1e3) == pytest.approx(10)
    assert inception_score(torch.zeros(5, 10, dtype=torch.float64)) == pytest.approx(1)


def test_judge_counts_one_name_and_several_apart() -> None:
    values = torch.zeros(5, 10, dtype=torch.float64)
    values[0, 0] = values[1, 1] = 5  # a, b: told first
    values[2, 3:9] = torch.arange(9.0, 3.0, -1).double()  # d e f g h i: h is the fifth, i the sixth
    values[3, [4, 7]], values[4, 4] = 5, 5  # e and h both; e alone, then a
    truths = ("a", "c", "h", "eh", "eh")
    told = evidence(values, truths=tuple({"sources": frozenset(names)} for names in truths))
    found = judge(Case(told, told, told), QUICK)
    assert {name: (one.value, one.count) for name, one in found.items()} == {
        "accuracy": (pytest.approx(1 / 3), 3),
        "top5": (1.0, 3),  # of equal logits the first: c is among b a c d e
        "all_of_several": (0.5, 2),
    }


def test_judge_leaves_out_what_it_has_no_word_for() -> None:
    told = evidence(logits(0, 2), truths=({"sources": frozenset({"zither"})}, {}))
    with pytest.raises(NotComputableError, match="no name in the data's metadata"):
        judge(Case(told, told, told), QUICK)
