"""Settings of a deployment: environment variables with the prefix UNFORGOTTEN_ (and a `.env` file)."""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.contracts.evaluation_plan import EvaluationPlan
from app.contracts.gate import GatePolicy
from app.contracts.limits import ProjectLimits
from app.contracts.risk import RiskPolicy
from app.contracts.webhooks import WebhookPolicy


class Settings(BaseSettings):
    """Every default works on one machine with nothing else installed."""

    model_config = SettingsConfigDict(
        env_prefix="UNFORGOTTEN_", env_file=".env", extra="ignore", frozen=True, use_attribute_docstrings=True
    )

    data_dir: Path = Path(".unforgotten")
    """Folder of everything the embedded defaults keep: database, broker, files, prepared bases, working folders."""
    database_url: str = ""
    """SQLAlchemy URL; empty: SQLite in the data folder. PostgreSQL: postgresql+psycopg://user:password@host/name"""
    broker_url: str = "embedded"
    """`embedded` (a valkey-server of our own in the data folder) or redis://... / rediss://..."""
    storage_url: str = ""
    """Where uploads, adapters and reports lie: a URL for obstore (file:///..., s3://..., gs://..., az://...);
    empty: a folder in the data folder."""
    artefacts_dir: Path | None = None
    """Prepared bases (theta_safe, safety memory, teacher states); workers on several machines need a shared file
    system here. Default: `bases` in the data folder."""
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    organization: str = Field(default="unforgotten", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Appears in fine-tuned model names (ft:BASE:ORGANIZATION:SUFFIX:ID) and as organization_id."""
    max_file_bytes: int = Field(default=512 * 1024 * 1024, ge=1024)
    """Largest upload accepted by POST /v1/files."""
    max_upload_bytes: int = Field(default=8 * 1024**3, ge=1024)
    """Largest file that can be uploaded in parts (POST /v1/uploads)."""
    upload_seconds: float = Field(default=3600.0, gt=0.0)
    """How long an upload in parts may take."""
    max_line_bytes: int = Field(default=1024 * 1024, ge=1024)
    """Longest line of a training file."""
    min_examples: int = Field(default=10, ge=1)
    """Fewest rows of a training file."""
    lease_seconds: float = Field(default=60.0, gt=0.0)
    """A worker that has not renewed its lease for so long is considered lost."""
    heartbeat_seconds: float = Field(default=5.0, gt=0.0)
    """How often a worker renews its lease and looks whether it should stop."""
    sweep_seconds: float = Field(default=10.0, gt=0.0)
    """How often expired leases are reaped and forgotten messages sent again."""
    max_attempts: int = Field(default=3, ge=1)
    """Attempts at one piece of work before it fails as worker_lost. Webhooks have 16."""
    retry_seconds: float = Field(default=5.0, gt=0.0)
    """Pause before the second attempt; doubled for each further one, up to ten minutes. Between a webhook's attempts it
    is quadrupled, up to eight hours: with 5 seconds they take 72 hours."""
    stop_grace_seconds: float = Field(default=30.0, ge=0.0)
    """How long a training process may take to stop when asked, before it is killed."""
    worker_threads: int = Field(default=0, ge=0)
    """CPU threads of a training process; 0: all cores."""
    training_processes: int = Field(default=1, ge=1, le=64)
    """Processes that train one job together, each on a GPU of its own: at most as many as the worker's machine has.
    Where there is no GPU they share the CPU's threads, which is good for trying it out and no faster."""
    evaluation: EvaluationPlan = Field(default_factory=EvaluationPlan)
    """What models are measured on beside the project's own sets, and by which judges, as JSON."""
    gate: GatePolicy = Field(default_factory=GatePolicy)
    """Which models are released, as JSON: {"max_harmful_increase": 0.1, "on_fail": "repair"}. A tenant can ask for
    stricter bounds, never for looser ones."""
    risk: RiskPolicy = Field(default_factory=RiskPolicy)
    """What is done about risky uploads before training, as JSON: {"high": "block"}."""
    limits: ProjectLimits = Field(default_factory=ProjectLimits)
    """What a project may use, as JSON: {"max_running_jobs": 2, "max_stored_bytes": 10000000000}. Projects can be given
    their own: `unforgotten projects limits`."""
    webhooks: WebhookPolicy = Field(default_factory=WebhookPolicy)
    """Where tenants' webhooks may lead beside public https addresses, and how many a project may have, as JSON:
    {"allowed_hosts": ["hooks.internal"], "max_endpoints": 10}."""
    estimate_max_bytes: int = Field(default=16 * 1024 * 1024, ge=1024)
    """Of a training file, from its beginning: as much as is read to count its tokens before training. Of a longer file
    the rest is extrapolated, and the estimate says so."""
    estimate_seconds: float = Field(default=60.0, gt=0.0)
    """How long counting may take."""
    price_per_million_tokens: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    """What a million trained tokens cost, for estimates; without it they name no cost. Nothing is charged here."""
    price_currency: str = Field(default="USD", pattern=r"^[A-Z]{3}$")
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(str.upper)] = "INFO"

    @model_validator(mode="after")
    def _check_lease(self) -> Self:
        if self.heartbeat_seconds > self.lease_seconds / 2:
            raise ValueError(
                "heartbeat_seconds must be at most half of lease_seconds: one late beat would lose the lease"
            )
        return self

    @cached_property
    def resolved_database_url(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir.resolve() / 'unforgotten.db'}"

    @cached_property
    def resolved_storage_url(self) -> str:
        return self.storage_url or (self.data_dir.resolve() / "storage").as_uri()

    @cached_property
    def bases_dir(self) -> Path:
        return (self.artefacts_dir or self.data_dir / "bases").resolve()

    @cached_property
    def work_dir(self) -> Path:
        """Scratch folders of running work, one a job; safe to delete when nothing runs."""
        return (self.data_dir / "work").resolve()
