"""What workers do by themselves is in the audit log, in the transaction in which it happens."""

import sys
import threading
from typing import Any

import pytest
from sqlalchemy import select

from app.audit.log import SERVICE, verify
from app.contracts.states import WorkKind
from app.models import AuditEntry
from workers.runtime.supervisor import Runtime, run_work


def entries(world: Any) -> list[AuditEntry]:
    with world.db.reading() as session:
        verify(session)
        return list(session.scalars(select(AuditEntry).order_by(AuditEntry.seq)))


@pytest.mark.parametrize(("scenario", "action"), [("succeed", "model.published"), ("withhold", "model.withheld")])
def test_what_becomes_of_a_jobs_model(world: Any, scenario: str, action: str) -> None:
    job = world.add_job(suffix="mine")
    assert run_work(world.runtime(scenario), job.work_id, threading.Event())
    (entry,) = entries(world)
    assert (entry.action, entry.actor, entry.project_id) == (action, SERVICE, "proj_a")
    assert entry.data == {"job": job.job_id}
    assert ":mine:" in entry.subject


@pytest.mark.parametrize("scenario", ["fail", "crash"])
def test_a_job_that_failed_has_changed_nothing_that_anybody_may_do(world: Any, scenario: str) -> None:
    run_work(world.runtime(scenario), world.add_job().work_id, threading.Event())
    assert entries(world) == []


@pytest.mark.parametrize(("request_", "action"), [("cancel", "job.cancelled"), ("pause", "job.paused")])
def test_a_worker_that_has_let_go_says_so(world: Any, request_: str, action: str) -> None:
    job = world.add_job()
    world.set_job(job.job_id, stop_requested=request_)
    run_work(world.runtime("wait"), job.work_id, threading.Event())
    assert [(entry.action, entry.subject) for entry in entries(world)] == [(action, job.job_id)]


def test_a_base_that_was_prepared(world: Any) -> None:
    work_id = world.add_work(WorkKind.PREPARE_BASE, "tiny")
    child = [
        sys.executable,
        "-c",
        'print(\'{"kind": "base_result", "prepared_hash": "0123", "renders_tools": false}\')',
    ]
    runtime = Runtime(world.settings, world.db, world.storage, {WorkKind.PREPARE_BASE: child})
    run_work(runtime, work_id, threading.Event())
    (entry,) = entries(world)
    assert (entry.action, entry.subject, entry.project_id) == ("base.prepared", "tiny", None)
    assert entry.data == {"prepared_hash": "0123"}
