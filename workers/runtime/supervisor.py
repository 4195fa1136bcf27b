"""One attempt at one piece of work: load, run a child process, apply.

Transactions are short and prove the lease; the long part in the middle holds none. Whatever happens in here, the
work ends in a state from which it goes on: finished, queued for another attempt, or (where not even that can be
written) running with a lease that expires and is reaped.
"""

import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import structlog
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

from app.contracts.progress import (
    BaseResultMessage,
    EvaluationResultMessage,
    ExitCode,
    FailureMessage,
    JobResultMessage,
    Message,
    PreflightResultMessage,
    ProgressMessage,
)
from app.contracts.states import FailureCode, WorkKind, WorkState
from app.db import Database
from app.settings import Settings
from app.storage import ObjectStorage
from workers.runtime.child import Child, Escalation, child_environment
from workers.runtime.failures import failure_of_error, failure_of_exit, oom_kills
from workers.runtime.handler import Result, StopRequest, WorkFailedError
from workers.runtime.heartbeat import Heartbeat
from workers.runtime.lease import Lease, LeaseLostError, claim, finish, prove, release
from workers.runtime.registry import HANDLERS
from workers.runtime.turns import claim_next

FLUSH_SECONDS = 1.0
"""Messages of so much time become rows in one transaction."""
POLL_SECONDS = 0.1

_T = TypeVar("_T")

_log = structlog.get_logger(__name__)


class Flag(Protocol):
    """Something that is raised once: a threading.Event, or the worker's drain pipe."""

    def is_set(self) -> bool: ...


def default_commands() -> dict[WorkKind, tuple[str, ...]]:
    """How each kind's child is started; its work folder is appended."""
    return {kind: (sys.executable, "-m", handler.module) for kind, handler in HANDLERS.items()}


@dataclass(frozen=True)
class Runtime:
    """What attempts share."""

    settings: Settings
    db: Database
    storage: ObjectStorage
    commands: Mapping[WorkKind, Sequence[str]] = field(default_factory=default_commands)
    on_message: Callable[[Message], None] = lambda _: None
    """Sees every message of a child as it arrives; for whoever watches in the foreground."""
    owner: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}")


def run_work(runtime: Runtime, work_id: str, drain: Flag) -> bool:
    """Claims work and makes one attempt at it. Once `drain` is raised, the attempt is stopped and handed back.

    Returns:
        False where there was nothing to claim: a doubled message, or somebody was faster.
    """
    with runtime.db.transaction() as session:
        lease = claim(session, work_id, runtime.owner, lease_seconds=runtime.settings.lease_seconds)
    if lease is None:
        return False
    _Attempt(runtime, lease, drain).run()
    return True


def run_next(runtime: Runtime, drain: Flag) -> bool:
    """The same with the work whose turn it is (see turns.py).

    Returns:
        False where nothing waits that may be taken now.
    """
    settings = runtime.settings
    lease = claim_next(runtime.db, runtime.owner, lease_seconds=settings.lease_seconds, limits=settings.limits)
    if lease is None:
        return False
    _Attempt(runtime, lease, drain).run()
    return True


@dataclass(frozen=True)
class _Succeeded:
    stored: Any


@dataclass(frozen=True)
class _Failed:
    failure: FailureMessage


@dataclass(frozen=True)
class _Stopped:
    request: StopRequest


@dataclass(frozen=True)
class _Drained:
    pass


@dataclass(frozen=True)
class _NothingToDo:
    pass


_End = _Succeeded | _Failed | _Stopped | _Drained | _NothingToDo


