"""Folders of published systems, made once a session."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interop import published


@pytest.fixture(scope="session")
def published_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a published system by its name; not to be changed."""
    root = tmp_path_factory.mktemp("published")

    def folder(name: str) -> Path:
        if not (root / name).is_dir():
            if name == "auffusion":
                published.save_auffusion(root / name)
            else:
                published.save(name, root / name)
        return root / name

    return folder
