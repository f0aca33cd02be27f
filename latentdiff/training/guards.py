"""What stops a run, said in one sentence: values that are not finite, memory, data workers, other processes."""

import re
from typing import TYPE_CHECKING, Any

from latentdiff.config import AnyRecipe, ImageData

if TYPE_CHECKING:
    from torch import Tensor

_MEMORY = ("out of memory", "can't allocate memory")
_WORKER = re.compile(r"DataLoader worker \(pid.*")
_HANG = ("Timed out waiting", "Connection closed by peer", "Connection reset by peer", "pair closure", "Broken pipe")
_WIDTHS = {
    "vae": "autoencoder",
    "vocoder": "generator.upsample_initial_channel",
    "clap": "model.audio_width",
    "diffusion": "unet.block_out_channels",
    "judge": "width",
}
"""What makes the network of a stage smaller."""
_CAUGHT = "in DataLoader worker process"


class TrainingError(RuntimeError):
    """The run cannot go on, for a reason that is no defect; the newest checkpoint is whole."""


class NonFiniteError(TrainingError):
    """A loss or gradient is not finite; nothing was changed by that step."""


class TooLargeError(RuntimeError):
    """A step did not fit into the memory; nothing of it is kept."""


class Finite:
    """The guard of one step: every phase's losses and gradient must be finite before its optimiser moves.

    Args:
        step: number of the step.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        self._losses: dict[str, list[tuple[Tensor, dict[str, Tensor], Any]]] = {}

    def note(self, phase: str, total: "Tensor", terms: "dict[str, Tensor]", rows: Any) -> None:
        """Remember the loss of one micro-batch."""
        values = {name: value.detach() for name, value in terms.items()}
        self._losses.setdefault(phase, []).append((total.detach(), values, rows))

    def require(self, phase: str, norm: "Tensor") -> None:
        """Look at a phase's losses and the norm of its whole gradient.

        Raises:
            NonFiniteError: with the step, the phase, the guilty rows and the values.
        """
        losses = self._losses[phase]
        # One sum, so that a GPU is waited for once.
        if (norm + sum(total for total, _, _ in losses)).isfinite():
            return
        guilty = [loss for loss in losses if not loss[0].isfinite()] or losses
        values = ", ".join(f"{name} {value.item():.4g}" for name, value in guilty[0][1].items())
        rows = [row for _, _, part in guilty for row in part or ()]
        raise NonFiniteError(
            f"step {self.step}, phase {phase}, rows {rows}: gradient norm {float(norm):.4g} ({values}); "
            "nothing was changed. Lower optimizer.lr or look at these rows; the last checkpoint is good."
        )


def explain(error: BaseException, config: AnyRecipe | None) -> str | None:
    """One sentence about an error of a library that is no defect of ours, or None."""
    text, train = str(error), config.train if config else None
    if is_out_of_memory(error):
        return _out_of_memory(text, config)
    if (found := _WORKER.search(text)) and _CAUGHT not in text:
        return (
            f"a data worker ended: {found[0].strip()} Memory and a full /dev/shm are the usual reasons. "
            "data.num_workers=0 reads without workers; the same command goes on from the newest checkpoint."
        )
    if "DataLoader timed out" in text and train:
        return f"no data for {train.timeout:g} s (train.timeout): does the disk under data.path answer?"
    if any(words in text for words in _HANG) and train:
        return (
            f"another process of this run has ended, or did not answer within {train.timeout:g} s (train.timeout). "
            f"If it ended, its own message says why ({text.splitlines()[0].strip()})."
        )
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of any library on any device says that."""
    return isinstance(error, MemoryError | TooLargeError) or any(words in str(error) for words in _MEMORY)


def with_smaller_batches(config: AnyRecipe) -> AnyRecipe | None:
    """The same items a step, at most half as many at once; None where one at a time is too many already."""
    size = config.train.batch_size
    if size == 1:
        return None
    smaller = max(part for part in range(1, size // 2 + 1) if size % part == 0)
    shares = config.train.gradient_accumulation * size // smaller
    train = config.train.model_copy(update={"batch_size": smaller, "gradient_accumulation": shares})
    return config.model_copy(update={"train": train})


def innermost(error: BaseException) -> str:
    """An error's message, without the traceback that a data worker wraps around it."""
    text = str(error)
    return text.strip().splitlines()[-1].partition("Error: ")[2] if _CAUGHT in text else text


def _out_of_memory(text: str, config: AnyRecipe | None) -> str:
    """With the three settings that help most, of those that this configuration has left."""
    said = text.strip().splitlines()[0] if text else "MemoryError"
    if config is None:
        return f"out of memory: {said}"
    train, ways = config.train, []
    if smaller := with_smaller_batches(config):
        sizes = smaller.train
        ways.append(
            f"train.batch_size={sizes.batch_size} with train.gradient_accumulation={sizes.gradient_accumulation} "
            "(fewer at a time, the same items a step)"
        )
    if train.mixed_precision == "no":
        ways.append("train.mixed_precision=bf16")
    ways.append("data.size, smaller pictures" if isinstance(config.data, ImageData) else "data.seconds, shorter items")
    ways.append(f"{_WIDTHS[config.stage]}, a smaller network")
    if train.ema_decay:
        ways.append("train.ema_decay=0, no second copy of the weights")
    return (
        f"out of memory ({said}). What helps most: {'; '.join(ways[:3])}. What was trained is in the newest checkpoint."
    )