class _Attempt:
    def __init__(self, runtime: Runtime, lease: Lease, drain: Flag) -> None:
        self._runtime = runtime
        self._settings = runtime.settings
        self._lease = lease
        self._drain = drain
        self._handler = HANDLERS[lease.kind](runtime.settings, runtime.storage, lease)
        self._heartbeat = Heartbeat(runtime.db, runtime.settings, self._handler)
        self._folder = runtime.settings.work_dir / lease.work_id
        self._pending: list[Message] = []
        self._flushed_at = time.monotonic()
        self._result: Result | None = None
        self._failure: FailureMessage | None = None
        self._was_stopped = False
        self._log_tail = ""
        self._log = _log.bind(work=lease.work_id, subject=lease.subject_id, attempt=lease.attempt)

    def run(self) -> None:
        self._log.info("attempt begins")
        try:
            with self._heartbeat:
                try:
                    end = self._caught(self._make)
                except KeyboardInterrupt:
                    # In the foreground: another process may take the work over at once.
                    self._conclude(_Drained())
                    raise
                if failed := self._caught(lambda: self._conclude(end)):
                    self._conclude(failed)
        except LeaseLostError as error:
            # The folder stays: the next attempt may be using it already.
            self._log.warning("attempt discarded", reason=str(error))

    def _caught(self, act: Callable[[], _T]) -> _T | _Failed:
        """The edge where exceptions become failures."""
        try:
            return act()
        except LeaseLostError:
            raise
        except WorkFailedError as error:
            return _Failed(error.failure)
        except Exception as error:
            self._log.exception("attempt failed")
            return _Failed(failure_of_error(error))

    def _make(self) -> _End:
        if end := self._write(self._begin):
            return end
        self._folder.mkdir(parents=True, exist_ok=True)
        self._handler.write_spec(self._folder)
        if self._drain.is_set():
            return _Drained()
        oom_kills_before = oom_kills()
        with Child(
            self._runtime.commands[self._lease.kind],
            self._folder,
            child_environment(
                os.environ,
                self._settings.worker_threads,
                reaches_out=self._handler.reaches_out,
                names=self._handler.key_variables,
            ),
        ) as child:
            with self._heartbeat.ending(child):
                status = self._watch(child)
            self._note(child.end())
            self._log_tail = child.log_tail()
        self._flush()
        return self._judge(status, was_out_of_memory=oom_kills() != oom_kills_before)

    def _begin(self, session: Session) -> _End | None:
        if self._handler.is_over(session):
            return _NothingToDo()
        if request := self._handler.stop_requested(session):
            return _Stopped(request)
        self._handler.begin(session, self._folder)
        return None

    def _watch(self, child: Child) -> int:
        """Until the child ends: turns its messages into rows, and ends it when it should.

        Raises:
            LeaseLostError: The lease is gone; leaving the child's `with` block kills it.
        """
        escalation = Escalation(child, self._settings.stop_grace_seconds)
        while (status := child.exit_status) is None:
            self._note(child.messages(POLL_SECONDS))
            if time.monotonic() - self._flushed_at > FLUSH_SECONDS:
                self._flush()
            if self._heartbeat.is_lost:
                raise LeaseLostError("The lease was lost while the child was running.")
            if self._heartbeat.stop_request or self._drain.is_set():
                if not escalation.is_under_way:
                    self._log.info("stopping child", request=self._heartbeat.stop_request or "drain")
                self._was_stopped = True
                escalation.press()
        return status

    def _note(self, messages: Sequence[Message]) -> None:
        for message in messages:
            self._runtime.on_message(message)
            match message:
                case JobResultMessage() | BaseResultMessage() | PreflightResultMessage() | EvaluationResultMessage():
                    self._result = message
                case FailureMessage():
                    self._failure = message
                case ProgressMessage():
                    self._log.debug("progress", what=message.what, done=message.done, total=message.total)
                case _:
                    self._pending.append(message)

    def _flush(self) -> None:
        if self._pending:
            self._handler.keep(self._folder, self._pending)
            try:
                self._write(lambda session: self._handler.apply(session, self._pending))
            except LeaseLostError:
                self._throw_away(self._handler.unkept)
                raise
            self._handler.tidy()
        self._pending = []
        self._flushed_at = time.monotonic()

    def _judge(self, status: int, *, was_out_of_memory: bool) -> _End:
        request = self._heartbeat.stop_request
        is_done = status == ExitCode.DONE and self._result is not None
        if request == "cancel" or (request and not is_done):
            return _Stopped(request)
        if is_done and self._result is not None:
            return _Succeeded(self._handler.store(self._folder, self._result))
        if (self._was_stopped or self._drain.is_set()) and self._failure is None:
            return _Drained()
        return _Failed(failure_of_exit(status, self._failure, was_out_of_memory=was_out_of_memory))

    def _conclude(self, end: _End) -> None:
        try:
            final = self._write(lambda session: self._write_end(session, end))
        except LeaseLostError:
            self._discard(end)
            raise
        if final == WorkState.CANCELLED:
            self._discard(end)
        self._log.info("attempt ended", state=final or WorkState.QUEUED, end=type(end).__name__)
        if final in {WorkState.DONE, WorkState.FAILED, WorkState.CANCELLED}:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _discard(self, end: _End) -> None:
        if isinstance(end, _Succeeded):
            self._throw_away(lambda session: self._handler.unpublished(session, end.stored))

    def _throw_away(self, find_keys: Callable[[Session], Collection[str]]) -> None:
        with self._runtime.db.transaction() as session:
            keys = find_keys(session)
        for key in keys:
            self._runtime.storage.discard(key)

    def _write_end(self, session: Session, end: _End) -> WorkState | None:
        """Rows of the end, subject and work in one transaction.

        Returns:
            The final state of the work, or None where it is queued again.
        """
        error: str | None = None
        if self._handler.is_over(session):
            end = _NothingToDo()
        elif self._is_to_be_repeated(end) and (request := self._handler.stop_requested(session, is_last_look=True)):
            # Asked after the last heartbeat. Queued again, the work would wait for a worker only to be stopped by it.
            end = _Stopped(request)
        match end:
            case _Succeeded():
                self._handler.succeed(session, end.stored)
                state = WorkState.DONE
            case _Stopped():
                # Once more: while the child was stopping, a pause may have been withdrawn or become a cancellation.
                request = self._handler.stop_requested(session, is_last_look=True)
                if request is None:
                    self._handler.requeue(session, "The pause was withdrawn.")
                    release(session, self._lease, pause_seconds=0.0, counts=False, error=None)
                    return None
                state = self._handler.stop(session, request)
            case _NothingToDo():
                state = WorkState.CANCELLED
            case _Drained():
                self._handler.requeue(session, "The worker was shut down.")
                release(session, self._lease, pause_seconds=0.0, counts=False, error=None)
                return None
            case _Failed():
                error = f"{end.failure.message}\n{self._log_tail}".strip()
                if reason := self._reason_to_repeat(session, end):
                    self._handler.requeue(session, reason)
                    release(
                        session,
                        self._lease,
                        pause_seconds=self._handler.pause_seconds,
                        counts=True,
                        error=error,
                    )
                    return None
                self._handler.fail(session, end.failure)
                state = WorkState.FAILED
        finish(session, self._lease, state, error=error)
        return state

    def _reason_to_repeat(self, session: Session, end: _Failed) -> str | None:
        if not self._is_to_be_repeated(end):
            return None
        if end.failure.code == FailureCode.OUT_OF_MEMORY:
            # As it was, it would run out again.
            return self._handler.need_less_memory(session)
        return end.failure.message

    def _is_to_be_repeated(self, end: _End) -> bool:
        match end:
            case _Drained():
                return True
            case _Failed():
                return end.failure.is_retryable and not self._lease.is_last_attempt
            case _:
                return False

    def _write(self, write: Callable[[Session], _T]) -> _T:
        """Writes in a transaction that has proven the lease; waits for a database that is away for a moment.

        Raises:
            LeaseLostError: The lease is gone, or the database was away for longer than it lasts.
        """
        while True:
            try:
                with self._runtime.db.transaction() as session:
                    prove(session, self._lease, lease_seconds=self._settings.lease_seconds)
                    return write(session)
            except DBAPIError as error:
                # What ends a connection is not always told as operational: for example that it said nothing for long.
                if not (isinstance(error, OperationalError) or error.connection_invalidated):
                    raise
                if self._heartbeat.is_lost:
                    raise LeaseLostError("The database was away for longer than the lease lasts.") from error
                self._log.warning("database is away", error=str(error))
                time.sleep(POLL_SECONDS)
