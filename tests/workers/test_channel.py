import errno
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.contracts.chat_file import InvalidChatFileError
from app.contracts.datasets import LineCode, LineProblem
from app.contracts.progress import EventMessage, ExitCode, ProgressMessage
from app.contracts.states import FailureCode
from tests.workers.listening import Listener
from workers.channel import MAX_MESSAGE_CHARACTERS, SUPERVISOR_GONE, StopAsked, failure_of
from workers.evaluation.errors import EvaluationFailed, JudgeUnreachable
from workers.finetuning.errors import (
    ArtefactMissing,
    CheckpointMismatch,
    DatasetRefused,
    DiskTooFull,
    TrainingDiverged,
    ValidationRefused,
)
from workers.modeling.errors import SourceError
from workers.preflight.errors import UploadRefused

BAD_LINE = LineProblem(
    line=3, path="", code=LineCode.NOT_UTF8, message="the line is not UTF-8", fix="Save it as UTF-8."
)


def run_child(work: str, commands: str = "") -> subprocess.CompletedProcess[str]:
    """A child whose work is a line of Python; its standard input stays open after the commands."""
    program = (
        f"import sys, time\nfrom workers.channel import *\ndef work(channel):\n    {work}\nsys.exit(run_child(work))"
    )
    reading, writing = os.pipe()
    os.write(writing, commands.encode())
    try:
        return subprocess.run(
            [sys.executable, "-c", program], stdin=reading, capture_output=True, text=True, timeout=60, check=False
        )
    finally:
        os.close(reading)
        os.close(writing)


class TestChild:
    def test_ends_with_0_when_its_work_is_done(self) -> None:
        done = run_child("channel.say('hello')")
        assert done.returncode == ExitCode.DONE
        assert json.loads(done.stdout)["message"] == "hello"

    def test_says_why_it_failed_when_its_log_cannot_be_written(self) -> None:
        program = (
            "import sys\nfrom workers.channel import *\n"
            "def work(channel):\n    raise ValueError\n"
            "sys.exit(run_child(work))"
        )
        reading, writing = os.pipe()
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-u", "-c", program],
                stdin=reading,
                stdout=subprocess.PIPE,
                stderr=full,
                text=True,
                timeout=60,
                check=False,
            )
        os.close(reading)
        os.close(writing)
        assert json.loads(done.stdout)["code"] == FailureCode.INTERNAL_ERROR

    def test_keeps_prints_of_libraries_out_of_its_messages(self) -> None:
        done = run_child("print('noise', flush=True); os.system('echo more noise'); channel.say('hello')")
        assert [json.loads(line)["message"] for line in done.stdout.splitlines()] == ["hello"]
        assert "noise" in done.stderr
        assert "more noise" in done.stderr

    def test_ends_with_20_and_one_failure_when_its_work_breaks(self) -> None:
        done = run_child("raise TrainingDiverged('Step 3: the loss is nan.')")
        assert done.returncode == ExitCode.FAILED
        (line,) = done.stdout.splitlines()
        assert json.loads(line)["code"] == "training_diverged"
        assert "Traceback" in done.stderr

    def test_ends_with_21_when_it_is_asked_to_stop(self) -> None:
        work = "[(channel.progress('work')(0, 1), time.sleep(0.01)) for _ in range(6000)]"
        assert run_child(work, commands="stop\n").returncode == ExitCode.STOPPED

    def test_takes_no_notice_of_other_commands(self) -> None:
        assert run_child("time.sleep(0.2); channel.should_stop() and channel.say('?')", commands="go on\n").stdout == ""

    def test_ends_itself_when_its_supervisor_is_gone(self) -> None:
        program = "import sys, time; from workers.channel import run_child; run_child(lambda channel: time.sleep(60))"
        done = subprocess.run(
            [sys.executable, "-c", program], stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False
        )
        assert done.returncode == SUPERVISOR_GONE


