"""Distances between two clouds of features: Frechet distance and kernel distance."""

import numpy as np
import torch
from torch import Tensor

from latentdiff.evaluation.bootstrap import Bootstrap
from latentdiff.evaluation.evidence import Case, Figures, NotComputableError


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Squared Frechet distance of the Gaussians fitted to two sets (N, D) and (M, D) (Heusel et al. 2017, eq. 6).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). The trace of the root is the sum of the roots of the eigenvalues of
    R C2 R^T, with C1 = R^T R, which is symmetric: no complex part is thrown away.
    """
    means = first.mean(0), second.mean(0)
    one = (first - means[0]) / (len(first) - 1) ** 0.5
    other = (second - means[1]) / (len(second) - 1) ** 0.5
    root = torch.linalg.qr(one, mode="r").R
    cross = root @ other.T
    shared = torch.linalg.eigvalsh(cross @ cross.T).clamp(min=0).sqrt().sum()
    return float((means[0] - means[1]).square().sum() + one.square().sum() + other.square().sum() - 2 * shared)


def frechet(case: Case, bootstrap: Bootstrap) -> Figures:
    """`frechet_distance` to the reference.

    Raises:
        NotComputableError: for fewer samples than a covariance of full rank needs, saying how many.
    """
    first, second = case.subject.features, case.reference.features
    needed = first.shape[1] + 1
    for name, features in (("media to judge", first), ("reference media", second)):
        if len(features) < needed:
            raise NotComputableError(
                f"a covariance of {first.shape[1]} features needs at least {needed} {name} and there are "
                f"{len(features)}; give more, or take kid"
            )

    def distance(index: np.ndarray, other: np.ndarray) -> float:
        return frechet_distance(first[torch.from_numpy(index)], second[torch.from_numpy(other)])

    return {"": bootstrap.statistic(distance, len(first), len(second))}


def polynomial_kernel(first: Tensor, second: Tensor) -> Tensor:
    """(x . y / D + 1)^3 of all pairs, (N, M) (Binkowski et al. 2018, section 4)."""
    return (first @ second.T / first.shape[1] + 1) ** 3


def kid(case: Case, bootstrap: Bootstrap) -> Figures:
    """Kernel distance: the unbiased squared maximum mean discrepancy of all samples (Binkowski et al. 2018, eq. 3)."""
    first, second = case.subject.features, case.reference.features
    kernels = [polynomial_kernel(*pair).numpy() for pair in ((first, first), (second, second), (first, second))]

    def discrepancy(index: np.ndarray, other: np.ndarray) -> float:
        n, m = len(index), len(other)
        # How often each item was drawn stands for indexing the matrices, which are large.
        a, b = np.bincount(index, minlength=n).astype(float), np.bincount(other, minlength=m).astype(float)
        within = (a @ kernels[0] @ a - a @ kernels[0].diagonal()) / (n * (n - 1))
        within += (b @ kernels[1] @ b - b @ kernels[1].diagonal()) / (m * (m - 1))
        return float(within - 2 * (a @ kernels[2] @ b) / (n * m))

    return {"": bootstrap.statistic(discrepancy, len(first), len(second))}
