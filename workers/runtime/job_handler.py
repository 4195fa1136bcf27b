"""Running a fine-tuning job: `python -m workers.stages`."""

import json
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.audit.log import SERVICE, record
from app.contracts.decision import withheld_message
from app.contracts.gate import GateDecision
from app.contracts.methods import Replay
from app.contracts.plan import TrainingPlan
from app.contracts.progress import KEPT_CHECKPOINTS, CheckpointMessage, FailureMessage, JobResultMessage, Message
from app.contracts.protection import Protection
from app.contracts.specs import SPEC_FILE, JobSpec, StartAdapter
from app.contracts.states import FailureCode, JobStatus, WorkState
from app.ids import new_id
from app.models import Checkpoint, File, FineTunedModel, Job, add_event, model_name
from app.settings import Settings
from app.storage import ObjectStorage
from workers.runtime import job_rows
from workers.runtime.checkpoint_rows import release_checkpoints
from workers.runtime.handler import Result, StopRequest, WorkFailedError, WorkHandler, put_spec
from workers.runtime.inputs import Input, fetch, find_base, find_upload
from workers.runtime.job_results import STEP_METRICS_NAME, StoredFile, StoredJob, store_checkpoint, store_job
from workers.runtime.lease import Lease


class JobHandler(WorkHandler):
    """Trains, evaluates and packages an adapter for a tenant."""

    module = "workers.stages"
    _job: Job
    _model_name: str
    _prepared_dir: Path
    _is_begun_anew: bool
    _training: Input
    _validation: Input | None
    _start: Input | None

    def __init__(self, settings: Settings, storage: ObjectStorage, lease: Lease) -> None:
        super().__init__(settings, storage, lease)
        self._kept: dict[int, StoredFile] = {}
        self._stale: list[str] = []

    @property
    def reaches_out(self) -> bool:
        return self._settings.evaluation.reaches_out

    @property
    def key_variables(self) -> frozenset[str]:
        return self._settings.evaluation.key_variables

    def is_over(self, session: Session) -> bool:
        status = session.scalar(select(Job.status).where(Job.id == self.lease.subject_id))
        return status is None or JobStatus(status).is_final

    def begin(self, session: Session, folder: Path) -> None:
        job = session.get_one(Job, self.lease.subject_id)
        self._job = job
        self._model_name = model_name(job, self._settings.organization)
        job_rows.mark_started(session, job.id, self.lease.attempt, self.lease.max_attempts)
        job.progress = None
        begun_on = _base_of(folder, self._settings)
        # A base that was prepared anew since is another one. What was begun is ended on the one it was begun on; where
        # that is gone, or nothing is left here, it is begun anew: what a stage handed on are files of its folder.
        self._is_begun_anew = begun_on is None
        if begun_on is None:
            job.stages = {}
        self._prepared_dir = begun_on or find_base(session, self._settings, job.base_id)
        self._training = find_upload(session, job.training_file, "training_file")
        self._validation = find_upload(session, job.validation_file, "validation_file") if job.validation_file else None
        self._start = _start(job)

    def write_spec(self, folder: Path) -> None:
        if self._is_begun_anew:
            shutil.rmtree(folder)
            folder.mkdir()
        training_file = fetch(self._storage, self._training, folder)
        protection = Protection.model_validate(self._job.protection)
        spec = JobSpec(
            job_id=self._job.id,
            base_id=self._job.base_id,
            prepared_dir=self._prepared_dir,
            training_file=training_file,
            training_file_sha256=self._training.sha256,
            validation_file=fetch(self._storage, self._validation, folder) if self._validation else None,
            plan=TrainingPlan.model_validate(self._job.plan),
            start=self._start_adapter(folder),
            is_auto=protection.is_auto,
            drop_flagged_rows=protection.drop_flagged_rows,
            risk_policy=self._settings.risk,
            evaluation=self._settings.evaluation,
            gate=protection.gate,
            model_name=self._model_name,
            num_processes=self._settings.training_processes,
            micro_batch_divisor=self._job.micro_batch_divisor,
            finished_stages=self._job.stages,
        )
        put_spec(folder, spec)

    def stop_requested(self, session: Session, *, is_last_look: bool = False) -> StopRequest | None:
        query = select(Job.stop_requested).where(Job.id == self.lease.subject_id)
        match session.scalar(query.with_for_update() if is_last_look else query):
            case "cancel":
                return "cancel"
            case "pause":
                return "pause"
            case _:
                return None

    def keep(self, folder: Path, messages: Sequence[Message]) -> None:
        # Of more than are kept of a job the first would only be deleted again.
        for message in [m for m in messages if isinstance(m, CheckpointMessage)][-KEPT_CHECKPOINTS:]:
            stored = store_checkpoint(self._storage, self.lease, folder, message)
            if stored is not None:
                self._kept[message.step] = stored

    def apply(self, session: Session, messages: Sequence[Message]) -> None:
        self._stale = job_rows.apply(session, self.lease.subject_id, self._model_name, messages, self._kept)

    def unkept(self, session: Session) -> Collection[str]:
        keys = {stored.key for stored in self._kept.values()}
        session.execute(select(Job.id).where(Job.id == self.lease.subject_id).with_for_update())
        return keys - set(session.scalars(select(Checkpoint.adapter_key).where(Checkpoint.adapter_key.in_(keys))))

    def tidy(self) -> None:
        for key in self._stale:
            self._storage.discard(key)
        self._stale = []

    def store(self, folder: Path, result: Result) -> StoredJob:
        if not isinstance(result, JobResultMessage):
            raise WorkFailedError(FailureCode.INTERNAL_ERROR, "The job ended with another kind of result.")
        return store_job(self._storage, self.lease, folder, result)

    def unpublished(self, session: Session, stored: StoredJob) -> Collection[str]:
        query = select(Job.adapter_key).where(Job.id == self.lease.subject_id)
        published = session.scalar(query.with_for_update())
        return () if published == stored.adapter.key else stored.keys

    def succeed(self, session: Session, stored: StoredJob) -> None:
        """Publishes the model, or keeps it back: a model that the gate withheld is stored, and the job has failed."""
        # Not the row of the beginning: the pre-flight may have changed it since.
        job = session.get_one(Job, self._job.id, populate_existing=True)
        metrics = _metrics_file(job, stored)
        session.add(metrics)
        results = {
            "trained_tokens": stored.trained_tokens,
            "result_files": [metrics.id],
            "adapter_key": stored.adapter.key,
            "adapter_sha256": stored.adapter.sha256,
            "adapter_bytes": stored.adapter.size_bytes,
            "adapter_rank": stored.adapter_rank,
            "base_hash": stored.base_hash,
            "report_key": stored.report.key,
            "stop_requested": None,
        }
        if stored.gate is not None:
            protection = Protection.model_validate(job.protection).model_copy(update={"decision": stored.gate})
            results["protection"] = protection.model_dump(mode="json")
        if stored.gate is not None and not stored.gate.released:
            self._withhold(session, job, stored.gate, results)
            return
        release_checkpoints(session, job.id, stored)
        session.add(FineTunedModel(id=self._model_name, project_id=job.project_id, job_id=job.id, base_id=job.base_id))
        job_rows.move(session, job.id, JobStatus.SUCCEEDED, fine_tuned_model=self._model_name, **results)
        add_event(session, job.id, f"New fine-tuned model created: {self._model_name}")
        add_event(session, job.id, "The job has successfully completed")
        record(session, SERVICE, job.project_id, "model.published", self._model_name, {"job": job.id})

    def _start_adapter(self, folder: Path) -> StartAdapter | None:
        if self._start is None:
            return None
        assert self._job.start_base_hash is not None, "stored together with the key"
        return StartAdapter(
            archive=fetch(self._storage, self._start, folder),
            sha256=self._start.sha256,
            model=self._job.model,
            base_hash=self._job.start_base_hash,
        )

    def _withhold(self, session: Session, job: Job, gate: GateDecision, results: dict[str, Any]) -> None:
        code = FailureCode.SAFETY_GATE
        message = withheld_message(gate, TrainingPlan.model_validate(job.plan).method.name)
        job_rows.move(session, job.id, JobStatus.FAILED, error_code=code, error_message=message, **results)
        add_event(session, job.id, message, level="error", data={"code": code.value})
        record(session, SERVICE, job.project_id, "model.withheld", self._model_name, {"job": job.id})

    def fail(self, session: Session, failure: FailureMessage) -> None:
        job_rows.move(
            session,
            self.lease.subject_id,
            JobStatus.FAILED,
            error_code=failure.code,
            error_message=failure.message,
            error_param=failure.param,
            stop_requested=None,
        )
        add_event(session, self.lease.subject_id, failure.message, level="error", data={"code": failure.code.value})

    def requeue(self, session: Session, reason: str) -> None:
        # An attempt that failed before it began has left the job where it was.
        if session.scalar(select(Job.status).where(Job.id == self.lease.subject_id)) != JobStatus.QUEUED:
            job_rows.move(session, self.lease.subject_id, JobStatus.QUEUED)
        add_event(session, self.lease.subject_id, f"{reason} The job waits for its next attempt.", level="warn")

    def need_less_memory(self, session: Session) -> str | None:
        job = session.get_one(Job, self.lease.subject_id, populate_existing=True)
        plan = TrainingPlan.model_validate(job.plan)
        # With replayed rows beside it there is something to divide even in a batch of one row.
        if job.micro_batch_divisor > 1 or (plan.batch_size == 1 and not isinstance(plan.method, Replay)):
            return None
        job.micro_batch_divisor = 2
        return (
            "The training process ran out of memory. It is tried again with half the micro-batch and twice the "
            f"accumulation; the effective batch stays at {plan.batch_size} row{'s' if plan.batch_size > 1 else ''}."
        )

    def stop(self, session: Session, request: StopRequest) -> WorkState:
        is_pause = request == "pause"
        status = JobStatus.PAUSED if is_pause else JobStatus.CANCELLED
        job_rows.move(session, self.lease.subject_id, status, stop_requested=None)
        add_event(session, self.lease.subject_id, f"Fine-tuning job {status}")
        job = session.get_one(Job, self.lease.subject_id)
        record(session, SERVICE, job.project_id, f"job.{status}", job.id)
        return WorkState.PAUSED if is_pause else WorkState.CANCELLED


def _base_of(folder: Path, settings: Settings) -> Path | None:
    """The prepared base that earlier attempts in the folder worked on, if both are there."""
    try:
        spec = json.loads((folder / SPEC_FILE).read_bytes())
        prepared_dir = settings.bases_dir / Path(spec["prepared_dir"]).name
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return prepared_dir if prepared_dir.is_dir() else None


def _start(job: Job) -> Input | None:
    if job.start_adapter_key is None:
        return None
    assert job.start_adapter_sha256 is not None, "stored together with the key"
    return Input("model", job.start_adapter_key, job.start_adapter_sha256)


def _metrics_file(job: Job, stored: StoredJob) -> File:
    return File(
        id=new_id("file-"),
        project_id=job.project_id,
        filename=STEP_METRICS_NAME,
        purpose="fine-tune-results",
        bytes=stored.step_metrics.size_bytes,
        sha256=stored.step_metrics.sha256,
        storage_key=stored.step_metrics.key,
        status="processed",
    )
