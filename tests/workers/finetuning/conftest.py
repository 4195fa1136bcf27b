from pathlib import Path

import pytest

from tests.workers.conftest import TinyModels
from tests.workers.finetuning.prepared import write_prepared
from tests.workers.tiny import Family
from workers.finetuning.artefacts import Artefacts


class PreparedBases:
    """Prepared bases of every family, each made when it is first asked for."""

    def __init__(self, folder: Path, models: TinyModels) -> None:
        self._folder = folder
        self._models = models

    def of(self, family: Family) -> Artefacts:
        path = self._folder / family
        return Artefacts(path) if path.is_dir() else write_prepared(path, self._models.folder(family))


@pytest.fixture(scope="session")
def prepared_bases(tmp_path_factory: pytest.TempPathFactory, tiny_models: TinyModels) -> PreparedBases:
    return PreparedBases(tmp_path_factory.mktemp("prepared"), tiny_models)


@pytest.fixture(scope="session")
def prepared(prepared_bases: PreparedBases) -> Artefacts:
    return prepared_bases.of("llama")


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Every test in this folder computes."""
