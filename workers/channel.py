"""The child's end of the line to its supervisor (see app.contracts.progress), and how a child process runs.

Standard output carries messages only; whatever libraries print goes to standard error. A thread watches standard
input: `stop` asks to stop at the next step, end of file means that the supervisor is gone.
"""

import errno
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from app.contracts.chat_file import InvalidChatFileError
from app.contracts.progress import (
    EventMessage,
    ExitCode,
    FailureMessage,
    Message,
    ProgressMessage,
)
from app.contracts.states import FailureCode
from workers.evaluation.errors import EvaluationError, JudgeUnreachable
from workers.finetuning.errors import (
    ArtefactMissing,
    DatasetRefused,
    DiskTooFull,
    FinetuningError,
    TrainingDiverged,
    ValidationRefused,
)
from workers.modeling.archive import InvalidAdapter
from workers.modeling.errors import ModelingError
from workers.preflight.errors import UploadRefused

PROGRESS_SECONDS = 1.0
"""Progress messages are sent no more often than this."""
SUPERVISOR_GONE = 3
MAX_MESSAGE_CHARACTERS = 4000
"""Of a failure that is shown and stored."""


class StopAsked(BaseException):
    """The supervisor asked to stop. Not an Exception, so that no handler of errors swallows it."""


class Channel:
    """Sends messages and knows whether to stop."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._last_progress = 0.0

    def send(self, message: Message) -> None:
        """Sends one message."""
        line = message.model_dump_json() + "\n"
        with self._lock:
            self._output.write(line)
            self._output.flush()

    def say(self, sentence: str) -> None:
        """Sends an event."""
        self.send(EventMessage(message=sentence))

    def progress(self, what: str) -> Callable[[int, int], None]:
        """A callback for (done, total) that sends progress now and then, and stops the work when asked to."""

        def report(done: int, total: int) -> None:
            if self.should_stop():
                raise StopAsked
            now = time.monotonic()
            if done == total or now - self._last_progress >= PROGRESS_SECONDS:
                self._last_progress = now
                self.send(ProgressMessage(what=what, done=done, total=total))

        return report

    def should_stop(self) -> bool:
        """True once the supervisor has asked."""
        return self._stop.is_set()

    def ask_to_stop(self) -> None:
        """What the supervisor's `stop` does."""
        self._stop.set()

    def watch(self, commands: TextIO) -> None:
        """Reads the supervisor's commands in a thread."""
        threading.Thread(target=self._read, args=(commands,), daemon=True).start()

    def _read(self, commands: TextIO) -> None:
        for line in commands:
            if line.strip() == "stop":
                self.ask_to_stop()
        os._exit(SUPERVISOR_GONE)


def run_child(work: Callable[[Channel], None]) -> int:
    """Runs a child's work and turns its end into an exit code; errors become one Failure message."""
    with _messages_only() as output:
        channel = Channel(output)
        channel.watch(sys.stdin)
        try:
            work(channel)
        except StopAsked:
            return ExitCode.STOPPED
        except Exception as error:  # the edge of the process: everything becomes a message and a code
            channel.send(failure_of(error))
            # Last, because the log may lie on the disk that is full.
            with suppress(OSError):
                traceback.print_exc()
            return ExitCode.FAILED
        return ExitCode.DONE


def failure_of(error: Exception) -> FailureMessage:
    """The failure code and sentence for an error."""
    # A stranger's file can make a message of any length.
    text = _shortened(str(error))
    if said := _disk_full(error):
        return FailureMessage(code=FailureCode.DISK_FULL, message=said, is_retryable=True)
    if isinstance(error, ValidationRefused):
        return FailureMessage(code=FailureCode.INVALID_VALIDATION_FILE, message=text, param="validation_file")
    if isinstance(error, DatasetRefused | InvalidChatFileError):
        return FailureMessage(code=FailureCode.INVALID_TRAINING_FILE, message=text, param="training_file")
    if isinstance(error, UploadRefused):
        return FailureMessage(code=FailureCode.RISKY_TRAINING_FILE, message=text, param="training_file")
    if isinstance(error, ArtefactMissing):
        return FailureMessage(code=FailureCode.ARTEFACT_MISSING, message=text)
    if isinstance(error, TrainingDiverged):
        return FailureMessage(code=FailureCode.TRAINING_DIVERGED, message=text, param="hyperparameters")
    if isinstance(error, JudgeUnreachable):
        return FailureMessage(code=FailureCode.EVALUATION_FAILED, message=text, is_retryable=True)
    if isinstance(error, EvaluationError):
        return FailureMessage(code=FailureCode.EVALUATION_FAILED, message=text)
    if isinstance(error, InvalidAdapter):
        return FailureMessage(code=FailureCode.INVALID_ADAPTER, message=text, param="adapter_file")
    if isinstance(error, FinetuningError | ModelingError):
        return FailureMessage(code=FailureCode.INTERNAL_ERROR, message=text)
    # Torch says it with a class of its own on a GPU and with a bare RuntimeError on a CPU.
    is_torch_out_of_memory = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text
    if isinstance(error, MemoryError) or is_torch_out_of_memory:
        message = "The training process ran out of memory. Use a smaller batch_size or shorter rows."
        return FailureMessage(code=FailureCode.OUT_OF_MEMORY, message=message, is_retryable=True)
    # What exactly broke is in the worker's log; a tenant is told no paths and no stack.
    message = "The job failed for a reason inside the service. The provider finds it in the worker's log."
    # A defect fails again; a file system or network that was away for a moment may not.
    return FailureMessage(code=FailureCode.INTERNAL_ERROR, message=message, is_retryable=isinstance(error, OSError))


def _disk_full(error: BaseException | None) -> str | None:
    """What is said where the disk is full; None for other errors.

    Libraries wrap what the system said, some in a class of their own with nothing but a text.
    """
    if isinstance(error, DiskTooFull):
        return str(error)
    while error is not None:
        is_said = "No space left on device" in str(error) or "Disk quota exceeded" in str(error)
        if is_said or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
            return "The worker's disk is full. The provider has to free space; the job can then be created again."
        error = error.__cause__ or error.__context__
    return None


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE_CHARACTERS else f"{text[:MAX_MESSAGE_CHARACTERS]} ..."


@contextmanager
def _messages_only() -> Iterator[TextIO]:
    """Keeps the real standard output for messages; prints of libraries go to standard error."""
    real = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(real, "w", encoding="utf-8") as output:
        yield output
