import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.contracts.chat import ChatRow
from app.contracts.plan import TrainingPlan
from app.contracts.specs import JobSpec
from tests.workers.conftest import TinyModels
from tests.workers.conversations import short_rows
from tests.workers.listening import Listener
from tests.workers.preparing import prepare_spec
from workers.preparation.run import prepare

MakeSpec = Callable[..., JobSpec]

LENIENT = {
    "max_harmful_increase": 1.0,
    "max_over_refusal_increase": 1.0,
    "max_degenerate_rate": 1.0,
    "min_prompts": 1,
}
"""A gate that lets everything through and decides on the handful of prompts that the tests' base is asked."""


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Every test in this folder computes."""


@pytest.fixture(scope="session")
def prepared_dir(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """The refusing model, prepared without alignment."""
    bases_dir = tmp_path_factory.mktemp("bases")
    return bases_dir / prepare(prepare_spec(tiny_models.refusing(), bases_dir), Listener().channel)


def write_rows(path: Path, rows: list[ChatRow]) -> Path:
    path.write_text("".join(row.model_dump_json(exclude_defaults=True) + "\n" for row in rows))
    return path


@pytest.fixture
def make_spec(prepared_dir: Path, tmp_path: Path) -> MakeSpec:
    """A job with DER on twelve short rows, in four steps."""

    def make(rows: list[ChatRow] | None = None, plan: dict[str, Any] | None = None, **settings: Any) -> JobSpec:
        chosen = {
            "method": {"name": "der", "memory_rows_per_step": 2},
            "lora": {"rank": 4, "alpha": 8},
            "batch_size": 3,
            "precision": "fp32",
            **(plan or {}),
        }
        facts = {
            "job_id": "ftjob-1",
            "base_id": "tiny",
            "prepared_dir": prepared_dir,
            "training_file": write_rows(tmp_path / "train.jsonl", short_rows(12) if rows is None else rows),
            "training_file_sha256": "0" * 64,
            "validation_file": write_rows(tmp_path / "validation.jsonl", short_rows(16)[12:]),
            "plan": TrainingPlan.model_validate(chosen),
            "model_name": "ft:tiny:project::1",
            "gate": LENIENT,
            **settings,
        }
        return JobSpec.model_validate(facts)

    return make


def finished_stages(listener: Listener) -> dict[str, dict[str, Any]]:
    """What a supervisor remembers of a run for the next attempt."""
    messages = [json.loads(message.model_dump_json()) for message in listener.messages]
    return {message["stage"]: message["data"] for message in messages if message["kind"] == "stage_done"}
