"""What the supervisor hands to a child process: `spec.json` in the work folder. Paths are local and ours."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from app.contracts.bases import PrepareRecipe
from app.contracts.evaluation_plan import EvaluationPlan
from app.contracts.gate import GatePolicy
from app.contracts.plan import TrainingPlan
from app.contracts.risk import RiskPolicy
from app.contracts.value import Value

SPEC_FILE = "spec.json"


class StartAdapter(Value):
    """What a job's training goes on from, instead of a fresh adapter."""

    archive: Path
    """As tenants download it: adapter_config.json and adapter_model.safetensors in a tar.gz."""
    sha256: str
    model: str
    """As the client named it: a fine-tuned model or a checkpoint."""
    base_hash: str
    """Of the weights (theta_safe) that it was trained on: on others it would be another model."""


class JobSpec(Value):
    """A fine-tuning job, ready to run: `python -m workers.stages WORK_FOLDER`."""

    kind: Literal["fine_tuning_job"] = "fine_tuning_job"
    job_id: str
    base_id: str
    prepared_dir: Path
    """Folder of the prepared base (under Settings.bases_dir)."""
    training_file: Path
    training_file_sha256: str
    validation_file: Path | None
    plan: TrainingPlan
    start: StartAdapter | None = None
    """None: training begins with a fresh adapter. The anchor of safety is theta_safe in either case."""
    is_auto: bool = False
    """The method was left to the pre-flight: its recommendation replaces the plan's method, average and merge."""
    drop_flagged_rows: bool = False
    """The tenant agreed that rows which the pre-flight flags are left out."""
    risk_policy: RiskPolicy = Field(default_factory=RiskPolicy)
    evaluation: EvaluationPlan = Field(default_factory=EvaluationPlan)
    gate: GatePolicy = Field(default_factory=GatePolicy)
    model_name: str
    """ft:... name that the job will publish."""
    num_processes: int = Field(default=1, ge=1)
    """Processes that train together, one a GPU."""
    micro_batch_divisor: int = Field(default=1, ge=1)
    """2 once memory ran out: every step is computed in twice as many forwards, and stays the same step."""
    finished_stages: dict[str, dict[str, object]] = Field(default_factory=dict)
    """What earlier attempts finished: stage name -> what it handed on."""


class PrepareSpec(Value):
    """A base to prepare: `python -m workers.preparation WORK_FOLDER`."""

    kind: Literal["prepare_base"] = "prepare_base"
    base_id: str
    source: str
    recipe: PrepareRecipe
    bases_dir: Path


class PreflightSpec(Value):
    """A look at an upload before any training: `python -m workers.preflight WORK_FOLDER`."""

    kind: Literal["preflight"] = "preflight"
    base_id: str
    prepared_dir: Path
    training_file: Path
    training_file_sha256: str


class EvaluationSpec(Value):
    """An adapter to measure beside its base: `python -m workers.stages.adapter WORK_FOLDER`."""

    kind: Literal["evaluate_adapter"] = "evaluate_adapter"
    evaluation_id: str
    base_id: str
    prepared_dir: Path
    adapter_archive: Path
    """As tenants download it, or as they upload it: adapter_config.json and adapter_model.safetensors in a tar.gz."""
    adapter_sha256: str
    validation_file: Path | None
    model_name: str
    evaluation: EvaluationPlan = Field(default_factory=EvaluationPlan)
    gate: GatePolicy = Field(default_factory=GatePolicy)
    max_row_tokens: int = Field(default=2048, ge=8)
