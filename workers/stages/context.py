"""What every stage of a job sees."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from app.contracts.chat import ChatRow
from app.contracts.chat_file import InvalidChatFileError, read_rows
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
    def training_dir(self) -> Path:
        return self.folder / "training"

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

    def training_rows(self) -> list[ChatRow]:
        return _rows(read_rows(self.spec.training_file))

    def validation_rows(self) -> list[ChatRow]:
        """The first rows of the validation file; empty where the job has none.

        Raises:
            ValidationRefused: The file is not what was uploaded.
        """
        if self.spec.validation_file is None:
            return []
        try:
            return _rows(islice(read_rows(self.spec.validation_file), MAX_UTILITY_ROWS))
        except InvalidChatFileError as error:
            # Else it would be blamed on the training file.
            raise ValidationRefused(f"Validation file: {error}") from error


def _rows(numbered: Iterable[tuple[int, ChatRow]]) -> list[ChatRow]:
    return [row for _, row in numbered]
