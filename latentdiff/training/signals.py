"""Signals: the first one ends the run after its step, with a checkpoint; a second one ends it now."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
)  # Windows has no SIGUSR1
SECOND_AFTER = 2.0
"""Seconds after the first signal from which on another one counts as the second: a terminal, a launcher and the
kernel (`end_with_launcher`) may each deliver the same request."""


class Stopped(KeyboardInterrupt):
    """A signal ended the run; what was done until then is saved. No ``except Exception`` may swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number

    @property
    def exit_code(self) -> int:
        return exit_code(self.number)


def exit_code(number: int) -> int:
    """130 for Ctrl-C; 143 where somebody else wants the machine: SIGTERM, and SIGUSR1, Slurm's early warning."""
    return 130 if number == signal.SIGINT else 143


class StopSignals:
    """What SIGTERM, SIGINT and SIGUSR1 do while the context is open.

    At first the run ends at once, by `Stopped`: there is nothing to save. Within `after_step` a signal is only
    noted, and the loop asks `agreed` between two steps; within `at_once` it interrupts again.
    """

    def __init__(self) -> None:
        self.number = 0
        self._since = 0.0
        self._interrupts = True
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        self._previous = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous if previous is not None else signal.SIG_DFL)

    @contextlib.contextmanager
    def after_step(self) -> Iterator[None]:
        """Signals wait for the end of the step."""
        self._interrupts = False
        try:
            yield
        finally:
            self._interrupts = True

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """What runs here can be given up at any point, so a signal need not wait for its end."""
        self._interrupts = True
        try:
            if self.number:  # it came before
                raise Stopped(self.number)
            yield
        finally:
            self._interrupts = False

    def agreed(self, accelerator: Any) -> int:
        """The signal that any of the processes got, or 0: the same answer in all of them."""
        if accelerator.num_processes == 1:
            return self.number
        import torch

        number = torch.tensor(self.number, device=accelerator.device)
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
        return int(number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            if time.monotonic() - self._since > SECOND_AFTER:
                for child in multiprocessing.active_children():
                    child.kill()
                os._exit(exit_code(number))
            return
        self.number, self._since = number, time.monotonic()
        if self._interrupts:
            raise Stopped(number)
        # Not print: the signal may have come in the middle of one.
        name = signal.Signals(number).name
        os.write(2, f"\n{name}: ends after this step, with a checkpoint; a second signal ends it now\n".encode())


def live_with_run(worker: int) -> None:
    """For a data worker: it ends when its run ends, even by SIGKILL, and not by a signal to the whole group before."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "SIGKILL"):
        _when_parent_ends(signal.SIGKILL)  # torch's own watch was seen to leave them behind


def end_with_launcher() -> None:
    """Have the kernel send SIGTERM when the launcher that started this process is gone.

    `accelerate launch` passes no signal on, and `torchrun` not SIGUSR1: both die of it and would leave the
    training behind. Linux only; a process that a shell started outlives it, as with ``nohup``.
    """
    if "LOCAL_RANK" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ:
        _when_parent_ends(signal.SIGTERM)


def _when_parent_ends(number: int) -> None:
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG, linux/prctl.h
        ctypes.CDLL(None).prctl(set_parent_death_signal, number, 0, 0, 0)
