"""Pre-flights and evaluations: attempts with children that speak the protocol and look at nothing."""

import hashlib
import json
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app.contracts.evaluation import Provenance
from app.contracts.evaluation_plan import BenchmarkChoice, EvaluationPlan
from app.contracts.gate import GatePolicy
from app.contracts.plan import TrainingPlan
from app.contracts.progress import EvaluationResultMessage, FailureMessage, Message, PreflightResultMessage
from app.contracts.specs import SPEC_FILE, EvaluationSpec, PreflightSpec
from app.contracts.states import FailureCode, JobStatus, RequestStatus, WorkKind, WorkState
from app.ids import new_id
from app.models import Evaluation, File, FineTunedModel, Job, Preflight
from app.storage import file_key
from tests.app.preflight.risks import RISK
from workers.runtime.housekeeping import Housekeeper
from workers.runtime.lease import claim
from workers.runtime.supervisor import Runtime, run_work

Eventually = Callable[[Callable[[], object]], None]
NEVER = threading.Event()
REPORT = b'{"report_version": "2"}'
RECORD = json.dumps({"theta_safe_hash": "theta"})


@dataclass(frozen=True)
class Asked:
    """A request that waits."""

    id: str
    work_id: str


class Requests:
    """Makes rows of requests and looks at them."""

    def __init__(self, world: Any) -> None:
        self.world = world

    def add_file(self, purpose: str = "fine-tune", data: bytes = b"{}\n") -> str:
        file_id = new_id("file-")
        file = File(
            id=file_id,
            project_id="proj_a",
            filename="a",
            purpose=purpose,
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            storage_key=file_key(file_id),
            status="processed",
        )
        self.world.storage.put(file.storage_key, data)
        self._add(file)
        return file.id

    def preflight(self) -> Asked:
        row = Preflight(
            id=new_id("preflight-"),
            project_id="proj_a",
            base_id="tiny",
            training_file=self.add_file(),
            status=RequestStatus.QUEUED,
        )
        self._add(row)
        return Asked(row.id, self.world.add_work(WorkKind.PREFLIGHT, row.id))

    def evaluation(self, *, job_id: str | None = None, **values: Any) -> Asked:
        row = Evaluation(
            id=new_id("evaluation-"),
            project_id="proj_a",
            base_id="tiny",
            job_id=job_id,
            adapter_file=None if job_id else self.add_file("adapter", b"archive"),
            gate=GatePolicy(max_harmful_rate=0.1).model_dump(mode="json"),
            status=RequestStatus.QUEUED,
            **values,
        )
        self._add(row)
        return Asked(row.id, self.world.add_work(WorkKind.EVALUATE_ADAPTER, row.id))

    def finished_job(self, *, base_hash: str = "theta", prepared_hash: str = "0123") -> str:
        """A job with an adapter and a report that says what it was trained on."""
        origin = Provenance(
            base="tiny",
            base_hash=base_hash,
            prepared_hash=prepared_hash,
            training_file_sha256="0",
            chat_template_sha256="0",
            seed=0,
            versions={},
        )
        job_id: str = self.world.add_job().job_id
        self.world.storage.put(f"{job_id}/adapter", b"its archive")
        self.world.storage.put(f"{job_id}/report", b'{"provenance": %s}' % origin.model_dump_json().encode())
        self.world.set_job(
            job_id,
            status=JobStatus.SUCCEEDED,
            fine_tuned_model="ft:mine",
            adapter_key=f"{job_id}/adapter",
            adapter_sha256=hashlib.sha256(b"its archive").hexdigest(),
            adapter_bytes=11,
            report_key=f"{job_id}/report",
            plan=TrainingPlan(max_row_tokens=512).model_dump(mode="json"),
        )
        with self.world.db.transaction() as session:
            job = session.get_one(Job, job_id)
            session.add(FineTunedModel(id="ft:mine", project_id=job.project_id, job_id=job_id, base_id=job.base_id))
        return job_id

    def found_preflight(self, asked: Asked) -> Preflight:
        with self.world.db.transaction() as session:
            found: Preflight = session.get_one(Preflight, asked.id)
            return found

    def found_evaluation(self, asked: Asked) -> Evaluation:
        with self.world.db.transaction() as session:
            found: Evaluation = session.get_one(Evaluation, asked.id)
            return found

    def run(self, asked: Asked, command: Sequence[str]) -> None:
        world = self.world
        runtime = Runtime(world.settings, world.db, world.storage, dict.fromkeys(WorkKind, command))
        assert run_work(runtime, asked.work_id, NEVER)

    def spec_of(self, asked: Asked) -> str:
        """What the child would be told; the work is handed back before one is started."""
        raised = threading.Event()
        raised.set()
        assert run_work(self.world.runtime("succeed"), asked.work_id, raised)
        return str((self.world.settings.work_dir / asked.work_id / SPEC_FILE).read_text())

    def _add(self, row: Any) -> None:
        with self.world.db.transaction() as session:
            session.add(row)


