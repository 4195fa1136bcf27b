"""What differs between kinds of work: their rows, their spec, their result. Everything else is the supervisor's."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from sqlalchemy.orm import Session

from app.contracts.progress import (
    BaseResultMessage,
    EvaluationResultMessage,
    FailureMessage,
    JobResultMessage,
    Message,
    PreflightResultMessage,
)
from app.contracts.specs import SPEC_FILE
from app.contracts.states import FailureCode, WorkState
from app.contracts.value import Value
from app.settings import Settings
from app.storage import ObjectStorage
from workers.runtime.lease import Lease

StopRequest = Literal["cancel", "pause"]
LONGEST_PAUSE_SECONDS = 600.0
Result = JobResultMessage | BaseResultMessage | PreflightResultMessage | EvaluationResultMessage


class WorkFailedError(RuntimeError):
    """The work cannot succeed; carries what is shown to whoever asked for it."""

    def __init__(
        self, code: FailureCode, message: str, *, param: str | None = None, is_retryable: bool = False
    ) -> None:
        super().__init__(message)
        self.failure = FailureMessage(code=code, message=message, param=param, is_retryable=is_retryable)


class Subject(ABC):
    """What one piece of work is about, under one lease: what becomes of it where no attempt brings a result.

    Methods that take a session run in a short transaction that has proven the lease.
    """

    def __init__(self, settings: Settings, storage: ObjectStorage, lease: Lease) -> None:
        self._settings = settings
        self._storage = storage
        self.lease = lease

    @property
    def pause_seconds(self) -> float:
        """Between this attempt and the next one."""
        return min(LONGEST_PAUSE_SECONDS, self._settings.retry_seconds * 2.0 ** min(self.lease.attempt - 1, 30))

    @abstractmethod
    def is_over(self, session: Session) -> bool:
        """Whether the subject is gone or finished already, so that no attempt makes sense."""

    @abstractmethod
    def stop_requested(self, session: Session, *, is_last_look: bool = False) -> StopRequest | None:
        """What the owner has asked for in the meantime. After a last look nobody can ask until the transaction ends."""

    @abstractmethod
    def fail(self, session: Session, failure: FailureMessage) -> None:
        """Marks the subject as failed for good."""

    @abstractmethod
    def requeue(self, session: Session, reason: str) -> None:
        """Marks the subject as waiting for another attempt."""

    @abstractmethod
    def stop(self, session: Session, request: StopRequest) -> WorkState:
        """Marks the subject as cancelled or paused; its process is gone.

        Returns:
            The state in which the work ends.
        """


def put_spec(folder: Path, spec: Value) -> None:
    """Writes the child's spec.json, whole or not at all: it says what everything else in the folder was made on."""
    aside = folder / f".{SPEC_FILE}"
    aside.write_text(spec.model_dump_json(), encoding="utf-8")
    aside.replace(folder / SPEC_FILE)


class WorkHandler(Subject):
    """A subject whose attempts are made by a child process.

    Methods that take no session run outside of any transaction and may take long.
    """

    module: ClassVar[str]
    """Run as `python -m MODULE WORK_FOLDER` in the child."""

    @property
    def reaches_out(self) -> bool:
        """Whether the child may use the provider's access to pip, the model hub and other services."""
        return False

    @property
    def key_variables(self) -> frozenset[str]:
        """Further environment variables that the child may see."""
        return frozenset()

    @abstractmethod
    def begin(self, session: Session, folder: Path) -> None:
        """Marks the subject, which is not over, as running and reads what `write_spec` needs.

        The work folder may not be there yet, or hold what earlier attempts on this machine have left.

        Raises:
            WorkFailedError: Something that it needs is missing.
        """

    @abstractmethod
    def write_spec(self, folder: Path) -> None:
        """Fetches files and writes the child's spec.json into the work folder.

        Raises:
            WorkFailedError: Something that it needs is missing or damaged.
        """

    def keep(self, folder: Path, messages: Sequence[Message]) -> None:
        """Stores files that the child's messages name, before `apply` writes down where.

        Raises:
            WorkFailedError: The child's files are not what it said.
        """

    @abstractmethod
    def apply(self, session: Session, messages: Sequence[Message]) -> None:
        """Turns the child's messages into rows."""

    def tidy(self) -> None:
        """Deletes stored files that the rows which `apply` has written no longer name."""

    def unkept(self, session: Session) -> Collection[str]:
        """Keys of what `keep` has put and no row names: `apply` could not write it down, unless only the answer to its
        commit was lost. Such a commit may be under way, and is waited for."""
        return ()

    @abstractmethod
    def store(self, folder: Path, result: Result) -> Any:
        """Puts the result's files where later attempts of a stale holder cannot overwrite or publish them.

        Returns:
            What `succeed` needs.

        Raises:
            WorkFailedError: The child's files are not what it said.
        """

    @abstractmethod
    def unpublished(self, session: Session, stored: Any) -> Collection[str]:
        """The same of what `store` has put: everything, unless it was published after all."""

    @abstractmethod
    def succeed(self, session: Session, stored: Any) -> None:
        """Publishes the result."""

    def need_less_memory(self, session: Session) -> str | None:
        """After memory ran out: makes the next attempt need less.

        Returns:
            What is done, as a sentence; None where another attempt would end in the same way.
        """
        return None
