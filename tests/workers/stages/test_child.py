"""`python -m workers.stages` as the supervisor starts it."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.contracts.progress import MESSAGE_ADAPTER, ExitCode, FailureMessage, Message
from app.contracts.specs import SPEC_FILE, JobSpec
from app.contracts.states import FailureCode
from tests.workers.stages.conftest import MakeSpec
from workers.channel import SUPERVISOR_GONE

SECONDS = 90.0


@contextmanager
def child(spec: JobSpec, folder: Path) -> Iterator[subprocess.Popen[str]]:
    folder.mkdir()
    (folder / SPEC_FILE).write_text(spec.model_dump_json())
    process = subprocess.Popen(
        [sys.executable, "-m", "workers.stages", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={"UNFORGOTTEN_WORKER_THREADS": "1", "PATH": "/usr/bin:/bin"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(SECONDS)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def messages_of(process: subprocess.Popen[str]) -> list[Message]:
    """Everything up to the end of its output; each line has to be a message."""
    assert process.stdout is not None
    return [MESSAGE_ADAPTER.validate_json(line) for line in process.stdout]


@pytest.fixture
def endless(make_spec: MakeSpec) -> JobSpec:
    """More steps than any test waits for."""
    return make_spec(plan={"num_epochs": 50, "batch_size": 1, "checkpoint_every_steps": 1})


def test_rows_that_cannot_be_trained_end_with_a_failure_of_the_training_file(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    with child(make_spec(plan={"max_row_tokens": 8}), tmp_path / "work") as process:
        messages = messages_of(process)
        assert process.wait(SECONDS) == ExitCode.FAILED
    failure = messages[-1]
    assert isinstance(failure, FailureMessage)
    assert (failure.code, failure.param, failure.is_retryable) == (
        FailureCode.INVALID_TRAINING_FILE,
        "training_file",
        False,
    )
    assert failure.message.startswith("Row 1: no token of the answer is left within 8 tokens")


def test_stop_on_standard_input_ends_with_a_checkpoint_and_21(endless: JobSpec, tmp_path: Path) -> None:
    with child(endless, tmp_path / "work") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        # Not before it trains: a child that has not begun has no checkpoint to leave.
        next(line for line in process.stdout if '"kind":"metrics"' in line)
        process.stdin.write("stop\n")
        process.stdin.flush()
        messages_of(process)
        assert process.wait(SECONDS) == ExitCode.STOPPED
    assert any((tmp_path / "work" / "training" / "checkpoints").iterdir())


def test_the_end_of_standard_input_ends_it(endless: JobSpec, tmp_path: Path) -> None:
    with child(endless, tmp_path / "work") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        next(line for line in process.stdout if '"kind":"metrics"' in line)
        process.stdin.close()
        assert process.wait(SECONDS) == SUPERVISOR_GONE
