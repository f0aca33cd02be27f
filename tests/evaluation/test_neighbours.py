"""Precision, recall, density, coverage against scikit-learn's neighbours, and what memorising looks like."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from latentdiff.evaluation.bootstrap import Bootstrap
from latentdiff.evaluation.evidence import Case, Evidence, NotComputableError
from latentdiff.evaluation.neighbours import NEIGHBOURS, nearest_distances, prdc

QUICK = Bootstrap(replicates=20)


def cloud(seed: int, count: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def values(made: Tensor, real: Tensor, reference: Tensor) -> dict[str, float]:
    case = Case(Evidence(made), Evidence(real), Evidence(reference))
    return {name: one.value for name, one in {**prdc(case, QUICK), **nearest_distances(case, QUICK)}.items()}


def test_shares_by_their_definitions() -> None:
    made, real = cloud(0, 80, 0.7), cloud(1, 120)
    radii = [NearestNeighbors(n_neighbors=NEIGHBOURS).fit(s.numpy()).kneighbors()[0][:, -1] for s in (real, made)]
    distance = np.linalg.norm(real.numpy()[:, None] - made.numpy()[None], axis=2)
    inside = distance < radii[0][:, None]
    found = values(made, real, real)
    assert found["precision"] == pytest.approx(inside.any(0).mean())
    assert found["recall"] == pytest.approx((distance < radii[1][None]).any(1).mean())
    assert found["density"] == pytest.approx(inside.sum(0).mean() / NEIGHBOURS)
    assert found["coverage"] == pytest.approx((distance.min(1) < radii[0]).mean())


def test_a_model_that_replays_its_training_data_is_seen() -> None:
    training, held_out = cloud(2, 300), cloud(3, 100)
    replay, fresh = values(training[:100], held_out, training), values(cloud(4, 100), held_out, training)
    assert replay["p50"] == 0 and replay["closer"] == 1
    assert fresh["p50"] > 0.1 and fresh["closer"] < 0.2


def test_too_few_neighbours() -> None:
    few = Evidence(cloud(0, NEIGHBOURS))
    with pytest.raises(NotComputableError, match="at least 6"):
        prdc(Case(few, few, few), QUICK)
