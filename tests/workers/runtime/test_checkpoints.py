"""Adapters of checkpoints on their way into the object store, and the adapter that a job goes on from."""

import hashlib
import json
import threading
from typing import Any

import pytest
from sqlalchemy import update

from app.contracts.gate import GatePolicy
from app.contracts.progress import CheckpointMessage
from app.contracts.protection import Protection
from app.contracts.states import JobStatus
from app.db import db_now
from app.models import Checkpoint, FineTunedModel
from app.storage import job_key
from workers.runtime.checkpoint_rows import keep_checkpoint
from workers.runtime.supervisor import run_work
from workers.runtime.waste import sweep_waste


def ran(world: Any, scenario: str, *, protection: Protection | None = None, num_attempts: int = 1) -> Any:
    queued = world.add_job(protection=protection)
    for _ in range(num_attempts):
        world.set_work(queued.work_id, available_at=0.0)
        run_work(world.runtime(scenario), queued.work_id, threading.Event())
    return queued


def kept(world: Any, job_id: str) -> dict[int, bytes]:
    """Stored adapters by step; their checksums are right."""
    found = {}
    for row in world.checkpoints(job_id):
        if row.adapter_key is not None:
            content = world.storage.get(row.adapter_key)
            assert (row.adapter_sha256, row.adapter_bytes) == (hashlib.sha256(content).hexdigest(), len(content))
            found[row.step_number] = content
    return found


def sweep(world: Any) -> list[str]:
    """Names of what was deleted, however new it is."""
    batches = sweep_waste(world.db, world.storage, older_than_seconds=0.0)
    return sorted(key.rpartition("/")[2] for keys in batches for key in keys)


def stored(world: Any, job_id: str) -> list[str]:
    """Names of stored checkpoints."""
    keys = world.storage.keys(f"jobs/{job_id}")
    return sorted(key.rpartition("/")[2] for key in keys if "checkpoint" in key)


class TestStored:
    def test_are_the_latest_three_and_nothing_else(self, world: Any) -> None:
        queued = ran(world, "epochs")
        assert world.job(queued.job_id).status == JobStatus.SUCCEEDED
        assert [row.step_number for row in world.checkpoints(queued.job_id)] == [10, 20, 30, 40, 300]
        found = kept(world, queued.job_id)
        assert {step: content.startswith(f"checkpoint {step} ".encode()) for step, content in found.items()} == {
            30: True,
            40: True,
            300: True,
        }
        assert stored(world, queued.job_id) == [f"checkpoint-{step}.tar.gz" for step in (30, 300, 40)]

    def test_of_an_attempt_that_passes_an_epoch_again_replace_the_first_ones(self, world: Any) -> None:
        queued = ran(world, "an_epoch_then_die", num_attempts=2)
        assert world.job(queued.job_id).status == JobStatus.SUCCEEDED
        row, _ = world.checkpoints(queued.job_id)
        assert row.adapter_key.split("/")[2] == world.job(queued.job_id).adapter_key.split("/")[2]
        assert stored(world, queued.job_id) == ["checkpoint-10.tar.gz", "checkpoint-300.tar.gz"]
        assert [s for s in world.sentences(queued.job_id) if "step 10" in s] == ["Checkpoint created at step 10"]

    @pytest.mark.parametrize(
        ("scenario", "words"), [("foreign_checkpoint", "does not hold"), ("changed_checkpoint", "changed while")]
    )
    def test_are_only_what_was_announced(self, world: Any, scenario: str, words: str) -> None:
        queued = ran(world, scenario)
        job = world.job(queued.job_id)
        assert (job.status, job.error_code) == (JobStatus.FAILED, "internal_error")
        assert words in job.error_message
        assert kept(world, queued.job_id) == {}

    def test_take_their_predecessors_place_only_once_it_is_written_down(self, world: Any) -> None:
        queued = world.add_job()
        with world.db.transaction() as session:
            for step in range(1, 5):
                _add(session, queued.job_id, step, f"old-{step}")
        message = _message(5)
        with world.db.transaction() as session:
            stale = keep_checkpoint(session, queued.job_id, "ft:x", message, None)
        assert sorted(stale) == ["old-1", "old-2"]
        assert [row.adapter_key for row in world.checkpoints(queued.job_id)] == [None, None, "old-3", "old-4", None]


