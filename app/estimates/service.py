"""What can be known of a job before there is one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

from sqlalchemy.orm import Session

from app.auth.schemas import Tenant
from app.catalog.ready import ready_base
from app.contracts.counting import CountResult, CountSpec, TokenCounts
from app.contracts.datasets import FileValidation
from app.contracts.evaluation_plan import EvaluationPlan
from app.contracts.gate import GatePolicy
from app.contracts.plan import TrainingPlan
from app.contracts.protection import AUTO
from app.db import Database
from app.downloads import missing_object
from app.errors import InvalidRequestError, NotFoundError
from app.estimates import repository
from app.estimates.counter import beginning_of
from app.estimates.repository import MeasuredJob
from app.estimates.schemas import EstimateObject, PreviewObject
from app.files.purposes import FINE_TUNE
from app.files.repository import get as get_file
from app.jobs.admission import Admitted, admit
from app.jobs.schemas import JobCreate
from app.models import File
from app.storage import ObjectStorage

_MOST_PREVIEW_BYTES = 4 * 1024 * 1024
_TOKENS_OF_A_PRICE = 1_000_000


class Price(NamedTuple):
    """What a million trained tokens cost."""

    amount: float
    currency: str


class _Asked(NamedTuple):
    """A job that would be made."""

    job: Admitted
    model_dir: Path
    measured: list[MeasuredJob]


@dataclass(frozen=True)
class EstimateService:
    """Estimates and previews for projects."""

    database: Database
    storage: ObjectStorage
    bases_dir: Path
    count: Callable[[CountSpec], CountResult]
    max_bytes: int
    """Of a file, from its beginning: what is read of it."""
    price: Price | None
    gate: GatePolicy = field(default_factory=GatePolicy)
    """The provider's."""
    evaluation: EvaluationPlan = field(default_factory=EvaluationPlan)

    def estimate(self, tenant: Tenant, request: JobCreate) -> EstimateObject:
        """Checks a job's body as its creation would, and says what the job would be.

        Raises:
            InvalidRequestError: The job would be refused, or would fail at a row that cannot be trained on.
            NotFoundError: There is no such model.
            EstimatesUnavailableError: Tokens cannot be counted here.
        """
        asked = self._asked(tenant, request)
        key = asked.job.training_file.storage_key
        with (
            missing_object(lambda: self._asked(tenant, request)),
            beginning_of(self.storage, key, self.max_bytes) as (path, is_whole),
        ):
            spec = CountSpec(model_dir=asked.model_dir, file=path, max_row_tokens=asked.job.plan.max_row_tokens)
            found = self.count(spec)
        if found.problem is not None:
            what = f"Line {found.problem.line} cannot be trained on: {found.problem.message}"
            raise InvalidRequestError(what, param="training_file", code="invalid_training_file")
        assert found.counts is not None, "asked for"
        return self._estimate(request, asked, found.counts, is_whole=is_whole)

    def preview(self, tenant: Tenant, file_id: str, model: str, limit: int) -> PreviewObject:
        """The first rows of a file as a job on the model would see them.

        Raises:
            NotFoundError: There is no such file or model.
            InvalidRequestError: The file is no training file, or the model is not ready.
            EstimatesUnavailableError: Tokens cannot be counted here.
        """
        with self.database.reading() as session:
            file = _training_file(session, tenant, file_id)
            base = ready_base(session, tenant, model)
        validation = FileValidation.model_validate(file.validation)
        max_row_tokens = TrainingPlan().max_row_tokens
        with (
            missing_object(lambda: self._training_file(tenant, file_id)),
            beginning_of(self.storage, file.storage_key, _MOST_PREVIEW_BYTES) as (path, _),
        ):
            spec = CountSpec(
                model_dir=self._model_dir(base.prepared_hash),
                file=path,
                max_row_tokens=max_row_tokens,
                num_previews=limit,
                is_preview_only=True,
            )
            found = self.count(spec)
        return PreviewObject(
            file=file_id,
            model=model,
            format=validation.format,
            num_rows=validation.statistics.num_rows,
            max_row_tokens=max_row_tokens,
            data=list(found.previews),
        )

    def _asked(self, tenant: Tenant, request: JobCreate) -> _Asked:
        with self.database.transaction() as session:
            job = admit(session, tenant, request, self.gate, self.evaluation)
            base = job.start.base
            measured = repository.measured_jobs(session, base.id, job.plan.model_dump(mode="json"))
            return _Asked(job, self._model_dir(base.prepared_hash), measured)

    def _model_dir(self, prepared_hash: str | None) -> Path:
        assert prepared_hash is not None, "a base is ready once it is prepared"
        return self.bases_dir / prepared_hash / "model"

    def _training_file(self, tenant: Tenant, file_id: str) -> File:
        with self.database.reading() as session:
            return _training_file(session, tenant, file_id)

    def _estimate(self, request: JobCreate, asked: _Asked, counts: TokenCounts, *, is_whole: bool) -> EstimateObject:
        plan, num_rows = asked.job.plan, asked.job.validation.statistics.num_rows
        scaled = partial(_scaled, num_rows=num_rows, num_counted=counts.num_rows)
        trained_tokens = scaled(counts.num_trained_tokens) * plan.num_epochs
        is_auto = request.safety is not None and request.safety.method == AUTO
        notes = _notes(request, plan, counts, is_whole=is_whole, is_auto=is_auto)
        seconds, seconds_reason = _seconds([] if is_auto else asked.measured, trained_tokens, plan, is_auto=is_auto)
        cost, cost_reason = _cost(self.price, trained_tokens)
        return EstimateObject(
            model=request.model,
            training_file=request.training_file,
            validation_file=request.validation_file,
            format=asked.job.validation.format,
            hyperparameters=asked.job.hyperparameters,
            plan=plan.model_dump(mode="json"),
            num_rows=num_rows,
            num_rows_counted=counts.num_rows,
            num_steps=plan.num_epochs * -(-num_rows // plan.batch_size),
            file_tokens=scaled(counts.num_tokens),
            trained_tokens=trained_tokens,
            longest_row_tokens=counts.longest_row_tokens,
            max_row_tokens=counts.row_limit,
            num_cut_rows=scaled(counts.num_cut_rows),
            is_exact=not notes,
            seconds_estimate=seconds,
            seconds_reason=seconds_reason,
            cost_estimate=cost,
            currency=None if self.price is None else self.price.currency,
            cost_reason=cost_reason,
            notes=notes,
        )


def _training_file(session: Session, tenant: Tenant, file_id: str) -> File:
    file = get_file(session, tenant.project_id, file_id)
    if file is None:
        raise NotFoundError(f"No such File object: {file_id}", param="id")
    if file.purpose != FINE_TUNE:
        what = f"{file_id} has the purpose {file.purpose}: only training files have rows to show."
        raise InvalidRequestError(what, param="id", code="invalid_file")
    return file


def _scaled(number: int, *, num_rows: int, num_counted: int) -> int:
    return number if num_counted == num_rows else round(number * num_rows / num_counted)


def _notes(request: JobCreate, plan: TrainingPlan, counts: TokenCounts, *, is_whole: bool, is_auto: bool) -> list[str]:
    """Why the job's tokens may be others."""
    notes = []
    if not is_whole:
        notes.append(
            f"The file is long: its first {counts.num_rows} rows were counted, and the rest taken to be alike."
        )
    if is_auto:
        notes.append("The pre-flight will choose the method, and some methods pass rows over.")
    elif plan.method.name == "lisa":
        notes.append("Lisa passes your rows over in its steps on the safety memory: fewer tokens will be trained.")
    if request.safety is not None and request.safety.drop_flagged_rows:
        notes.append("Rows that the pre-flight flags will be left out.")
    return notes


def _seconds(
    measured: Sequence[MeasuredJob], trained_tokens: int, plan: TrainingPlan, *, is_auto: bool
) -> tuple[float | None, str]:
    if is_auto:
        return None, "The pre-flight will choose the method, and methods take different times."
    if not measured:
        return None, f"No job with the method {plan.method.name} has finished on this base yet."
    a_token = median(job.training_seconds / job.trained_tokens for job in measured)
    beside = median(job.other_seconds for job in measured)
    reason = (
        f"Medians of the last {len(measured)} finished jobs with the method {plan.method.name} on this base: "
        f"{a_token:.3g} seconds a trained token, and {beside:.0f} seconds beside the training."
    )
    return round(a_token * trained_tokens + beside, 1), reason


def _cost(price: Price | None, trained_tokens: int) -> tuple[float | None, str]:
    if price is None:
        return None, "The service names no price."
    reason = f"{price.amount:g} {price.currency} for a million trained tokens."
    return round(price.amount * trained_tokens / _TOKENS_OF_A_PRICE, 6), reason
