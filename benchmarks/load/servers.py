"""The two servers of a comparison, each a uvicorn process of its own: the service, and bare routes of its framework."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI, Request

START_SECONDS = 60.0


def bare() -> FastAPI:
    """What the framework costs by itself: a route that answers a constant, and one that keeps what it is sent."""
    api = FastAPI()
    answer = json.loads(os.environ["BARE_ANSWER"])
    target_path = Path(os.environ["BARE_FOLDER"]) / "upload"

    @api.get("/job/{job_id}")
    async def job(job_id: str) -> dict[str, Any]:
        return {**answer, "id": job_id}

    @api.post("/upload")
    async def upload(request: Request) -> dict[str, Any]:
        digest, size = hashlib.sha256(), 0
        with target_path.open("wb") as target:
            async for chunk in request.stream():
                digest.update(chunk)
                size += len(chunk)
                target.write(chunk)
            target.flush()
            os.fsync(target.fileno())
        return {"bytes": size, "sha256": digest.hexdigest()}

    return api


@contextmanager
def serving(factory: str, environment: dict[str, str]) -> Iterator[tuple[int, int]]:
    """A uvicorn process with the options of `unforgotten up`; gives its port and its process id."""
    port = _free_port()
    command = (
        *(sys.executable, "-m", "uvicorn", "--factory", factory, "--port", str(port)),
        *("--log-level", "warning", "--no-access-log", "--timeout-graceful-shutdown", "2"),
    )
    with subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            _wait(port, process)
            yield port, process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def _wait(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(f"http://127.0.0.1:{port}/", timeout=5, trust_env=False)
        except httpx.TransportError:
            time.sleep(0.1)
            continue
        return
    raise SystemExit("A server did not start.")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def resident_bytes(pid: int) -> int:
    """Memory that a process has in use."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
