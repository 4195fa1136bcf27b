"""How much of a bare route's rate remains for polling a job, and how much slower a list is among many jobs."""

import asyncio
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import httpx

from benchmarks.load.client import Outcome, flood, request
from benchmarks.load.database import Filled, fill
from benchmarks.load.servers import serving

CONCURRENCY = 64
LIST_CONCURRENCY = 4
_BARE = "benchmarks.load.servers:bare"
_SERVICE = "app.main:load"


def measure_polling(rounds: int, seconds: float) -> dict[str, Any]:
    """Rates and latencies of `GET /v1/fine_tuning/jobs/{id}` and of a bare route with as large answers, in turn."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        filled = fill(folder, 1_000)
        with serving(_SERVICE, environment(folder, filled)) as (port, _):
            answer = _get(port, filled, f"/v1/fine_tuning/jobs/{filled.job_ids[0]}")
            bare_environment = {"BARE_ANSWER": json.dumps(answer), "BARE_FOLDER": str(folder)}
            with serving(_BARE, bare_environment) as (bare_port, _):
                polls = [request(f"/v1/fine_tuning/jobs/{job_id}", filled.key) for job_id in filled.job_ids]
                bares = [request(f"/job/{job_id}") for job_id in filled.job_ids]
                _flood(port, polls, 1.0), _flood(bare_port, bares, 1.0)  # Warm.
                found = [(_flood(bare_port, bares, seconds), _flood(port, polls, seconds)) for _ in range(rounds)]
    return {
        "concurrency": CONCURRENCY,
        "bare": _summary([bare for bare, _ in found]),
        "service": _summary([ours for _, ours in found]),
        "share": statistics.median(ours.rate / bare.rate for bare, ours in found),
        "shares": [round(ours.rate / bare.rate, 3) for bare, ours in found],
    }


def measure_listing(sizes: tuple[int, int], rounds: int, seconds: float) -> dict[str, Any]:
    """Latencies of the first and of a middle page of a project's jobs, with few and with many jobs, in turn."""
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / str(size) for size in sizes]
        for folder in folders:
            folder.mkdir()
        filled = [fill(folder, size) for folder, size in zip(folders, sizes, strict=True)]
        with (
            serving(_SERVICE, environment(folders[0], filled[0])) as (few, _),
            serving(_SERVICE, environment(folders[1], filled[1])) as (many, _),
        ):
            ports = (few, many)
            pages = [[request(path, each.key) for path in _pages(each)] for each in filled]
            for port, asked in zip(ports, pages, strict=True):
                _flood(port, asked, 1.0, LIST_CONCURRENCY)
            found = [
                [_flood(port, asked, seconds, LIST_CONCURRENCY) for port, asked in zip(ports, pages, strict=True)]
                for _ in range(rounds)
            ]
    return {
        "jobs": list(sizes),
        "concurrency": LIST_CONCURRENCY,
        "few": _summary([pair[0] for pair in found]),
        "many": _summary([pair[1] for pair in found]),
        "p99_ratio": statistics.median(pair[1].percentile(0.99) / pair[0].percentile(0.99) for pair in found),
    }


def environment(folder: Path, filled: Filled) -> dict[str, str]:
    """The service's settings: this database, no broker that answers, no limit on how often one may ask."""
    ours = {key: value for key, value in os.environ.items() if key.startswith("UNFORGOTTEN_")}
    return ours | {
        "UNFORGOTTEN_DATA_DIR": str(folder),
        "UNFORGOTTEN_DATABASE_URL": filled.url,
        "UNFORGOTTEN_REQUESTS_PER_MINUTE": "100000000",
    }


def _pages(filled: Filled) -> list[str]:
    jobs = "/v1/fine_tuning/jobs"
    middle = filled.job_ids[len(filled.job_ids) // 2]
    return [f"{jobs}?limit=20", f"{jobs}?limit=20&after={middle}"]


def _get(port: int, filled: Filled, path: str) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {filled.key}"}
    response = httpx.get(f"http://127.0.0.1:{port}{path}", headers=headers, trust_env=False)
    found: dict[str, Any] = response.raise_for_status().json()
    return found


def _flood(port: int, requests: list[bytes], seconds: float, concurrency: int = CONCURRENCY) -> Outcome:
    return asyncio.run(flood(port, requests, concurrency=concurrency, seconds=seconds))


def _summary(outcomes: list[Outcome]) -> dict[str, float]:
    return {
        "requests_per_second": statistics.median(outcome.rate for outcome in outcomes),
        "p50_ms": 1e3 * statistics.median(outcome.percentile(0.5) for outcome in outcomes),
        "p99_ms": 1e3 * statistics.median(outcome.percentile(0.99) for outcome in outcomes),
        "requests": sum(len(outcome.latencies) for outcome in outcomes),
        "lost_or_failed": sum(outcome.num_failed for outcome in outcomes),
    }