def child(*messages: Message, status: int = 0) -> list[str]:
    """Says this, leaves a report and ends."""
    lines = [message.model_dump_json() for message in messages]
    script = (
        f"import pathlib, sys; pathlib.Path('report.json').write_bytes({REPORT!r}); print(*{lines!r}, sep='\\n'); "
        f"sys.exit({status})"
    )
    return [sys.executable, "-c", script]


LOOKED = child(PreflightResultMessage(risk=RISK))
MEASURED = child(EvaluationResultMessage(report="report.json"))


@pytest.fixture
def requests(world: Any) -> Requests:
    (world.settings.bases_dir / "0123" / "prepared.json").write_text(RECORD)
    return Requests(world)


class TestPreflight:
    def test_ends_with_the_risk_in_its_row(self, world: Any, requests: Requests) -> None:
        asked = requests.preflight()
        requests.run(asked, LOOKED)
        row = requests.found_preflight(asked)
        assert (row.status, row.error_code) == (RequestStatus.SUCCEEDED, None)
        assert row.risk == RISK.model_dump(mode="json")
        assert row.finished_at is not None
        assert row.finished_at >= row.created_at
        assert world.work(asked.work_id).state == WorkState.DONE
        assert not (world.settings.work_dir / asked.work_id).exists()

    def test_is_told_the_file_and_the_base(self, world: Any, requests: Requests) -> None:
        asked = requests.preflight()
        spec = PreflightSpec.model_validate_json(requests.spec_of(asked))
        assert spec.training_file.read_bytes() == b"{}\n"
        assert spec.training_file_sha256 == hashlib.sha256(b"{}\n").hexdigest()
        assert (spec.base_id, spec.prepared_dir) == ("tiny", world.settings.bases_dir / "0123")
        # Handed back by a worker that shuts down: the attempt does not count.
        assert requests.found_preflight(asked).status == RequestStatus.QUEUED
        assert world.work(asked.work_id).attempt == 0

    def test_a_failure_that_the_child_announces_is_shown_as_it_is(self, requests: Requests) -> None:
        asked = requests.preflight()
        failure = FailureMessage(code=FailureCode.INVALID_TRAINING_FILE, message="Row 3.", param="training_file")
        requests.run(asked, child(failure, status=20))
        row = requests.found_preflight(asked)
        assert (row.status, row.error_code, row.error_message, row.error_param) == (
            RequestStatus.FAILED,
            "invalid_training_file",
            "Row 3.",
            "training_file",
        )
        assert row.finished_at is not None

    def test_another_kind_of_result_fails_it(self, requests: Requests) -> None:
        asked = requests.preflight()
        requests.run(asked, MEASURED)
        assert requests.found_preflight(asked).error_code == "internal_error"

    def test_a_file_that_is_gone_fails_it(self, world: Any, requests: Requests) -> None:
        asked = requests.preflight()
        for key in world.storage.keys("files"):
            world.storage.delete(key)
        requests.run(asked, LOOKED)
        row = requests.found_preflight(asked)
        assert (row.error_code, row.error_param) == ("invalid_training_file", "training_file")
        assert row.error_message == "The training file was deleted before it was read. Upload it again and ask again."

    def test_a_base_that_is_not_prepared_fails_it(self, world: Any, requests: Requests) -> None:
        asked = requests.preflight()
        with world.db.transaction() as session:
            session.merge(world.base()).prepared_hash = None
        requests.run(asked, LOOKED)
        assert requests.found_preflight(asked).error_code == "base_not_ready"


