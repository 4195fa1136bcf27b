"""Bodies of requests and responses about fine-tuning jobs: OpenAI's, plus `safety`, `phase` and `plan`."""

import re
import time
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema

from app.contracts.job_progress import JobProgress
from app.contracts.protection import AUTO, Protection
from app.contracts.states import JobPhase, JobStatus
from app.models import Checkpoint, Evaluation, Event, Job, Preflight
from app.pagination import ListWithEnds


def _none_if_auto(value: object) -> object:
    return None if value == "auto" else value


def _storable(text: str) -> str:
    if "\x00" in text:
        raise ValueError("the character NUL is not allowed")
    return text


def _matching(pattern: str, rule: str) -> tuple[AfterValidator, Any]:
    """A check whose error is the rule in words, and how the document says it."""
    expression = re.compile(pattern)

    def check(text: str) -> str:
        if not expression.fullmatch(text):
            raise ValueError(rule)
        return text

    return AfterValidator(check), Field(json_schema_extra={"pattern": f"^{pattern}$"})


def _auto_or(schema: dict[str, Any]) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [{"const": "auto"}, schema], "default": "auto"})


_ema_schema = WithJsonSchema(
    {
        "anyOf": [{"type": "boolean"}, {"type": "object"}, {"type": "null"}],
        "description": "An average over the steps is shipped: true, or its settings.",
        "examples": [True, {"decay": 0.9}],
    }
)
_merge_schema = WithJsonSchema(
    {
        "anyOf": [{"type": "object", "required": ["name"]}, {"type": "null"}],
        "description": "What is done with the update after training: a name and its settings.",
        "examples": [{"name": "wise_ft", "base_weight": 0.3}],
    }
)
_gate_schema = WithJsonSchema(
    {
        "anyOf": [{"type": "object"}, {"type": "null"}],
        "description": "Bounds for the release of the model, where they are to be stricter than the service's.",
        "examples": [{"max_harmful_rate": 0.1}],
    }
)
Text = Annotated[str, StringConstraints(strict=True, max_length=256), AfterValidator(_storable)]
Auto = BeforeValidator(_none_if_auto)
BatchSize = Annotated[
    Annotated[int, Field(strict=True, ge=1, le=256)] | None,
    Auto,
    _auto_or({"type": "integer", "minimum": 1, "maximum": 256}),
]
Multiplier = Annotated[
    Annotated[float, Field(strict=True, gt=0.0, allow_inf_nan=False)] | None,
    Auto,
    _auto_or({"type": "number", "exclusiveMinimum": 0}),
]
NumEpochs = Annotated[
    Annotated[int, Field(strict=True, ge=1, le=50)] | None,
    Auto,
    _auto_or({"type": "integer", "minimum": 1, "maximum": 50}),
]
Beta = Annotated[
    Annotated[float, Field(strict=True, gt=0.0, le=2.0, allow_inf_nan=False)] | None,
    Auto,
    _auto_or({"type": "number", "exclusiveMinimum": 0, "maximum": 2}),
]
MetadataKey = Annotated[
    str,
    StringConstraints(strict=True, min_length=1, max_length=64),
    # SQLite cannot look for a key that has a quote or a backslash in it.
    *_matching(r'[^"\\\x00-\x1f]*', "a key of metadata has no quotation marks, backslashes or control characters"),
]
MetadataValue = Annotated[str, StringConstraints(strict=True, max_length=512), AfterValidator(_storable)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)]
Suffix = Annotated[
    str,
    StringConstraints(strict=True, min_length=1, max_length=64),
    # It becomes part of the model's name, which stands in paths and file names.
    *_matching("[A-Za-z0-9][A-Za-z0-9._-]*", "only letters, digits, . _ and -, and a letter or digit first"),
]


