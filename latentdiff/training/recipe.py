"""What a training stage is: networks, data, named loss terms with weights, validation, and what it saves."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from latentdiff.config import Recipe as RecipeConfig

Config = TypeVar("Config", bound=RecipeConfig)
Losses = dict[str, Tensor]


class Step(NamedTuple):
    """Where in the run a batch stands."""

    number: int
    generator: torch.Generator
    """Seeded by (run's seed, step, share of the batch): all random draws of the step come from it."""


class Recipe(ABC, Generic[Config]):
    """A training stage. The loop (`latentdiff.training.loop`) knows nothing else about it.

    Attributes:
        networks: what is trained and checkpointed, by name. The loop puts the prepared (wrapped) networks back.
        phases: for each optimiser, the names of the networks it moves.
        averaged: the networks of which an exponential moving average is kept, if the config asks for one.
        weights: the weight of each loss term; a term without one is only logged.
    """

    networks: dict[str, nn.Module]
    phases: dict[str, tuple[str, ...]]
    averaged: tuple[str, ...]
    weights: dict[str, float]

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config = config
        self.device = device

    @property
    @abstractmethod
    def items(self) -> Dataset[dict[str, Any]]:
        """The training items, indexed by `Draw`."""

    @abstractmethod
    def losses(self, batch: dict[str, Any], step: Step) -> Iterator[tuple[str, Losses]]:
        """Yield (phase, named loss terms); after each yield the loop moves that phase's networks."""

    @abstractmethod
    def validate(self, folder: Path) -> dict[str, float]:
        """Held-out figures; example media go into ``folder``."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Save the finished components in the libraries' own layout."""

    def check(self) -> list[str]:
        """Early checks before training; each string is a warning that names what looks wrong, with its value."""
        return []