class TestEvaluation:
    def test_ends_with_its_report_in_the_store(self, world: Any, requests: Requests) -> None:
        asked = requests.evaluation()
        requests.run(asked, MEASURED)
        row = requests.found_evaluation(asked)
        assert (row.status, row.error_code) == (RequestStatus.SUCCEEDED, None)
        assert row.report_key is not None
        assert row.report_key.startswith(f"evaluations/{asked.id}/")
        assert world.storage.get(row.report_key) == REPORT
        assert row.finished_at is not None

    def test_of_an_upload_is_told_archive_gate_and_what_to_measure(self, world: Any, requests: Requests) -> None:
        asked = requests.evaluation(validation_file=requests.add_file(data=b'{"messages": []}\n'))
        plan = EvaluationPlan(benchmarks=(BenchmarkChoice(name="advbench"),))
        world.settings = world.settings.model_copy(update={"evaluation": plan})
        spec = EvaluationSpec.model_validate_json(requests.spec_of(asked))
        assert spec.adapter_archive.read_bytes() == b"archive"
        assert spec.adapter_sha256 == hashlib.sha256(b"archive").hexdigest()
        assert spec.model_name == requests.found_evaluation(asked).adapter_file
        assert spec.validation_file is not None
        assert spec.validation_file.read_bytes() == b'{"messages": []}\n'
        assert spec.gate == GatePolicy(max_harmful_rate=0.1)
        assert (spec.evaluation, spec.evaluation_id, spec.base_id) == (plan, asked.id, "tiny")
        assert (spec.prepared_dir, spec.max_row_tokens) == (world.settings.bases_dir / "0123", 2048)

    def test_of_a_job_is_told_the_jobs_adapter_and_lengths(self, world: Any, requests: Requests) -> None:
        asked = requests.evaluation(job_id=requests.finished_job(prepared_hash="gone"))
        spec = EvaluationSpec.model_validate_json(requests.spec_of(asked))
        assert spec.adapter_archive.read_bytes() == b"its archive"
        assert (spec.model_name, spec.max_row_tokens, spec.validation_file) == ("ft:mine", 512, None)
        # Prepared anew with the same weights: what the base is now is as good.
        assert spec.prepared_dir == world.settings.bases_dir / "0123"

    def test_of_a_job_is_never_on_other_weights_than_the_jobs(self, world: Any, requests: Requests) -> None:
        job_id = requests.finished_job(base_hash="as it was", prepared_hash="earlier")
        asked = requests.evaluation(job_id=job_id)
        requests.run(asked, MEASURED)
        row = requests.found_evaluation(asked)
        assert (row.error_code, row.error_param) == ("artefact_missing", "fine_tuning_job")
        assert "was prepared anew after the job" in str(row.error_message)
        (world.settings.bases_dir / "earlier").mkdir()
        again = requests.evaluation(job_id=job_id)
        spec = EvaluationSpec.model_validate_json(requests.spec_of(again))
        assert spec.prepared_dir == world.settings.bases_dir / "earlier"

    @pytest.mark.parametrize("what", ["adapter", "report"])
    def test_of_a_job_whose_files_are_gone_fails(self, world: Any, requests: Requests, what: str) -> None:
        job_id = requests.finished_job()
        asked = requests.evaluation(job_id=job_id)
        world.storage.delete(f"{job_id}/{what}")
        requests.run(asked, MEASURED)
        row = requests.found_evaluation(asked)
        assert (row.error_code, row.error_param) == ("artefact_missing", "fine_tuning_job")

    def test_of_a_job_whose_model_was_deleted_meanwhile_fails(self, world: Any, requests: Requests) -> None:
        asked = requests.evaluation(job_id=requests.finished_job())
        with world.db.transaction() as session:
            session.get_one(FineTunedModel, "ft:mine").deleted_at = 1.0
        requests.run(asked, MEASURED)
        row = requests.found_evaluation(asked)
        assert (row.error_code, row.error_param) == ("artefact_missing", "fine_tuning_job")
        assert "was deleted before" in str(row.error_message)

    def test_a_damaged_archive_fails_it(self, world: Any, requests: Requests) -> None:
        asked = requests.evaluation()
        for key in world.storage.keys("files"):
            world.storage.put(key, b"other bytes")
        requests.run(asked, MEASURED)
        row = requests.found_evaluation(asked)
        assert (row.error_code, row.error_param) == ("invalid_adapter", "adapter_file")

    @pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "nothing"])
    def test_a_report_outside_the_work_folder_is_refused(self, world: Any, requests: Requests, name: str) -> None:
        asked = requests.evaluation()
        world.settings.work_dir.mkdir(parents=True, exist_ok=True)
        (world.settings.work_dir / "secret").write_text("x")
        requests.run(asked, child(EvaluationResultMessage(report=name)))
        assert requests.found_evaluation(asked).error_code == "internal_error"
        assert world.storage.keys("evaluations") == []

    def test_a_stale_holder_publishes_nothing(self, world: Any, requests: Requests) -> None:
        asked = requests.evaluation()

        class Takeover(type(world.storage)):  # type: ignore[misc]
            """Another worker takes over while the report is being stored."""

            def put_file(self, key: str, path: Path) -> None:
                super().put_file(key, path)
                world.set_work(asked.work_id, lease_token="another holder's")

        storage = Takeover(world.settings.resolved_storage_url)
        commands = {WorkKind.EVALUATE_ADAPTER: MEASURED}
        assert run_work(Runtime(world.settings, world.db, storage, commands), asked.work_id, NEVER)
        row = requests.found_evaluation(asked)
        assert (row.status, row.report_key) == (RequestStatus.RUNNING, None)
        assert world.storage.keys("evaluations") == []


