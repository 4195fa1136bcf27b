"""A job that has ended, with what its worker would have stored."""

import hashlib
from dataclasses import dataclass
from typing import Any

from fastapi.testclient import TestClient
from sqlalchemy import update

from app.contracts.states import JobStatus
from app.db import Database, db_now
from app.models import Checkpoint, FineTunedModel, Job, model_name
from app.storage import ObjectStorage, job_key
from tests.app.helpers import BASE, created_job

STEPS = (10, 20, 30, 40)
KEPT = STEPS[1:]
BASE_HASH = "hash of theta_safe"


@dataclass(frozen=True)
class Finished:
    """The job and the names of what it made."""

    job_id: str
    model: str

    def checkpoint(self, step: int) -> str:
        return f"{self.model}:ckpt-step-{step}"

    def content(self, what: str) -> bytes:
        return f"{what} of {self.job_id}".encode()


def finish(
    client: TestClient,
    database: Database,
    storage: ObjectStorage,
    *,
    released: tuple[int, ...] = (40,),
    status: str = JobStatus.SUCCEEDED,
    error_code: str | None = None,
    **body: Any,
) -> Finished:
    """A job of the client's that has ended after four epochs, of which the last three have adapters."""
    job_id = created_job(client, **body)["id"]
    with database.transaction() as session:
        job = session.get_one(Job, job_id)
        found = Finished(job_id, model_name(job, "unforgotten"))
        for name in ("adapter.tar.gz", "report.json"):
            storage.put(job_key(job_id, "t", name), found.content(name))
        adapter = found.content("adapter.tar.gz")
        values = {
            "status": status,
            "error_code": error_code,
            "finished_at": db_now(),
            "adapter_key": job_key(job_id, "t", "adapter.tar.gz"),
            "adapter_sha256": hashlib.sha256(adapter).hexdigest(),
            "adapter_bytes": len(adapter),
            "adapter_rank": 32,
            "base_hash": BASE_HASH,
            "report_key": job_key(job_id, "t", "report.json"),
            "fine_tuned_model": found.model if status == JobStatus.SUCCEEDED else None,
        }
        session.execute(update(Job).where(Job.id == job_id).values(**values))
        if status == JobStatus.SUCCEEDED:
            session.add(FineTunedModel(id=found.model, project_id=job.project_id, job_id=job_id, base_id=BASE))
        for step in STEPS:
            session.add(_checkpoint(found, step, storage, is_released=step in released))
    return found


def _checkpoint(found: Finished, step: int, storage: ObjectStorage, *, is_released: bool) -> Checkpoint:
    content, key = found.content(f"step {step}"), job_key(found.job_id, "t", f"checkpoint-{step}.tar.gz")
    row = Checkpoint(
        id=f"ftckpt_{step}_{found.job_id[-8:]}",
        job_id=found.job_id,
        step_number=step,
        model_name=found.checkpoint(step),
        metrics={"step": step},
    )
    if step in KEPT:
        storage.put(key, content)
        row.adapter_key, row.adapter_bytes = key, len(content)
        row.adapter_sha256 = hashlib.sha256(content).hexdigest()
        row.released_at = 1.0 if is_released else None
    return row