class TestReleased:
    def test_are_all_where_no_gate_decides(self, world: Any) -> None:
        queued = ran(world, "epochs")
        assert all(row.released_at is not None for row in world.checkpoints(queued.job_id))

    @pytest.mark.parametrize("on_fail", ["withhold", "repair"])
    def test_is_the_one_that_is_the_model_where_the_gate_could_withhold(self, world: Any, on_fail: Any) -> None:
        protection = Protection(gate=GatePolicy(on_fail=on_fail))
        queued = ran(world, "epochs_of_a_gated_model", protection=protection)
        rows = world.checkpoints(queued.job_id)
        assert {row.step_number: row.released_at is not None for row in rows} == {10: False, 20: False, 300: True}

    def test_are_all_where_the_gate_only_warns(self, world: Any) -> None:
        protection = Protection(gate=GatePolicy(on_fail="warn"))
        queued = ran(world, "epochs_of_a_gated_model", protection=protection)
        assert all(row.released_at is not None for row in world.checkpoints(queued.job_id))

    @pytest.mark.parametrize("scenario", ["withhold", "two_epochs_then_fail"])
    def test_are_none_without_a_released_model(self, world: Any, scenario: str) -> None:
        queued = ran(world, scenario)
        rows = world.checkpoints(queued.job_id)
        assert rows
        assert all(row.released_at is None for row in rows)


class TestSwept:
    def test_are_those_of_a_job_without_a_model(self, world: Any) -> None:
        failed, withheld, good = (ran(world, name) for name in ("two_epochs_then_fail", "withhold", "epochs"))
        assert len(kept(world, failed.job_id)) == 2
        assert sweep(world) == ["checkpoint-10.tar.gz", "checkpoint-20.tar.gz"]
        assert stored(world, failed.job_id) == []
        assert kept(world, failed.job_id) == {}
        # The operator may release what the gate has stopped.
        assert len(kept(world, withheld.job_id)) == 1
        assert len(kept(world, good.job_id)) == 3

    def test_are_objects_of_a_deleted_model_whose_deletion_was_cut_short(self, world: Any) -> None:
        """Rows have let go of them, the process was killed before it deleted them."""
        queued = ran(world, "epochs")
        # However long ago the job has ended.
        world.set_job(queued.job_id, adapter_key=None, finished_at=1.0)
        with world.db.transaction() as session:
            session.execute(update(Checkpoint).values(adapter_key=None))
            session.execute(update(FineTunedModel).values(deleted_at=db_now()))
        assert len(sweep(world)) == 4
        assert sorted(key.rpartition("/")[2] for key in world.storage.keys(f"jobs/{queued.job_id}")) == [
            "report.json",
            "step_metrics.csv",
        ]


class TestStart:
    CONTENT = b"an adapter"

    def continued(self, world: Any, **columns: Any) -> Any:
        queued = world.add_job()
        key = job_key("ftjob-origin", "token", "adapter.tar.gz")
        world.storage.put(key, self.CONTENT)
        found = {
            "model": "ft:tiny:unforgotten::12345678",
            "start_adapter_key": key,
            "start_adapter_sha256": hashlib.sha256(self.CONTENT).hexdigest(),
            "start_base_hash": "hash of theta_safe",
            **columns,
        }
        world.set_job(queued.job_id, **found)
        return queued

    def test_is_fetched_and_told_to_the_child(self, world: Any) -> None:
        queued = self.continued(world)
        run_work(world.runtime("once_stopped_then_succeed"), queued.work_id, _raised())
        folder = world.settings.work_dir / queued.work_id
        start = json.loads((folder / "spec.json").read_text())["start"]
        assert start == {
            "archive": str(folder / "start_adapter.tar.gz"),
            "sha256": hashlib.sha256(self.CONTENT).hexdigest(),
            "model": "ft:tiny:unforgotten::12345678",
            "base_hash": "hash of theta_safe",
        }
        assert (folder / "start_adapter.tar.gz").read_bytes() == self.CONTENT

    @pytest.mark.parametrize(
        ("columns", "words"),
        [({"start_adapter_key": "jobs/gone"}, "was deleted"), ({"start_adapter_sha256": "0" * 64}, "is damaged")],
    )
    def test_that_is_not_what_was_stored_fails_the_job(self, world: Any, columns: dict[str, str], words: str) -> None:
        queued = self.continued(world, **columns)
        run_work(world.runtime("succeed"), queued.work_id, threading.Event())
        job = world.job(queued.job_id)
        assert (job.status, job.error_code, job.error_param) == (JobStatus.FAILED, "artefact_missing", "model")
        assert f"model's adapter {words}" in job.error_message

    def test_leaves_what_the_next_job_needs_to_go_on(self, world: Any) -> None:
        queued = self.continued(world)
        run_work(world.runtime("succeed"), queued.work_id, threading.Event())
        job = world.job(queued.job_id)
        assert (job.base_hash, job.adapter_rank) == ("hash of theta_safe", 16)


def _raised() -> threading.Event:
    flag = threading.Event()
    flag.set()
    return flag


def _message(step: int) -> CheckpointMessage:
    return CheckpointMessage(step=step, metrics={}, archive="x", sha256="0" * 64)


def _add(session: Any, job_id: str, step: int, key: str) -> None:
    session.add(Checkpoint(id=f"c{step}", job_id=job_id, step_number=step, model_name="x", metrics={}, adapter_key=key))
