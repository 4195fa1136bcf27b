"""What can be done with fine-tuning jobs."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app.audit.log import record
from app.auth.schemas import Tenant
from app.batching import Batched
from app.contracts.evaluation_plan import EvaluationPlan
from app.contracts.gate import GatePolicy
from app.contracts.limits import ProjectLimits
from app.contracts.states import JobStatus, WorkKind
from app.db import Database
from app.idempotency.created import created_id, made_before
from app.jobs import repository
from app.jobs.admission import admit
from app.jobs.control import JobControl
from app.jobs.line import Line
from app.jobs.schemas import CheckpointList, CheckpointObject, EventObject, JobCreate, JobObject
from app.jobs.streaming import EventStreams
from app.models import Job, add_event
from app.pagination import ListOf, ends
from app.projects.quotas import check_new_job
from app.queue import Publisher, enqueue

_PREFIX = "ftjob-"


@dataclass(frozen=True)
class JobService:
    """Jobs of projects."""

    database: Database
    publisher: Publisher
    organization: str
    max_attempts: int
    gate: GatePolicy = field(default_factory=GatePolicy)
    """The provider's; tenants may ask for a stricter one."""
    evaluation: EvaluationPlan = field(default_factory=EvaluationPlan)
    limits: ProjectLimits = field(default_factory=ProjectLimits)
    """The service's, for projects without their own."""
    cancel_wait_seconds: float = 5.0
    """How long a cancellation or a pause waits for a worker to let go before it answers with the state as it is."""
    _line: Line = field(init=False)
    _control: JobControl = field(init=False)
    _streams: EventStreams = field(init=False)
    _polls: Batched[tuple[str, str], bytes] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_polls", Batched(self._read))
        object.__setattr__(self, "_line", Line(self.limits))
        object.__setattr__(self, "_streams", EventStreams(self.database))
        object.__setattr__(self, "_control", JobControl(self.database, self.publisher, self.cancel_wait_seconds))

    def create(self, tenant: Tenant, request: JobCreate) -> JobObject:
        """Row, events and work in one transaction; the workers are told after it.

        Raises:
            InvalidRequestError: A parameter cannot be honoured.
            NotFoundError: There is no such model.
            QuotaError: The project may have no further job now.
        """
        with self.database.transaction() as session:
            if made := made_before(session, Job, _PREFIX):
                return self._shown(session, [made])[0]
            check_new_job(session, tenant)
            start, plan, shown, protection, *_ = admit(session, tenant, request, self.gate, self.evaluation)
            job = Job(
                id=created_id(_PREFIX),
                project_id=tenant.project_id,
                base_id=start.base.id,
                model=request.model,
                training_file=request.training_file,
                validation_file=request.validation_file,
                suffix=request.suffix,
                seed=plan.seed,
                job_metadata=request.metadata,
                hyperparameters=shown,
                plan=plan.model_dump(mode="json"),
                protection=protection.model_dump(mode="json"),
                status=JobStatus.QUEUED,
                result_files=[],
                stages={},
                **start.columns,
            )
            session.add(job)
            session.flush()
            add_event(session, job.id, f"Created fine-tuning job: {job.id}")
            add_event(session, job.id, f"Validating training file: {job.training_file}")
            add_event(session, job.id, "Files validated, moving job to queued state")
            enqueue(
                session,
                self.publisher,
                WorkKind.FINE_TUNING_JOB,
                job.id,
                max_attempts=self.max_attempts,
                project_id=tenant.project_id,
            )
            answer = self._shown(session, [job])[0]
            facts = {"model": job.model, "training_file": job.training_file, "validation_file": job.validation_file}
            record(session, tenant.key_id, tenant.project_id, "job.created", job.id, facts)
            return answer

    def list(
        self, tenant: Tenant, *, metadata: Mapping[str, str] | None, after: str | None, limit: int
    ) -> ListOf[JobObject]:
        with self.database.reading() as session:
            page = repository.list_page(session, tenant.project_id, metadata=metadata, after=after, limit=limit)
            data = list(self._shown(session, page.items))
        return ListOf[JobObject](data=data, has_more=page.has_more)

    async def get(self, tenant: Tenant, job_id: str) -> bytes:
        """The job object as JSON: what clients ask for again and again, so it is read and written in one go.

        Raises:
            NotFoundError: The project has none with this id.
        """
        found = await self._polls.get((tenant.project_id, job_id))
        if found is None:
            raise repository.missing(job_id)
        return found

    def _read(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], bytes]:
        """Job objects by project and id; what a project does not have is left out."""
        with self.database.reading() as session:
            wanted = frozenset(keys)
            found = repository.get_many(session, [job_id for _, job_id in keys])
            rows = [row for row in found if (row.project_id, row.id) in wanted]
            shown = self._shown(session, rows)
        return {(row.project_id, row.id): job.model_dump_json().encode() for row, job in zip(rows, shown, strict=True)}

    async def cancel(self, tenant: Tenant, job_id: str) -> JobObject:
        """See JobControl."""
        job = await self._control.cancel(partial(get_job, tenant=tenant, job_id=job_id), tenant.key_id)
        return await run_in_threadpool(self._object, job)

    async def pause(self, tenant: Tenant, job_id: str) -> JobObject:
        """See JobControl."""
        job = await self._control.pause(partial(get_job, tenant=tenant, job_id=job_id), tenant.key_id)
        return await run_in_threadpool(self._object, job)

    def resume(self, tenant: Tenant, job_id: str) -> JobObject:
        """See JobControl."""
        return self._object(self._control.resume(partial(get_job, tenant=tenant, job_id=job_id), tenant.key_id))

    def _object(self, job: Job) -> JobObject:
        with self.database.reading() as session:
            return self._shown(session, [job])[0]

    def _shown(self, session: Session, jobs: Sequence[Job]) -> Sequence[JobObject]:
        """The queue is looked at once, and only where one of the jobs waits in it."""
        places = self._line.positions(session, [job.id for job in jobs if job.status == JobStatus.QUEUED])
        return [JobObject.from_row(job, self.organization, places.get(job.id)) for job in jobs]

    def follow(self, tenant: Tenant, job_id: str, after: str | None) -> AsyncIterator[bytes]:
        """The job's events as they come (see EventStreams); raises what its `start` raises."""
        return self._streams.follow(self._streams.start(tenant, job_id, after))

    def events(self, tenant: Tenant, job_id: str, *, after: str | None, limit: int) -> ListOf[EventObject]:
        with self.database.reading() as session:
            job = get_job(session, tenant, job_id)
            page = repository.events_page(session, job.id, after=after, limit=limit)
        data = [EventObject.from_row(event) for event in page.items]
        return ListOf[EventObject](data=data, has_more=page.has_more)

    def checkpoints(self, tenant: Tenant, job_id: str, *, after: str | None, limit: int) -> CheckpointList:
        with self.database.reading() as session:
            job = get_job(session, tenant, job_id)
            page = repository.checkpoints_page(session, job.id, after=after, limit=limit)
        data = [CheckpointObject.from_row(checkpoint) for checkpoint in page.items]
        return CheckpointList(data=data, has_more=page.has_more, **ends(data))


def get_job(session: Session, tenant: Tenant, job_id: str) -> Job:
    """The tenant's job.

    Raises:
        NotFoundError: The project has none with this id.
    """
    return repository.existing(session, tenant.project_id, job_id)