@pytest.fixture(params=["preflight", "evaluation"])
def asked(request: pytest.FixtureRequest, requests: Requests) -> Asked:
    return requests.preflight() if request.param == "preflight" else requests.evaluation()


def row_of(requests: Requests, asked: Asked) -> Preflight | Evaluation:
    is_preflight = asked.id.startswith("preflight-")
    return requests.found_preflight(asked) if is_preflight else requests.found_evaluation(asked)


class TestLostWorkers:
    def test_a_killed_child_is_tried_again_and_then_counts_as_lost(
        self, world: Any, requests: Requests, asked: Asked
    ) -> None:
        die = world.commands("die")[WorkKind.PREFLIGHT]
        for attempt in (1, 2):
            requests.run(asked, die)
            assert row_of(requests, asked).status == RequestStatus.QUEUED
            assert world.work(asked.work_id).attempt == attempt
            world.set_work(asked.work_id, available_at=0.0)
        requests.run(asked, die)
        row = row_of(requests, asked)
        assert (row.status, row.error_code) == (RequestStatus.FAILED, "worker_lost")

    def test_an_expired_lease_is_taken_up_by_the_next_worker(
        self, world: Any, requests: Requests, asked: Asked
    ) -> None:
        self._abandon(world, asked, attempt=1)
        housekeeper = Housekeeper(world.settings, world.db, world.storage, _no_bell)
        assert housekeeper.reap() == [asked.work_id]
        assert row_of(requests, asked).status == RequestStatus.QUEUED
        world.set_work(asked.work_id, available_at=0.0)
        requests.run(asked, LOOKED if asked.id.startswith("preflight-") else MEASURED)
        assert row_of(requests, asked).status == RequestStatus.SUCCEEDED
        assert world.work(asked.work_id).attempt == 2

    def test_the_last_attempts_end_is_a_failure_and_its_folder_goes(
        self, world: Any, requests: Requests, asked: Asked
    ) -> None:
        self._abandon(world, asked, attempt=3)
        folder = world.settings.work_dir / asked.work_id
        folder.mkdir(parents=True)
        housekeeper = Housekeeper(world.settings, world.db, world.storage, _no_bell)
        housekeeper.sweep()
        row = row_of(requests, asked)
        assert (row.status, row.error_code) == (RequestStatus.FAILED, "worker_lost")
        assert row.finished_at is not None
        assert world.work(asked.work_id).state == WorkState.FAILED
        assert not folder.exists()

    def test_work_on_a_request_that_is_over_is_dropped(self, world: Any, requests: Requests, asked: Asked) -> None:
        with world.db.transaction() as session:
            session.merge(row_of(requests, asked)).status = RequestStatus.SUCCEEDED
        requests.run(asked, world.commands("die")[WorkKind.PREFLIGHT])
        assert world.work(asked.work_id).state == WorkState.CANCELLED
        assert row_of(requests, asked).error_code is None

    def _abandon(self, world: Any, asked: Asked, *, attempt: int) -> None:
        """Its worker died in the given attempt."""
        world.set_work(asked.work_id, attempt=attempt - 1)
        table = Preflight if asked.id.startswith("preflight-") else Evaluation
        with world.db.transaction() as session:
            assert claim(session, asked.work_id, "dead worker", lease_seconds=30.0)
            session.get_one(table, asked.id).status = RequestStatus.RUNNING
        world.set_work(asked.work_id, lease_expires_at=1.0)


def test_a_worker_that_shuts_down_hands_it_back_without_counting(
    world: Any, requests: Requests, asked: Asked, eventually: Eventually
) -> None:
    drain = threading.Event()
    thread = threading.Thread(target=run_work, args=(world.runtime("wait"), asked.work_id, drain))
    thread.start()
    eventually(lambda: row_of(requests, asked).status == RequestStatus.RUNNING)
    drain.set()
    thread.join(30)
    assert not thread.is_alive()
    assert row_of(requests, asked).status == RequestStatus.QUEUED
    work = world.work(asked.work_id)
    assert (work.state, work.attempt) == (WorkState.QUEUED, 0)


def test_the_jobs_rows_are_left_alone(world: Any, requests: Requests) -> None:
    job_id = requests.finished_job()
    requests.run(requests.evaluation(job_id=job_id), MEASURED)
    with world.db.transaction() as session:
        job = session.get_one(Job, job_id)
    assert (job.status, job.report_key) == (JobStatus.SUCCEEDED, f"{job_id}/report")
    assert world.events(job_id) == []


def _no_bell() -> Any:
    raise AssertionError("nothing waits that was not announced")
