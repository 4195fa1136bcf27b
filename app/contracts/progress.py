"""What a child process tells its supervisor: one JSON object a line on standard output.

The child never touches the database. The supervisor turns these into rows, guarded by its lease. In the other
direction the supervisor writes `stop` and a newline to the child's standard input (stop at the next step, keep a
checkpoint); end of file there means that the supervisor died, and the child ends itself.
"""

from enum import IntEnum
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from app.contracts.gate import GateDecision
from app.contracts.plan import TrainingPlan
from app.contracts.risk import DataRisk
from app.contracts.states import FailureCode, JobPhase
from app.contracts.value import Value

KEPT_CHECKPOINTS = 3
"""So many of a job's checkpoints have an adapter: the latest. Of the others the metrics stay."""


class ExitCode(IntEnum):
    """How a child process ends when it is not killed."""

    DONE = 0
    FAILED = 20
    """A Failure message was sent."""
    STOPPED = 21
    """It was asked to stop and left a checkpoint where it was training."""


class EventMessage(Value):
    """A sentence for the job's event list."""

    kind: Literal["event"] = "event"
    type: Literal["message", "moderation_checks"] = "message"
    """As the API shows it; `moderation_checks` carries OpenAI's categories in `data`."""
    level: Literal["info", "warn", "error"] = "info"
    message: str
    data: dict[str, Any] | None = None


class PhaseMessage(Value):
    """The job has entered a phase."""

    kind: Literal["phase"] = "phase"
    phase: JobPhase


class ProgressMessage(Value):
    """How far a long piece of work is; kept in memory for logs, not stored."""

    kind: Literal["progress"] = "progress"
    what: str
    done: int
    total: int


class MetricsMessage(Value):
    """Numbers of an optimizer step (OpenAI's names); sent every few steps."""

    kind: Literal["metrics"] = "metrics"
    step: int
    total_steps: int
    train_loss: float
    train_mean_token_accuracy: float
    full_valid_loss: float | None = None
    """At the end of an epoch, where there is a validation file: on all of its rows that are looked at."""
    full_valid_mean_token_accuracy: float | None = None
    extra: dict[str, float] = Field(default_factory=dict)
    """The method's counters, learning rate, tokens a second."""


class CheckpointMessage(Value):
    """End of an epoch: a checkpoint that the tenant may see. Its archive's path is relative to the work folder; the
    child keeps the latest few (see KEPT_CHECKPOINTS), and the supervisor stores them."""

    kind: Literal["checkpoint"] = "checkpoint"
    step: int
    metrics: dict[str, float]
    archive: str
    sha256: str


class StageDoneMessage(Value):
    """A stage of a job is finished and durable; `data` is handed to later stages and attempts."""

    kind: Literal["stage_done"] = "stage_done"
    stage: str
    data: dict[str, Any]


class PlanMessage(Value):
    """The pre-flight chose or changed what is trained: the job shows this plan from now on."""

    kind: Literal["plan"] = "plan"
    plan: TrainingPlan


class BaseStatusMessage(Value):
    """Preparing a base: which state it is in."""

    kind: Literal["base_status"] = "base_status"
    status: Literal["aligning", "preparing"]


class JobResultMessage(Value):
    """The job's outcome. Paths are relative to the work folder; the supervisor stores the files."""

    kind: Literal["job_result"] = "job_result"
    trained_tokens: int
    adapter_archive: str
    adapter_sha256: str
    report: str
    step_metrics: str
    base_hash: str
    """Of the base's weights (theta_safe) that the adapter was trained on."""
    adapter_rank: int
    """A merge may have changed it: who goes on from the adapter needs one of the same rank."""
    measured_checkpoint: int | None = None
    """Step of the checkpoint whose weights are those of the adapter, bit for bit, so that what was measured holds for
    it; None where something (an average, a merge, a repair) came after training."""
    gate: GateDecision | None = None
    """None: the policy has no rule. Not released: the job fails with the code `safety_gate`, its report is shown and
    its adapter quarantined."""


class PreflightResultMessage(Value):
    """What the pre-flight found."""

    kind: Literal["preflight_result"] = "preflight_result"
    risk: DataRisk


class EvaluationResultMessage(Value):
    """The report of an adapter that was evaluated by itself; a path relative to the work folder."""

    kind: Literal["evaluation_result"] = "evaluation_result"
    report: str


class BaseResultMessage(Value):
    """A base is prepared and lies under bases_dir / prepared_hash."""

    kind: Literal["base_result"] = "base_result"
    prepared_hash: str
    renders_tools: bool
    """Whether its chat template shows tools to the model."""


class FailureMessage(Value):
    """Why the child gives up. `message` is shown to the tenant: a sentence that says what to do."""

    kind: Literal["failure"] = "failure"
    code: FailureCode
    message: str
    param: str | None = None
    is_retryable: bool = False


Message = Annotated[
    EventMessage
    | PhaseMessage
    | ProgressMessage
    | MetricsMessage
    | CheckpointMessage
    | StageDoneMessage
    | PlanMessage
    | BaseStatusMessage
    | JobResultMessage
    | BaseResultMessage
    | PreflightResultMessage
    | EvaluationResultMessage
    | FailureMessage,
    Field(discriminator="kind"),
]
MESSAGE_ADAPTER: TypeAdapter[Message] = TypeAdapter(Message)
