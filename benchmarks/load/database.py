"""A database with as many jobs as a provider has after some years, filled without the API."""

import json
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import insert, select

from app.auth.service import AuthService
from app.contracts.bases import PrepareRecipe, TrainingDefaults
from app.contracts.plan import TrainingPlan
from app.contracts.protection import Protection
from app.contracts.states import BaseStatus, JobStatus
from app.db import Database
from app.ids import new_id
from app.models import BaseModelRow, Event, Job, Project
from app.schema import upgrade

BATCH = 5_000
BASE = "tiny"


@dataclass(frozen=True)
class Filled:
    """A database that is ready to be asked."""

    url: str
    key: str
    job_ids: list[str]
    """Some of the jobs, spread over all."""


def fill(folder: Path, num_jobs: int, *, num_events: int = 0) -> Filled:
    """A new SQLite database with jobs of one project, and events of the first of them."""
    url = f"sqlite:///{folder / 'unforgotten.db'}"
    database = Database(url)
    upgrade(database.engine)
    key = AuthService(database).create_key("load")
    with database.transaction() as session:
        project_id = session.scalars(select(Project.id)).one()
        session.add(
            BaseModelRow(
                id=BASE,
                source="path:nowhere",
                recipe=PrepareRecipe(align=False).model_dump(mode="json"),
                training_defaults=TrainingDefaults().model_dump(mode="json"),
                status=BaseStatus.READY,
            )
        )
    ids = [new_id("ftjob-") for _ in range(num_jobs)]
    for start in range(0, num_jobs, BATCH):
        with database.transaction() as session:
            rows = [_job(ids[k], project_id, float(k)) for k in range(start, min(num_jobs, start + BATCH))]
            session.execute(insert(Job), rows)
    with database.transaction() as session:
        events = [
            {"id": new_id("ftevent-"), "job_id": ids[0], "level": "info", "type": "message", "message": f"Step {k}"}
            for k in range(num_events)
        ]
        if events:
            session.execute(insert(Event), events)
    database.dispose()
    return Filled(url, key, ids[:: max(1, num_jobs // 200)])


def _job(job_id: str, project_id: str, created_at: float) -> dict[str, object]:
    return {
        "id": job_id,
        "project_id": project_id,
        "base_id": BASE,
        "model": BASE,
        "training_file": "file-load",
        "seed": 0,
        "job_metadata": {"number": str(int(created_at))},
        "hyperparameters": {"batch_size": 8, "learning_rate_multiplier": 1.0, "n_epochs": 1},
        "plan": _PLAN,
        "protection": _PROTECTION,
        "status": JobStatus.RUNNING,
        "phase": "training",
        "result_files": [],
        "stages": {},
        "created_at": created_at,
        "started_at": created_at,
    }


_PLAN = json.loads(TrainingPlan().model_dump_json())
_PROTECTION = json.loads(Protection().model_dump_json())