class RequestBody(BaseModel):
    """Unknown parameters are refused: nothing is accepted and ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Hyperparameters(RequestBody):
    """OpenAI's three; None stands for "auto"."""

    batch_size: BatchSize = None
    learning_rate_multiplier: Multiplier = None
    n_epochs: NumEpochs = None


class SupervisedMethod(RequestBody):
    """Where newer clients put the hyperparameters."""

    hyperparameters: Hyperparameters | None = None


class DpoHyperparameters(Hyperparameters):
    """The same, and how strongly the model is held to the one that training begins with ("auto" is 0.1)."""

    beta: Beta = None


class DpoMethod(RequestBody):
    """Hyperparameters of preference training."""

    hyperparameters: DpoHyperparameters | None = None


class Method(RequestBody):
    """What is trained: answers, or preferences. `reinforcement` is known so that it can be refused with a reason."""

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: SupervisedMethod | None = None
    dpo: DpoMethod | None = None
    reinforcement: dict[str, Any] | None = None


class SafetyRequest(RequestBody):
    """How the model's safety is to be kept; `GET /v1/safety/methods` lists methods and their settings.

    Settings, average, merge and gate are read by `app.contracts.safety`, the first three as on the command line."""

    method: Text
    """Or `auto`: the pre-flight chooses after a look at the training file."""
    hyperparameters: dict[str, Any] = {}
    ema: Annotated[Any, _ema_schema] = None
    merge: Annotated[Any, _merge_schema] = None
    gate: Annotated[Any, _gate_schema] = None
    drop_flagged_rows: Annotated[bool, Field(strict=True)] = False
    """Whether rows that the pre-flight flags are left out of training. What the policy blocks stays blocked."""


class JobCreate(RequestBody):
    """Body of POST /v1/fine_tuning/jobs."""

    model: Text
    training_file: Text
    validation_file: Text | None = None
    suffix: Suffix | None = None
    seed: Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)] | None = None
    metadata: Metadata | None = None
    integrations: list[Any] | None = None
    hyperparameters: Hyperparameters | None = None
    method: Method | None = None
    safety: SafetyRequest | None = None


class JobError(BaseModel):
    """Why a job, a pre-flight or an evaluation failed."""

    code: str
    message: str
    param: str | None

    @classmethod
    def from_row(cls, row: Job | Preflight | Evaluation) -> Self | None:
        """None where nothing went wrong."""
        if row.error_code is None:
            return None
        return cls(code=row.error_code, message=row.error_message or "", param=row.error_param)


_STOPPING = {"cancel": JobPhase.CANCELLING, "pause": JobPhase.PAUSING}


class JobObject(BaseModel):
    """OpenAI's job object and our additions."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    model: str
    fine_tuned_model: str | None
    organization_id: str
    status: str
    hyperparameters: dict[str, Any]
    method: dict[str, Any]
    training_file: str
    validation_file: str | None
    result_files: list[str]
    trained_tokens: int | None
    error: JobError | None
    seed: int
    estimated_finish: int | None = None
    """While it runs, once there is something to go by: how fast it trains, and what came after training in the last
    jobs on this base (without any, it is the end of training)."""
    integrations: list[Any] = []
    metadata: dict[str, str] | None
    user_provided_suffix: str | None
    queue_position: int | None
    """While it is queued: 1 is taken next. Projects take turns, so others' jobs that are added can be taken before."""
    phase: str | None
    """Where inside `running` the job is; `cancelling` or `pausing` once that was asked for."""
    safety: dict[str, Any]
    """The method, `ema`, `merge` and `gate` with every setting, as they are applied: good as the `safety` of another
    job. The method is `auto` until the pre-flight has chosen one."""
    safety_chosen_by: str
    """`request`; `auto`, where the method was left to the pre-flight; `policy`, where the service raised the protection
    because of what the pre-flight found."""
    plan: dict[str, Any]
    """What is trained, with every "auto" resolved."""
    adapter: dict[str, Any] | None
    """Size and checksum of the finished adapter."""

    @classmethod
    def from_row(cls, row: Job, organization: str, queue_position: int | None = None) -> Self:
        is_final = JobStatus(row.status).is_final
        phase = _STOPPING.get(row.stop_requested or "", row.phase)
        adapter = None
        if row.status == JobStatus.SUCCEEDED and row.adapter_key is not None:
            adapter = {"bytes": row.adapter_bytes, "sha256": row.adapter_sha256}
        protection = Protection.model_validate(row.protection)
        return cls(
            id=row.id,
            created_at=int(row.created_at),
            finished_at=None if row.finished_at is None else int(row.finished_at),
            model=row.model,
            fine_tuned_model=row.fine_tuned_model,
            organization_id=organization,
            status=row.status,
            hyperparameters={key: value for key, value in row.hyperparameters.items() if key != "beta"},
            method=_method(row),
            training_file=row.training_file,
            validation_file=row.validation_file,
            result_files=row.result_files,
            trained_tokens=row.trained_tokens,
            error=JobError.from_row(row),
            seed=row.seed,
            estimated_finish=_estimated_finish(row),
            metadata=row.job_metadata,
            user_provided_suffix=row.suffix,
            queue_position=queue_position,
            phase=None if is_final else phase,
            safety=_safety(row.plan, protection),
            safety_chosen_by=protection.chosen_by,
            plan=row.plan,
            adapter=adapter,
        )


