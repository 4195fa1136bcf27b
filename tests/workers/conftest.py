"""Tiny models on disk, made once a session. Torch is imported only by the tests that use them."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.workers.tiny import Family


class TinyModels:
    """Folders of tiny models, each written when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def folder(self, family: "Family") -> Path:
        from tests.workers.tiny import save_tiny_model

        path = self._folder / family
        return path if path.is_dir() else save_tiny_model(path, family=family)

    def refusing(self) -> Path:
        from tests.workers.tiny import save_refusing_model

        path = self._folder / "refusing"
        return path if path.is_dir() else save_refusing_model(path)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    return TinyModels(tmp_path_factory.mktemp("tiny_models"))


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    """Torch on one thread: sums in the same order on every machine, and no fight over cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
