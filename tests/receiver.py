"""A receiver of webhooks' messages on this machine, which answers as it is told."""

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
from openai.types.webhooks import UnwrapWebhookEvent


@dataclass(frozen=True)
class Received:
    """One message, as it came in."""

    path: str
    headers: dict[str, str]
    body: bytes

    def unwrap(self, secret: str) -> UnwrapWebhookEvent:
        """Checked and read by OpenAI's client; raises InvalidWebhookSignatureError."""
        with openai.OpenAI(api_key="none", base_url="http://127.0.0.1:9") as client:
            return client.webhooks.unwrap(self.body, self.headers, secret=secret)


@dataclass
class Receiver:
    """Remembers what it was sent."""

    port: int = 0
    statuses: list[int] = field(default_factory=list)
    """Of the next answers, one after the other; then 200."""
    location: str = ""
    received: list[Received] = field(default_factory=list)
    is_open: threading.Event = field(default_factory=threading.Event)
    """Cleared, answers wait."""
    drips: bool = False
    """The answer's head comes byte by byte, without an end."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?of=tests"

    @property
    def num_received(self) -> int:
        return len(self.received)


@contextmanager
def receiving(certificate: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """A receiver that listens for as long as the block lasts."""
    receiver = Receiver()
    receiver.is_open.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.received.append(Received(self.path, headers, body))
            receiver.is_open.wait(20.0)
            try:
                self._drip() if receiver.drips else self._answer()
            except OSError:
                # The sender has gone, as it should.
                self.close_connection = True

        def _answer(self) -> None:
            self.send_response(receiver.statuses.pop(0) if receiver.statuses else 200)
            if receiver.location:
                self.send_header("location", receiver.location)
            self.send_header("content-length", "1000000000")
            self.end_headers()
            self.wfile.write(b"never read")
            self.close_connection = True

        def _drip(self) -> None:
            for byte in b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.05)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if certificate is not None:
        server.socket = certificate.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a sender that refuses it hangs up
    receiver.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield receiver
    finally:
        receiver.is_open.set()
        server.shutdown()
        thread.join()
        server.server_close()
