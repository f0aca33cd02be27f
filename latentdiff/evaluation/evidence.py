"""What metrics are computed from: features and class logits of a set of media, and what is true of it."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from latentdiff.evaluation.bootstrap import Estimate

Truth = dict[str, frozenset[str]]
"""By attribute the names that are true of a media; the ``sources`` of a sound may be several."""


@dataclass(frozen=True)
class Evidence:
    """What one extractor found in one set of N media.

    Args:
        features: (N, D), float64.
        logits: by attribute (N, K), float64; nothing for an extractor without classes.
        classes: by attribute the K names.
        text: (N, D) of the captions in the space of the features, unit length; None without a text tower.
        truths: of each media, from its metadata.
    """

    features: Tensor
    logits: dict[str, Tensor] = field(default_factory=dict)
    classes: dict[str, list[str]] = field(default_factory=dict)
    text: Tensor | None = None
    truths: tuple[Truth, ...] = ()

    def __len__(self) -> int:
        return len(self.features)

    def take(self, index: np.ndarray | list[int]) -> "Evidence":
        """The items of these numbers, in this order."""
        where = torch.as_tensor(np.asarray(index, dtype=np.int64))
        return replace(
            self,
            features=self.features[where],
            logits={attribute: values[where] for attribute, values in self.logits.items()},
            text=None if self.text is None else self.text[where],
            truths=tuple(self.truths[i] for i in where.tolist()) if self.truths else (),
        )

    @property
    def posterior(self) -> Tensor:
        """Logits (N, K) of the attribute with the most classes, for figures that take a single posterior."""
        return max(self.logits.values(), key=lambda values: values.shape[1])


@dataclass(frozen=True)
class Case:
    """What is measured, and against what. For the floor the subject is the real set itself.

    Args:
        subject: the set that gets the figure.
        real: real media held out from everything, as many as the subject has.
        reference: other real media, best the training data.
        paired: for each item of the subject the real one that it answers; None where there are no pairs.
    """

    subject: Evidence
    real: Evidence
    reference: Evidence
    paired: Evidence | None = None


Figures = dict[str, Estimate]
"""By name; a metric may give several."""


class NotComputableError(ValueError):
    """Why this figure cannot be had from these sets, as a sentence without a full stop."""
