"""Figures from nearest neighbours in feature space: precision, recall, density, coverage, and memorisation."""

import numpy as np
import torch
from torch import Tensor

from latentdiff.evaluation.bootstrap import Bootstrap
from latentdiff.evaluation.evidence import Case, Figures, NotComputableError

NEIGHBOURS = 5
"""k; as Naeem et al. 2020 choose it, section 4.2."""
PERCENTILES = (1, 5, 50)


def prdc(case: Case, bootstrap: Bootstrap) -> Figures:
    """Precision and recall (Kynkaanniemi et al. 2019, eq. 1-2), density and coverage (Naeem et al. 2020, eq. 2-3).

    The neighbourhoods stay as they are; the intervals are of the shares alone.

    Raises:
        NotComputableError: if there are not more than k media.
    """
    made, real = case.subject.features, case.reference.features
    if min(len(made), len(real)) <= NEIGHBOURS:
        raise NotComputableError(f"{NEIGHBOURS} neighbours need at least {NEIGHBOURS + 1} media in each set")
    distance = torch.cdist(real, made, compute_mode="donot_use_mm_for_euclid_dist")  # (real, made)
    real_radius, made_radius = _radius(real), _radius(made)
    inside = distance < real_radius[:, None]
    return {
        "precision": bootstrap.mean(inside.any(0).numpy()),
        "recall": bootstrap.mean((distance < made_radius[None]).any(1).numpy()),
        "density": bootstrap.mean(inside.sum(0).numpy() / NEIGHBOURS),
        "coverage": bootstrap.mean((distance.amin(1) < real_radius).numpy()),
    }


def _radius(features: Tensor) -> Tensor:
    """Distance (N,) of each item to its k-th neighbour among the others."""
    distance = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    return distance.kthvalue(NEIGHBOURS + 1, dim=1).values  # the first is the item itself


def nearest(features: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """For each of (N, D) the distance to the nearest of (M, D), and its number."""
    best = torch.cdist(features, reference, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    return best.values, best.indices


def nearest_distances(case: Case, bootstrap: Bootstrap) -> Figures:
    """How close media come to the reference, which says something of memory where it is the training data.

    Percentiles of the distance to the nearest reference item, and ``closer``: the share of media that lie closer than
    95 % of the held-out real ones do, 5 % for a model that remembers no more than reality repeats itself.
    """
    distances = nearest(case.subject.features, case.reference.features)[0].numpy()
    real = nearest(case.real.features, case.reference.features)[0].numpy()
    figures = {
        f"p{percent}": bootstrap.statistic(
            lambda index, percent=percent: float(np.percentile(distances[index], percent)), len(distances)
        )
        for percent in PERCENTILES
    }
    return {**figures, "closer": bootstrap.mean(distances < np.percentile(real, 5))}
