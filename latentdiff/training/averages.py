"""The exponential moving average of the weights: kept, stored, and put in their place for a while."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from diffusers.training_utils import EMAModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from latentdiff.training.sharding import shared_as, whole

_FILE = "ema.safetensors"


class Averages:
    """An average of some parameters that follows each step.

    Args:
        parameters: gives the parameters, always in the same order.
        decay: the weight of the past in the long run.
    """

    def __init__(self, parameters: Callable[[], list[nn.Parameter]], decay: float) -> None:
        self._parameters = parameters
        # use_ema_warmup: the average follows quickly at first, so that short runs have a useful one too.
        self._ema = EMAModel(parameters(), decay, use_ema_warmup=True, power=0.75)

    def step(self) -> None:
        """Follow the parameters after an optimiser's step."""
        self._ema.step(self._parameters())

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The average in place of the parameters."""
        self._ema.store(self._parameters())
        try:
            self._ema.copy_to(self._parameters())
            yield
        finally:
            self._ema.restore(self._parameters())

    def save(self, folder: Path, write: bool) -> None:
        """Write ``ema.safetensors``: the tensors by their place, and how many steps they have followed.

        All processes must call it, for each may hold a part; the one that is to ``write`` it does.
        """
        tensors = [whole(average).cpu() for average in self._ema.shadow_params]
        if write:
            save_averages(folder, tensors, self._ema.optimization_step)

    def load(self, folder: Path) -> None:
        """Read it back.

        Raises:
            FileNotFoundError: there is none.
            RuntimeError: it is of other parameters.
        """
        tensors = load_file(folder / _FILE)
        if len(tensors) != len(self._ema.shadow_params):
            raise RuntimeError(f"{_FILE} has {len(tensors)} tensors for {len(self._ema.shadow_params)} parameters")
        for place, average in enumerate(self._ema.shadow_params):
            average.copy_(shared_as(tensors[str(place)], average))
        with safe_open(folder / _FILE, "pt") as file:
            self._ema.optimization_step = int(file.metadata()["steps"])


def save_averages(folder: Path, tensors: list[Tensor], steps: int) -> None:
    """The file of `Averages.save`."""
    named = {str(place): tensor.contiguous() for place, tensor in enumerate(tensors)}
    save_file(named, folder / _FILE, metadata={"steps": str(steps)})
