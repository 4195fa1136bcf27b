"""Hundreds of clients that listen to a job's events: does each get every event once, and how late?"""

import asyncio
import json
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.db import Database
from app.models import add_event
from benchmarks.load.client import request
from benchmarks.load.database import Filled, fill
from benchmarks.load.polling import environment
from benchmarks.load.servers import resident_bytes, serving

NUM_JOBS = 10
PAUSE_SECONDS = 0.25
"""Between events, so that each is a delivery of its own."""
LATEST_SECONDS = 30.0
"""What has not come by then counts as lost."""


@dataclass
class _Listener:
    events: dict[str, float] = field(default_factory=dict)
    """When an event's text came first."""
    num_doubled: int = 0
    is_open: asyncio.Event = field(default_factory=asyncio.Event)
    is_complete: asyncio.Event = field(default_factory=asyncio.Event)


def measure_listeners(num_listeners: int, num_events: int) -> dict[str, Any]:
    """Delays from an event's commit by another process to its arrival at every listener of its job."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        filled = fill(folder, NUM_JOBS)
        with serving("app.main:load", environment(folder, filled)) as (port, pid):
            before = resident_bytes(pid)
            found = asyncio.run(_listen(port, filled, num_listeners, num_events))
            found["server_memory_megabytes"] = round((resident_bytes(pid) - before) / 1e6, 1)
    return found


async def _listen(port: int, filled: Filled, num_listeners: int, num_events: int) -> dict[str, Any]:
    jobs = filled.job_ids
    listeners = [_Listener() for _ in range(num_listeners)]
    tasks = [
        asyncio.create_task(_follow(port, filled.key, jobs[k % len(jobs)], each, num_events))
        for k, each in enumerate(listeners)
    ]
    await asyncio.gather(*(each.is_open.wait() for each in listeners))
    written = await asyncio.to_thread(_write, filled, num_events)
    await asyncio.wait([asyncio.create_task(each.is_complete.wait()) for each in listeners], timeout=LATEST_SECONDS)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    delays = sorted(at - written[text] for each in listeners for text, at in each.events.items())
    return {
        "listeners": num_listeners,
        "jobs": len(jobs),
        "events_a_job": num_events,
        "delivered": len(delays),
        "lost": num_listeners * num_events - len(delays),
        "doubled": sum(each.num_doubled for each in listeners),
        "p50_seconds": round(statistics.median(delays), 3),
        "p99_seconds": round(delays[int(0.99 * len(delays))], 3),
    }


async def _follow(port: int, key: str, job_id: str, listener: _Listener, num_events: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(f"/v1/fine_tuning/jobs/{job_id}/events?stream=true", key))
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"A listener was refused: {head[:200]!r}")
    listener.is_open.set()
    while line := await reader.readline():
        if not line.startswith(b"data:"):
            continue
        if line == b"data: [DONE]\n":
            return
        text = json.loads(line.removeprefix(b"data:"))["message"]
        if not text.startswith("Step "):
            continue
        if text in listener.events:
            listener.num_doubled += 1
        listener.events.setdefault(text, time.perf_counter())
        if len(listener.events) == num_events:
            listener.is_complete.set()


def _write(filled: Filled, num_events: int) -> dict[str, float]:
    """Adds the same events to every job; when each was committed."""
    database = Database(filled.url)
    written = {}
    for number in range(num_events):
        text = f"Step {number}"
        with database.transaction() as session:
            for job_id in filled.job_ids:
                add_event(session, job_id, text)
        written[text] = time.perf_counter()
        time.sleep(PAUSE_SECONDS)
    database.dispose()
    return written
