"""What every stage of a job sees."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from app.contracts.chat import ChatRow, PreferenceRow
from app.contracts.chat_file import InvalidChatFileError, read_preference_rows, read_rows, read_wanted_rows
from app.contracts.objectives import Dpo
from app.contracts.plan import TrainingPlan
from app.contracts.risk import DataRisk, RiskOutcome
from app.contracts.specs import JobSpec
from workers.channel import Channel
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.errors import ValidationRefused

MAX_UTILITY_ROWS = 200
"""Rows of the validation file that are used: after each epoch, and for the model's utility."""


@dataclass(frozen=True)
class StageContext:
    """One job's work folder and everything around it."""

    spec: JobSpec
    folder: Path
    channel: Channel
    artefacts: Artefacts

    @property
    def plan_file(self) -> Path:
        """contracts.plan.TrainingPlan, where the pre-flight chose or changed it."""
        return self.folder / "plan.json"

    @property
    def risk_file(self) -> Path:
        """contracts.risk.DataRisk of the upload, once the pre-flight is done."""
        return self.folder / "data_risk.json"

    @property
    def outcome_file(self) -> Path:
        """contracts.risk.RiskOutcome: what the policy made of it."""
        return self.folder / "risk_outcome.json"

    @property
    def plan(self) -> TrainingPlan:
        """What is trained: as the job was made, or as the pre-flight left it."""
        if self.plan_file.is_file():
            return TrainingPlan.model_validate_json(self.plan_file.read_bytes())
        return self.spec.plan

    @property
    def risk(self) -> DataRisk | None:
        """What the pre-flight found."""
        return DataRisk.model_validate_json(self.risk_file.read_bytes()) if self.risk_file.is_file() else None

    @property
    def outcome(self) -> RiskOutcome | None:
        """What was done about it."""
        return RiskOutcome.model_validate_json(self.outcome_file.read_bytes()) if self.outcome_file.is_file() else None

    @property
    def training_dir(self) -> Path:
        return self.folder / "training"

    @property
    def epochs_dir(self) -> Path:
        """Archives of the latest epochs' adapters."""
        return self.training_dir / "epochs"

    @property
    def start_dir(self) -> Path:
        """The adapter that training goes on from."""
        return self.folder / "start_adapter"

    @property
    def summary_file(self) -> Path:
        """contracts.evaluation.TrainingSummary of the finished training."""
        return self.training_dir / "summary.json"

    @property
    def report_file(self) -> Path:
        return self.folder / "report.json"

    @property
    def archive_file(self) -> Path:
        return self.folder / "adapter.tar.gz"

    @property
    def has_pairs(self) -> bool:
        """Whether the job's files hold preference pairs: what is trained says so."""
        return isinstance(self.plan.objective, Dpo)

    def conversations(self) -> list[tuple[int, ChatRow]]:
        """The upload's rows with their line numbers; of preference pairs with the wanted answer."""
        return list(read_wanted_rows(self.spec.training_file))

    def training_rows(self) -> list[ChatRow] | list[PreferenceRow]:
        """The upload, without the lines that the pre-flight left out."""
        dropped = frozenset(self.outcome.dropped_lines) if self.outcome is not None else frozenset()
        file = self.spec.training_file
        if self.has_pairs:
            return [pair for line, pair in read_preference_rows(file) if line not in dropped]
        return [row for line, row in read_rows(file) if line not in dropped]

    def validation_rows(self) -> list[ChatRow] | list[PreferenceRow]:
        """The first rows of the validation file; empty where the job has none.

        Raises:
            ValidationRefused: The file is not what was uploaded.
        """
        if self.spec.validation_file is None:
            return []
        return (validation_pairs if self.has_pairs else validation_rows)(self.spec.validation_file)


def validation_rows(file: Path) -> list[ChatRow]:
    """The first rows of a validation file.

    Raises:
        ValidationRefused: The file is not what was uploaded.
    """
    with _blamed_on_validation():
        return [row for _, row in islice(read_rows(file), MAX_UTILITY_ROWS)]


def validation_pairs(file: Path) -> list[PreferenceRow]:
    """The same of a file of preferences."""
    with _blamed_on_validation():
        return [pair for _, pair in islice(read_preference_rows(file), MAX_UTILITY_ROWS)]


@contextmanager
def _blamed_on_validation() -> Iterator[None]:
    try:
        yield
    except InvalidChatFileError as error:
        # Else it would be blamed on the training file.
        raise ValidationRefused(f"Validation file: {error}") from error