class TestFailure:
    @pytest.mark.parametrize(
        ("error", "code", "param", "is_retryable"),
        [
            (DatasetRefused("Row 1: x"), FailureCode.INVALID_TRAINING_FILE, "training_file", False),
            (ValidationRefused("Row 1: x"), FailureCode.INVALID_VALIDATION_FILE, "validation_file", False),
            (InvalidChatFileError([BAD_LINE], 1), FailureCode.INVALID_TRAINING_FILE, "training_file", False),
            (ArtefactMissing("x"), FailureCode.ARTEFACT_MISSING, None, False),
            (TrainingDiverged("x"), FailureCode.TRAINING_DIVERGED, "hyperparameters", False),
            (EvaluationFailed("x"), FailureCode.EVALUATION_FAILED, None, False),
            (CheckpointMismatch("x"), FailureCode.INTERNAL_ERROR, None, False),
            (SourceError("x"), FailureCode.INTERNAL_ERROR, None, False),
            (MemoryError(), FailureCode.OUT_OF_MEMORY, None, True),
            (
                RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
                *(FailureCode.OUT_OF_MEMORY, None, True),
            ),
            (OSError(errno.ENOSPC, "No space left on device"), FailureCode.DISK_FULL, None, True),
            (RuntimeError("I/O error: No space left on device (os error 28)"), FailureCode.DISK_FULL, None, True),
            (DiskTooFull("1 of 2 GB"), FailureCode.DISK_FULL, None, True),
            (OSError(errno.EIO, "I/O error"), FailureCode.INTERNAL_ERROR, None, True),
            (KeyError("x"), FailureCode.INTERNAL_ERROR, None, False),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
    )
    def test_has_the_code_of_its_error(
        self, error: Exception, code: FailureCode, param: str | None, is_retryable: bool
    ) -> None:
        failure = failure_of(error)
        assert (failure.code, failure.param, failure.is_retryable) == (code, param, is_retryable)

    def test_of_our_own_says_what_the_error_says(self) -> None:
        assert failure_of(ArtefactMissing("prepare the base")).message == "prepare the base"

    def test_a_policy_that_refuses_an_upload_is_told_with_its_lines(self) -> None:
        failure = failure_of(UploadRefused("Flagged lines: 3, 4"))
        assert (failure.code, failure.param) == (FailureCode.RISKY_TRAINING_FILE, "training_file")
        assert failure.message == "Flagged lines: 3, 4"

    def test_a_judge_that_is_away_is_tried_again(self) -> None:
        assert failure_of(JudgeUnreachable("the judge could not be reached")).is_retryable
        assert not failure_of(EvaluationFailed("half of the answers could not be scored")).is_retryable

    def test_no_message_grows_without_bound(self) -> None:
        message = failure_of(DatasetRefused("x" * 10**6)).message
        assert len(message) < MAX_MESSAGE_CHARACTERS + 10

    @pytest.mark.parametrize(
        "error", [KeyError("/srv/secret"), OSError(errno.EIO, "bad", "/srv/secret"), MemoryError()]
    )
    def test_of_another_kind_tells_no_paths(self, error: Exception) -> None:
        assert "secret" not in failure_of(error).message

    @pytest.mark.parametrize(
        "kind", [DatasetRefused, ValidationRefused, ArtefactMissing, CheckpointMismatch, SourceError]
    )
    def test_errors_travel_between_processes(self, kind: Callable[[str], Exception]) -> None:
        copy = pickle.loads(pickle.dumps(kind("Row 3: x")))
        assert (type(copy), str(copy)) == (kind, "Row 3: x")


class TestProgress:
    def test_is_sent_at_the_start_and_at_the_end_and_seldom_between(self) -> None:
        listener = Listener()
        report = listener.channel.progress("answers")
        for done in range(1, 101):
            report(done, 100)
        messages = listener.of(ProgressMessage)
        assert (messages[0].done, messages[-1].done, messages[-1].total) == (1, 100, 100)
        assert len(messages) < 10

    def test_stops_the_work_when_that_was_asked(self) -> None:
        listener = Listener()
        listener.channel.ask_to_stop()
        with pytest.raises(StopAsked):
            listener.channel.progress("answers")(1, 100)
        assert listener.messages == []

    def test_a_stop_is_no_error_that_a_handler_could_swallow(self) -> None:
        assert not issubclass(StopAsked, Exception)

    def test_sentences_are_events(self) -> None:
        listener = Listener()
        listener.channel.say("Training 3 steps")
        assert listener.of(EventMessage) == [EventMessage(message="Training 3 steps")]
