"""One message: where it goes, what it does not follow, and when it is given up."""

import ssl
import subprocess
import time
from pathlib import Path

import pytest

from app.contracts.webhooks import WebhookPolicy
from app.webhooks.sending import Sender, UnsentError
from tests.receiver import Receiver, receiving

HERE = WebhookPolicy(allowed_hosts=("127.0.0.1", "hooks.test", "other.test"))


def sender(*addresses: str, seconds: float = 5.0) -> Sender:
    return Sender(HERE, find=lambda _: addresses or ("127.0.0.1",), seconds=seconds)


class TestWhere:
    def test_to_the_address_that_was_looked_at_under_the_hosts_own_name(self, receiver: Receiver) -> None:
        # No resolver knows this name: a second lookup would fail.
        url = f"http://hooks.test:{receiver.port}/a/b?c=d"
        assert sender().send(url, b"{}", {"webhook-id": "evt_1"}) == 200
        [message] = receiver.received
        assert (message.path, message.body) == ("/a/b?c=d", b"{}")
        assert message.headers["host"] == f"hooks.test:{receiver.port}"
        assert message.headers["webhook-id"] == "evt_1"

    def test_a_name_that_leads_elsewhere_by_now_is_not_called(self, receiver: Receiver) -> None:
        answers = iter([["1.1.1.1"], ["127.0.0.1"]])
        rebound = Sender(WebhookPolicy(), find=lambda _: next(answers), seconds=5.0)
        url = f"https://hooks.test:{receiver.port}/"
        rebound.check(url)
        with pytest.raises(UnsentError, match="public"):
            rebound.send(url, b"{}", {})
        assert receiver.num_received == 0

    def test_redirects_are_not_followed(self, receiver: Receiver) -> None:
        with receiving() as other:
            receiver.statuses, receiver.location = [302, 307], other.url
            assert [sender().send(receiver.url, b"{}", {}) for _ in range(2)] == [302, 307]
            assert other.num_received == 0

    def test_proxies_of_the_environment_are_not_used(self, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
        with receiving() as proxy:
            for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            assert sender().send(receiver.url, b"{}", {}) == 200
            assert (proxy.num_received, receiver.num_received) == (0, 1)

    def test_another_address_of_the_host_is_tried_where_nobody_listens(self, receiver: Receiver) -> None:
        url = f"http://hooks.test:{receiver.port}/"
        assert sender("127.0.0.2", "127.0.0.1").send(url, b"{}", {}) == 200

    def test_nobody_at_all_is_told(self, receiver: Receiver) -> None:
        with pytest.raises(UnsentError, match="No connection"):
            sender("127.0.0.2").send(f"http://hooks.test:{receiver.port}/", b"{}", {})


class TestTime:
    def test_a_receiver_that_hangs_is_left(self, receiver: Receiver) -> None:
        receiver.is_open.clear()
        began = time.monotonic()
        with pytest.raises(UnsentError, match=r"within 0\.3 seconds"):
            sender(seconds=0.3).send(receiver.url, b"{}", {})
        assert time.monotonic() - began < 5.0

    def test_so_is_one_whose_answer_trickles_in(self, receiver: Receiver) -> None:
        # Every byte comes in time; the whole would take ten seconds.
        receiver.drips = True
        began = time.monotonic()
        with pytest.raises(UnsentError, match="within 1 seconds"):
            sender(seconds=1.0).send(receiver.url, b"{}", {})
        assert time.monotonic() - began < 5.0

    def test_an_endless_answer_is_not_read(self, receiver: Receiver) -> None:
        # It announces a gigabyte and sends a few bytes.
        assert sender().send(receiver.url, b"{}", {}) == 200


class TestCertificates:
    @pytest.fixture
    def certificate(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
        """Of hooks.test, by an authority that this machine trusts."""
        key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
                *("-keyout", str(key), "-out", str(cert), "-days", "2", "-subj", "/CN=hooks.test"),
                *("-addext", "subjectAltName=DNS:hooks.test"),
            ],
            check=True,
            capture_output=True,
        )
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        return context

    def test_must_be_for_the_host_and_not_for_its_address(self, certificate: ssl.SSLContext) -> None:
        names: list[str | None] = []
        certificate.sni_callback = lambda _socket, name, _context: names.append(name)
        with receiving(certificate) as receiver:
            assert sender().send(f"https://hooks.test:{receiver.port}/", b"{}", {}) == 200
            with pytest.raises(UnsentError, match=r"(?i)certificate"):
                sender().send(f"https://other.test:{receiver.port}/", b"{}", {})
            assert receiver.num_received == 1
        assert names == ["hooks.test", "other.test"]

    def test_must_be_by_somebody_who_is_trusted(
        self, certificate: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("SSL_CERT_FILE")
        with receiving(certificate) as receiver, pytest.raises(UnsentError, match=r"(?i)certificate"):
            sender().send(f"https://hooks.test:{receiver.port}/", b"{}", {})
