"""What becomes of a job whose model the gate has decided about."""

import threading
from typing import Any

import pytest

from app.auth.schemas import Tenant
from app.contracts.evaluation_plan import BenchmarkChoice, EvaluationPlan
from app.contracts.gate import GatePolicy
from app.contracts.protection import Protection
from app.contracts.risk import RiskPolicy
from app.contracts.specs import SPEC_FILE, JobSpec
from app.contracts.states import JobStatus, WorkState
from app.files.content import UploadLimits
from app.files.service import FileService
from app.jobs.operations import JobOperations
from app.models import File, FineTunedModel
from workers.runtime.supervisor import run_work

NEVER = threading.Event()


def withheld(world: Any, **protection: Any) -> tuple[str, str]:
    queued = world.add_job(protection=Protection(**protection))
    assert run_work(world.runtime("withhold"), queued.work_id, NEVER)
    return queued.job_id, queued.work_id


class TestAWithheldModel:
    def test_fails_its_job_with_the_rules_and_what_to_do(self, world: Any) -> None:
        job_id, work_id = withheld(world)
        job = world.job(job_id)
        assert (job.status, job.phase, job.error_code, job.error_param) == (
            *(JobStatus.FAILED, None, "safety_gate"),
            None,
        )
        assert "AdvBench: 90.0 % of harmful requests were answered" in job.error_message
        assert "instead of «none»" in job.error_message
        assert job.finished_at is not None
        assert world.work(work_id).state == WorkState.DONE
        last = world.events(job_id)[-1]
        assert (last.level, last.message, last.data) == ("error", job.error_message, {"code": "safety_gate"})

    def test_is_stored_with_its_report_and_metrics_and_not_published(self, world: Any) -> None:
        job = world.job(withheld(world)[0])
        assert world.storage.get(job.adapter_key) == b"adapter"
        assert world.storage.get(job.report_key) == b"{}"
        assert job.fine_tuned_model is None
        assert job.trained_tokens == 1234
        with world.db.transaction() as session:
            metrics = session.get_one(File, job.result_files[0])
            assert session.query(FineTunedModel).count() == 0
        assert world.storage.get(metrics.storage_key) == b"step,train_loss\n30,0.15\n"

    def test_leaves_the_decision_with_the_job(self, world: Any) -> None:
        policy = GatePolicy(max_harmful_rate=0.1)
        job = world.job(withheld(world, gate=policy)[0])
        decision = Protection.model_validate(job.protection).decision
        assert decision is not None
        assert (decision.released, decision.policy, decision.rules[0].bound) == (False, policy, 0.95)

    def test_does_not_hold_on_to_the_uploads(self, world: Any) -> None:
        job = world.job(withheld(world)[0])
        service = FileService(world.db, world.storage, UploadLimits(1, 1, 1))
        tenant = Tenant(project_id="proj_a", key_id="key_1", is_admin=False)
        assert service.delete(tenant, job.training_file).deleted

    def test_can_be_released_by_an_operator(self, world: Any) -> None:
        job_id, _ = withheld(world)
        name = JobOperations(world.db, "unforgotten").release(job_id, "reviewed by hand")
        job = world.job(job_id)
        assert (job.status, job.fine_tuned_model, job.error_code) == (JobStatus.SUCCEEDED, name, None)
        assert name == f"ft:tiny:unforgotten::{job_id[-8:]}"


def test_moderation_checks_are_an_event_of_that_type(world: Any) -> None:
    job_id, _ = withheld(world)
    (event,) = [event for event in world.events(job_id) if event.type == "moderation_checks"]
    assert (event.level, event.data) == ("error", {"blocked": True, "results": []})


def test_a_model_that_the_policy_only_warns_about_is_published(world: Any) -> None:
    queued = world.add_job()
    run_work(world.runtime("warn"), queued.work_id, NEVER)
    job = world.job(queued.job_id)
    assert (job.status, job.error_code) == (JobStatus.SUCCEEDED, None)
    assert Protection.model_validate(job.protection).decision is not None


@pytest.mark.parametrize(
    ("before", "chosen_by"),
    [(Protection(is_auto=True, chosen_by="auto"), "auto"), (Protection(), "policy")],
    ids=["auto", "policy"],
)
def test_what_the_preflight_chose_is_the_jobs_plan(world: Any, before: Protection, chosen_by: str) -> None:
    job_id, _ = withheld(world, **dict(before))
    job = world.job(job_id)
    assert job.plan["method"] == {"name": "none"}
    protection = Protection.model_validate(job.protection)
    assert (protection.is_auto, protection.chosen_by, protection.gate) == (False, chosen_by, before.gate)


def test_the_child_is_told_how_the_job_is_guarded(world: Any) -> None:
    raised = threading.Event()
    raised.set()
    gate = GatePolicy(max_harmful_rate=0.1, require_benchmarks=("advbench",))
    queued = world.add_job(protection=Protection(is_auto=True, chosen_by="auto", drop_flagged_rows=True, gate=gate))
    changes = {
        "evaluation": EvaluationPlan(benchmarks=(BenchmarkChoice(name="advbench", num_prompts=5),)),
        "risk": RiskPolicy(high="block"),
    }
    run_work(world.runtime("succeed", world.settings.model_copy(update=changes)), queued.work_id, raised)
    spec = JobSpec.model_validate_json((world.settings.work_dir / queued.work_id / SPEC_FILE).read_text())
    assert (spec.is_auto, spec.drop_flagged_rows, spec.gate) == (True, True, gate)
    assert (spec.evaluation, spec.risk_policy) == (changes["evaluation"], changes["risk"])
