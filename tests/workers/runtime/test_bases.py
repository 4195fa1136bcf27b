"""Bases that jobs are run on, and that are prepared by attempts of their own."""

import sys
from typing import Any

import pytest

from app.contracts.specs import SPEC_FILE, JobSpec
from app.contracts.states import WorkKind, WorkState
from app.models import BaseModelRow
from tests.workers.runtime.attempting import NEVER
from workers.runtime.supervisor import Runtime, run_work


class TestBaseThatIsPreparedAnew:
    """Between two attempts at a job."""

    def interrupted(self, world: Any) -> Any:
        queued = world.add_job()
        run_work(world.runtime("a_stage_then_die"), queued.work_id, NEVER)
        assert list(world.job(queued.job_id).stages) == ["train"]
        (world.settings.bases_dir / "4567").mkdir()
        with world.db.transaction() as session:
            session.get_one(BaseModelRow, "tiny").prepared_hash = "4567"
        world.set_work(queued.work_id, available_at=0.0)
        return queued

    def spec_of_the_next_attempt(self, world: Any, queued: Any) -> JobSpec:
        run_work(world.runtime("a_stage_then_die"), queued.work_id, NEVER)
        return JobSpec.model_validate_json((world.settings.work_dir / queued.work_id / SPEC_FILE).read_bytes())

    def test_leaves_the_job_the_one_that_it_was_begun_on(self, world: Any) -> None:
        spec = self.spec_of_the_next_attempt(world, self.interrupted(world))
        assert (spec.prepared_dir.name, list(spec.finished_stages)) == ("0123", ["train"])

    def test_lets_the_job_begin_anew_where_that_one_is_gone(self, world: Any) -> None:
        queued = self.interrupted(world)
        (world.settings.bases_dir / "0123").rmdir()
        left = world.settings.work_dir / queued.work_id / "training"
        left.mkdir()
        spec = self.spec_of_the_next_attempt(world, queued)
        assert (spec.prepared_dir.name, list(spec.finished_stages)) == ("4567", [])
        assert not left.exists()

    @pytest.mark.parametrize("content", [b"", b"[]", b'{"prepared_dir": 7}'])
    def test_is_the_one_where_nothing_says_what_it_was_begun_on(self, world: Any, content: bytes) -> None:
        queued = self.interrupted(world)
        (world.settings.work_dir / queued.work_id / SPEC_FILE).write_bytes(content)
        spec = self.spec_of_the_next_attempt(world, queued)
        assert (spec.prepared_dir.name, list(spec.finished_stages)) == ("4567", [])


class TestPreparingABase:
    def test_makes_the_base_ready(self, world: Any) -> None:
        work_id = world.add_work(WorkKind.PREPARE_BASE, "tiny")
        runtime = Runtime(world.settings, world.db, world.storage, {WorkKind.PREPARE_BASE: base_child(0, "0123")})
        run_work(runtime, work_id, NEVER)
        base = world.base()
        assert (base.status, base.prepared_hash, base.error) == ("ready", "0123", None)
        assert base.ready_at is not None
        assert base.renders_tools is True
        assert world.work(work_id).state == WorkState.DONE

    def test_does_not_believe_in_a_folder_that_is_not_there(self, world: Any) -> None:
        work_id = world.add_work(WorkKind.PREPARE_BASE, "tiny")
        runtime = Runtime(world.settings, world.db, world.storage, {WorkKind.PREPARE_BASE: base_child(0, "4567")})
        run_work(runtime, work_id, NEVER)
        base = world.base()
        assert base.status == "failed"
        assert "4567" in base.error


def base_child(status: int, prepared_hash: str) -> list[str]:
    script = (
        'print(\'{"kind": "base_status", "status": "preparing"}\')\n'
        f'print(\'{{"kind": "base_result", "prepared_hash": "{prepared_hash}", "renders_tools": true}}\')\n'
        f"raise SystemExit({status})"
    )
    return [sys.executable, "-c", script]
