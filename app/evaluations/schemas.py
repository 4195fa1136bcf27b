"""Bodies of requests and responses about evaluations of adapters."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, WithJsonSchema

from app.contracts.gate import GatePolicy
from app.contracts.states import RequestStatus
from app.jobs.schemas import JobError, RequestBody, Text
from app.models import Evaluation

_gate_schema = WithJsonSchema(
    {
        "anyOf": [{"type": "object"}, {"type": "null"}],
        "description": "Bounds that the report is held against, where they are to be stricter than the service's.",
        "examples": [{"max_harmful_rate": 0.1}],
    }
)


class EvaluationCreate(RequestBody):
    """Body of POST /v1/safety/evaluations: a job's adapter, a fine-tuned model's or a checkpoint's by its name, or an
    uploaded one with its base."""

    fine_tuning_job: Text | None = None
    adapter_file: Text | None = None
    model: Text | None = None
    """With an uploaded adapter the base to measure it on, whatever base its own settings name; alone a fine-tuned model
    or a checkpoint, which is measured on its own base."""
    validation_file: Text | None = None
    """Rows of the task; without it only safety and over-refusal are measured."""
    gate: Annotated[Any, _gate_schema] = None
    """Read by `app.contracts.safety`, as a job's is."""


class EvaluationObject(BaseModel):
    """What is known of an evaluation; its report is at `/report`."""

    id: str
    object: Literal["safety.evaluation"] = "safety.evaluation"
    created_at: int
    finished_at: int | None
    status: RequestStatus
    model: str
    fine_tuning_job: str | None
    checkpoint: str | None
    """Id of the checkpoint that is measured; of its job nothing is said, which may be another project's."""
    adapter_file: str | None
    validation_file: str | None
    gate: GatePolicy
    """What the report is held against. Nothing is withheld by it: an evaluation only tells."""
    error: JobError | None

    @classmethod
    def from_row(cls, row: Evaluation) -> Self:
        return cls(
            id=row.id,
            created_at=int(row.created_at),
            finished_at=None if row.finished_at is None else int(row.finished_at),
            status=RequestStatus(row.status),
            model=row.base_id,
            fine_tuning_job=None if row.checkpoint_id is not None else row.job_id,
            checkpoint=row.checkpoint_id,
            adapter_file=row.adapter_file,
            validation_file=row.validation_file,
            gate=GatePolicy.model_validate(row.gate),
            error=JobError.from_row(row),
        )
