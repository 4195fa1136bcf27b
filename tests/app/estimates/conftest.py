"""Bases that are prepared as far as counting tokens needs it: tokenizer, template and configuration, no weights."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from app.contracts.states import BaseStatus
from app.db import Database
from app.models import BaseModelRow
from app.settings import Settings
from tests.app.helpers import add_base
from tests.workers.tiny import save_tiny_model, tiny_tokenizer
from tests.workers.tools import TOOLS_CHATML


@pytest.fixture(scope="session")
def text_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder without weights."""
    folder = save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    return folder


@pytest.fixture
def prepare_base(database: Database, settings: Settings, text_parts: Path) -> Callable[[str], None]:
    """Makes a ready base of that name; the template of `tools` shows tools."""

    def make(name: str) -> None:
        model_dir = settings.bases_dir / f"{name}-hash" / "model"
        shutil.copytree(text_parts, model_dir)
        if name == "tools":
            tiny_tokenizer(template=TOOLS_CHATML).save_pretrained(model_dir)
        add_base(database, name, BaseStatus.READY)
        with database.transaction() as session:
            row = session.get_one(BaseModelRow, name)
            row.prepared_hash, row.renders_tools = f"{name}-hash", name == "tools"

    return make
