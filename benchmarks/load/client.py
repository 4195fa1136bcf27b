"""A client that is faster than what it measures: HTTP/1.1 over asyncio streams, one connection a worker, kept alive.

It understands answers with a Content-Length and nothing else, which is all that the measured routes send.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Outcome:
    """What came back."""

    seconds: float
    """From the first request to the last answer."""
    latencies: list[float] = field(default_factory=list)
    """Seconds of every answered request."""
    statuses: dict[int, int] = field(default_factory=dict)
    """How many answers of each status."""
    lost: int = 0
    """Requests without an answer."""

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds

    @property
    def num_failed(self) -> int:
        """Lost, or answered by anything but 200."""
        return self.lost + sum(count for status, count in self.statuses.items() if status != 200)

    def percentile(self, share: float) -> float:
        """Latency in seconds below which this share of the answers came."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def request(path: str, key: str | None = None, host: str = "127.0.0.1") -> bytes:
    """The bytes of a GET."""
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{authorization}\r\n".encode()


async def flood(port: int, requests: Sequence[bytes], *, concurrency: int, seconds: float) -> Outcome:
    """Sends requests over `concurrency` connections, each the next one as soon as it has its answer, for `seconds`.

    Worker k takes requests k, k + concurrency, ... and begins again at the end.
    """
    outcome = Outcome(seconds)
    started = time.perf_counter()
    deadline = started + seconds
    workers = (_work(port, requests, k, concurrency, deadline, outcome) for k in range(concurrency))
    await asyncio.gather(*workers)
    outcome.seconds = time.perf_counter() - started
    return outcome


async def _work(
    port: int, requests: Sequence[bytes], first: int, stride: int, deadline: float, outcome: Outcome
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    index = first
    try:
        while time.perf_counter() < deadline:
            asked_at = time.perf_counter()
            writer.write(requests[index % len(requests)])
            try:
                status = await _answer(reader)
            except (asyncio.IncompleteReadError, ConnectionError):
                outcome.lost += 1
                return
            outcome.latencies.append(time.perf_counter() - asked_at)
            outcome.statuses[status] = outcome.statuses.get(status, 0) + 1
            index += stride
    finally:
        writer.close()


async def _answer(reader: asyncio.StreamReader) -> int:
    head = await reader.readuntil(b"\r\n\r\n")
    lowered = head.lower()
    place = lowered.index(b"content-length:") + len(b"content-length:")
    length = int(lowered[place : lowered.index(b"\r\n", place)])
    if length:
        await reader.readexactly(length)
    return int(head[9:12])
