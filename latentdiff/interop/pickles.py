"""The one place where a pickle is read: tensors and plain values only, nothing in it can run."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from latentdiff.errors import InputError


def read_pickle(file: Path) -> Any:
    """What ``torch.save`` wrote, if it is tensors in plain containers.

    Raises:
        InputError: if the file holds anything else, or is broken.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        wanted = str(error).partition("GLOBAL ")[2].split(" ")[0]
        what = f" ({wanted})" if wanted else ""
        raise InputError(
            f"{file} holds more than weights{what}; it was not read, since that could run a program."
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:120].rstrip(".")
        raise InputError(f"{file} is not a whole file of weights ({reason}); copy or download it again.") from None
