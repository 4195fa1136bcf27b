"""The service as separate processes, each of which can be killed alone and comes back a moment later.

API, two workers (one with a clock that is minutes off), housekeeping and a broker of their own; what a service manager
does is done by a thread here.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import redis

from app.broker import find_server
from workers.runtime.process_group import MARK

RESTART_SECONDS = 0.3
CLOCK_OFF_SECONDS = "420"
_CLOCK = Path(__file__).with_name("clock")


@dataclass
class Program:
    """A part of the service."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )


@dataclass
class World:
    """A running service."""

    environment: dict[str, str]
    data_dir: Path
    broker_dir: Path
    api_port: int
    broker_port: int
    programs: dict[str, Program] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.api_port}"

    @property
    def broker_url(self) -> str:
        return f"redis://127.0.0.1:{self.broker_port}/0"

    def add(self, name: str, *command: str, **environment: str) -> None:
        """Starts a program, which is kept running."""
        log = self.data_dir / f"{name}.log"
        self.programs[name] = Program(name, list(command), {**self.environment, **environment}, log)
        self.programs[name].start()

    def pid(self, name: str) -> int | None:
        """Of a program that runs."""
        process = self.programs[name].process
        return process.pid if process is not None and process.poll() is None else None

    def pool_children(self, parent: int | None = None) -> list[int]:
        """Celery's processes that hold leases, of one worker or of all."""
        parents = (
            {self.pid(name) for name in self.programs if name.startswith("worker")} if parent is None else {parent}
        )
        return [pid for pid in _pids() if _parent(pid) in parents and MARK not in environment_of(pid)]

    def training_children(self) -> list[int]:
        """Processes that compute, and what they have started."""
        own = str(self.data_dir)
        found = ((pid, environment_of(pid)) for pid in _pids())
        return [pid for pid, names in found if MARK in names and own in command_of(pid)]

    def keep_running(self) -> None:
        """Starts what has ended again, until the world ends."""
        while not self._over.wait(0.05):
            for program in self.programs.values():
                if program.process is not None and program.process.poll() is not None:
                    self._over.wait(RESTART_SECONDS)
                    if not self._over.is_set():
                        program.start()

    def wait_until_ready(self, seconds: float) -> bool:
        """Whether API, database and broker answer in time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health/ready", timeout=2.0, trust_env=False).status_code == httpx.codes.OK:
                    return True
            time.sleep(0.1)
        return False

    def end(self) -> None:
        """Ends everything, workers first."""
        self._over.set()
        for name in sorted(self.programs, key=lambda name: not name.startswith("worker")):
            process = self.programs[name].process
            if process is None:
                continue
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
            try:
                process.wait(30.0)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@contextmanager
def running(environment: dict[str, str], data_dir: Path) -> Iterator[World]:
    """The service on a prepared data folder; the environment names the database."""
    broker_dir = data_dir / "chaos_broker"
    broker_dir.mkdir(exist_ok=True)
    world = World({}, data_dir, broker_dir, _free_port(), _free_port())
    world.environment = environment | {
        "UNFORGOTTEN_DATA_DIR": str(data_dir),
        "UNFORGOTTEN_PORT": str(world.api_port),
        "UNFORGOTTEN_BROKER_URL": world.broker_url,
    }
    python = (sys.executable, "-m")
    port = ("--port", str(world.api_port), "--no-access-log", "--timeout-graceful-shutdown", "2")
    world.add("broker", *_broker_command(world))
    _wait_for_broker(world)
    world.add("api", *python, "uvicorn", "--factory", "app.main:load", *port)
    world.add("worker-1", *python, "workers")
    path = os.pathsep.join(filter(None, (str(_CLOCK), environment.get("PYTHONPATH"))))
    world.add("worker-2", *python, "workers", PYTHONPATH=path, CHAOS_CLOCK_SECONDS=CLOCK_OFF_SECONDS)
    world.add("housekeeping", *python, "workers.runtime.housekeeping")
    keeper = threading.Thread(target=world.keep_running)
    keeper.start()
    try:
        if not world.wait_until_ready(90.0):
            logs = "\n".join(f"{name}: {_tail(program.log)}" for name, program in world.programs.items())
            raise AssertionError(f"the service did not become ready\n{logs}")
        yield world
    finally:
        world.end()
        keeper.join()


def wipe_broker(world: World) -> None:
    """Empties the broker, as one does that comes back without its disk."""
    with suppress(redis.RedisError), redis.Redis.from_url(world.broker_url) as broker:
        broker.flushall()


def kill_broker(world: World, *, is_wiped: bool) -> None:
    """Kills the broker; wiped, it comes back empty."""
    pid = world.pid("broker")
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
    if is_wiped:
        shutil.rmtree(world.broker_dir / "appendonlydir", ignore_errors=True)


def environment_of(pid: int) -> dict[str, str]:
    """The environment that a process was started with; empty for one that is gone."""
    try:
        pairs = Path(f"/proc/{pid}/environ").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return {}
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def command_of(pid: int) -> str:
    """The command line of a process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def _broker_command(world: World) -> list[str]:
    options = {
        "port": str(world.broker_port),
        "bind": "127.0.0.1",
        "dir": str(world.broker_dir),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
    }
    return [str(find_server()), *(word for name, value in options.items() for word in (f"--{name}", value))]


def _wait_for_broker(world: World) -> None:
    deadline = time.monotonic() + 20.0
    while time.monotonic() < deadline:
        with suppress(redis.RedisError), redis.Redis.from_url(world.broker_url) as broker:
            broker.ping()
            return
        time.sleep(0.05)
    raise AssertionError(_tail(world.programs["broker"].log))


def _tail(path: Path) -> str:
    return path.read_text(errors="replace")[-3000:] if path.exists() else ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