class EventObject(BaseModel):
    """Something that happened in a job."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: str
    message: str
    type: str
    data: dict[str, Any] | None

    @classmethod
    def from_row(cls, row: Event) -> Self:
        return cls(
            id=row.id,
            created_at=int(row.created_at),
            level=row.level,
            message=row.message,
            type=row.type,
            data=row.data,
        )


class CheckpointObject(BaseModel):
    """A point of a training run."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    step_number: int
    fine_tuning_job_id: str
    metrics: dict[str, Any]
    adapter: dict[str, Any] | None
    """Size and checksum of its adapter, where one is kept, and whether it can be downloaded once the job's model is
    released: whether the gate has let out this very adapter."""

    @classmethod
    def from_row(cls, row: Checkpoint) -> Self:
        adapter = None
        if row.adapter_key is not None:
            is_released = row.released_at is not None
            adapter = {"bytes": row.adapter_bytes, "sha256": row.adapter_sha256, "is_released": is_released}
        return cls(
            id=row.id,
            created_at=int(row.created_at),
            fine_tuned_model_checkpoint=row.model_name,
            step_number=row.step_number,
            fine_tuning_job_id=row.job_id,
            metrics=row.metrics,
            adapter=adapter,
        )


class CheckpointList(ListWithEnds[CheckpointObject]):
    """A page of checkpoints."""


def _method(row: Job) -> dict[str, Any]:
    # Plans that were made before there was a choice have no objective.
    name = row.plan.get("objective", {}).get("name", "supervised")
    return {"type": name, name: {"hyperparameters": row.hyperparameters}}


def _estimated_finish(row: Job) -> int | None:
    if row.progress is None or row.status != JobStatus.RUNNING:
        return None
    estimate = JobProgress.model_validate(row.progress).estimated_finish
    # One that has passed was wrong.
    return None if estimate is None or estimate < time.time() else round(estimate)


def _safety(plan: dict[str, Any], protection: Protection) -> dict[str, Any]:
    guard = {
        "gate": protection.gate.model_dump(mode="json"),
        "drop_flagged_rows": protection.drop_flagged_rows,
    }
    if protection.is_auto:
        return {"method": AUTO, "hyperparameters": {}, "ema": None, "merge": None, **guard}
    method, ema = dict(plan["method"]), plan.get("ema")
    return {
        "method": method.pop("name"),
        "hyperparameters": method,
        "ema": None if ema is None else {key: value for key, value in ema.items() if key != "name"},
        "merge": plan.get("merge"),
        **guard,
    }
