"""Everything on one machine: broker, API, one worker and housekeeping as child processes of `unforgotten up`."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import typer

from app.broker import EMBEDDED, BrokerUnavailableError, EmbeddedBroker
from app.db import Database
from app.schema import upgrade
from app.settings import Settings
from app.tether import tethered

POLL_SECONDS = 0.5
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
BROKER_PAUSE_SECONDS = 5.0
HEALTHY_SECONDS = 60.0
"""A program that ran for so long is restarted without growing pauses again."""
MAX_EARLY_DEATHS = 3
"""Before the service was ever ready, a program that ended so often is not going to work."""
MAX_LOG_BYTES = 10 * 1024 * 1024

_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}  # noqa: S104  (looked up, not bound)


class UpError(RuntimeError):
    """The service cannot run here; the message says why."""


@dataclass(frozen=True)
class Program:
    """A part of the service."""

    name: str
    command: Sequence[str]
    stop_seconds: float
    """How long it may take to end after SIGTERM."""


def run(settings: Settings) -> None:
    """Runs the whole service until SIGTERM or SIGINT.

    Raises:
        SystemExit: It cannot run here; carries the reason.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        AllInOne(settings, programs(settings), typer.echo).run(stop)
    except (UpError, BrokerUnavailableError) as error:
        raise SystemExit(str(error)) from error


def programs(settings: Settings) -> list[Program]:
    """The parts, in the order in which they are stopped: no new jobs first, then the running one is handed back."""
    python = (sys.executable, "-m")
    listen = ("--host", settings.host, "--port", str(settings.port), "--log-level", settings.log_level.lower())
    # The application logs requests itself. Open downloads must not keep it from ending.
    uvicorn_options = ("--no-access-log", "--timeout-graceful-shutdown", "5")
    return [
        Program(
            "api",
            (*python, "uvicorn", "--factory", "app.main:load", *listen, *uvicorn_options),
            stop_seconds=15.0,
        ),
        Program("worker", (*python, "workers"), stop_seconds=2 * settings.stop_grace_seconds + 30.0),
        # A message that is on its way to a webhook may take ten seconds.
        Program("housekeeping", (*python, "workers.runtime.housekeeping"), stop_seconds=20.0),
    ]


class AllInOne:
    """Starts the parts, keeps them running and stops them in order."""

    def __init__(self, settings: Settings, parts: Sequence[Program], say: Callable[[str], None]) -> None:
        self._settings = settings
        self._say = say
        self._broker = EmbeddedBroker(settings.data_dir) if settings.broker_url == EMBEDDED else None
        logs = settings.data_dir.resolve() / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self._parts = [_Part(program, environment_of(settings), logs / f"{program.name}.log") for program in parts]
        self._is_ready = False
        self._broker_due_at = 0.0

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set.

        Raises:
            UpError: A part ends again and again before the service was ever ready.
            BrokerUnavailableError: The embedded broker cannot be started.
        """
        try:
            if self._broker:
                self._broker.start()
            self._migrate()
            for part in self._parts:
                part.start()
            while not stop.wait(POLL_SECONDS):
                self._look_after_broker()
                for part in self._parts:
                    self._look_after(part)
                if not self._is_ready:
                    self._look_whether_ready()
        finally:
            self._say("Stopping ...")
            for part in self._parts:
                part.stop()
            if self._broker:
                self._broker.stop()

    @property
    def url(self) -> str:
        host = _ANY_ADDRESS.get(self._settings.host, self._settings.host)
        return f"http://{host}:{self._settings.port}"

    def _migrate(self) -> None:
        database = Database(self._settings.resolved_database_url)
        upgrade(database.engine)
        database.dispose()

    def _look_after_broker(self) -> None:
        if self._broker is None or self._broker.is_running or time.monotonic() < self._broker_due_at:
            return
        self._say("The embedded broker ended and is started again.")
        try:
            self._broker.start()
        except BrokerUnavailableError as error:
            # Messages wait in the database meanwhile; what runs goes on running.
            self._say(str(error))
            self._broker_due_at = time.monotonic() + BROKER_PAUSE_SECONDS

    def _look_after(self, part: "_Part") -> None:
        if part.is_waiting:
            part.start_when_due()
            return
        status = part.exit_status
        if status is None:
            return
        pause_seconds = part.note_death()
        if not self._is_ready and part.num_deaths >= MAX_EARLY_DEATHS:
            raise UpError(f"{part.name} does not run (status {status}). The end of {part.log_file}:\n{part.log_tail()}")
        self._say(f"{part.name} ended with status {status}; again in {pause_seconds:.0f} s. Its log: {part.log_file}")

    def _look_whether_ready(self) -> None:
        try:
            response = httpx.get(f"{self.url}/health/ready", timeout=5.0, trust_env=False)
        except httpx.TransportError:
            return
        if response.status_code == httpx.codes.OK:
            self._is_ready = True
            self._say(f"Unforgotten is ready: {self.url}/v1 (logs in {self._settings.data_dir.resolve() / 'logs'})")


def environment_of(settings: Settings) -> dict[str, str]:
    """The environment in which a child reads the same settings as this process has."""
    prefix = settings.model_config["env_prefix"]
    values = settings.model_dump(mode="json") | {"data_dir": str(settings.data_dir.resolve())}
    # Objects are JSON, with their nulls: a bound that the provider has switched off is not the default again.
    texts = {
        name: json.dumps(value) if isinstance(value, dict) else str(value)
        for name, value in values.items()
        if value is not None
    }
    return {**os.environ, **{f"{prefix}{name}".upper(): text for name, text in texts.items()}}


class _Part:
    """A running program, and when it is to be started again."""

    def __init__(self, program: Program, environment: Mapping[str, str], log_file: Path) -> None:
        self.name = program.name
        self.log_file = log_file
        self.num_deaths = 0
        """In a row, without a healthy time in between."""
        self._program = program
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._due_at = 0.0

    @property
    def is_waiting(self) -> bool:
        return self._process is None

    @property
    def exit_status(self) -> int | None:
        assert self._process is not None
        return self._process.poll()

    def start(self) -> None:
        if self.log_file.exists() and self.log_file.stat().st_size > MAX_LOG_BYTES:
            self.log_file.replace(self.log_file.with_suffix(".log.1"))
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                # SIGTERM, so that a worker whose `up` was killed still hands its job back.
                tethered(self._program.command, signal.SIGTERM),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(self._environment),
                # Ctrl-C is for `up` alone, which stops the parts in order.
                start_new_session=True,
            )
        self._started_at = time.monotonic()

    def start_when_due(self) -> None:
        if time.monotonic() >= self._due_at:
            self.start()

    def note_death(self) -> float:
        """Plans the next start; returns the pause before it in seconds."""
        is_healthy = time.monotonic() - self._started_at > HEALTHY_SECONDS
        self.num_deaths = 1 if is_healthy else self.num_deaths + 1
        pause_seconds = min(FIRST_PAUSE_SECONDS * 2.0 ** (self.num_deaths - 1), LONGEST_PAUSE_SECONDS)
        self._due_at = time.monotonic() + pause_seconds
        self._process = None
        return pause_seconds

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(self._program.stop_seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None

    def log_tail(self, size_bytes: int = 2000) -> str:
        with self.log_file.open("rb") as log:
            log.seek(max(0, self.log_file.stat().st_size - size_bytes))
            return log.read().decode(errors="replace")
