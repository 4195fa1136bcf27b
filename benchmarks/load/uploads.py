"""How fast uploads go beside a plain streamed write with sha256 of the same bytes."""

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from benchmarks.load.database import fill
from benchmarks.load.polling import environment
from benchmarks.load.servers import serving

CHUNK_BYTES = 256 * 1024
_BOUNDARY = "load"


def measure_uploads(rounds: int, megabytes: int) -> dict[str, Any]:
    """MB/s of a file of chat rows that is checked line by line (`POST /v1/files`), of a part of an upload, which is
    only kept (`POST /v1/uploads/ID/parts`), and of the plain write, in turn."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        filled = fill(folder, 10)
        data = chat_rows(megabytes * 1_000_000)
        with (
            serving("app.main:load", environment(folder, filled)) as (port, _),
            serving("benchmarks.load.servers:bare", {"BARE_ANSWER": "{}", "BARE_FOLDER": name}) as (bare_port, _),
            httpx.Client(timeout=600.0, trust_env=False) as client,
        ):
            client.headers["authorization"] = f"Bearer {filled.key}"
            service, plain = f"http://127.0.0.1:{port}/v1", f"http://127.0.0.1:{bare_port}/upload"
            found: dict[str, list[float]] = {"plain": [], "file": [], "part": []}
            for _ in range(rounds):
                found["plain"].append(_plain(client, plain, data))
                found["file"].append(_file(client, service, data))
                found["part"].append(_part(client, service, data[: 64 * 1024 * 1024]))
    rates = {what: statistics.median(values) for what, values in found.items()}
    return {
        "megabytes": megabytes,
        "megabytes_per_second": rates,
        "share_of_plain": {
            what: statistics.median(ours / plain for ours, plain in zip(found[what], found["plain"], strict=True))
            for what in ("file", "part")
        },
    }


def chat_rows(size: int) -> bytes:
    """Rows as tenants have them, some 700 bytes each, of about this size in all."""
    question = "Janet has 3 boxes of 24 eggs each and uses 5 a day for breakfast. How long do they last? " * 3
    answer = "She has 3 * 24 = 72 eggs. At 5 a day they last 72 / 5 = 14 full days.\n#### 14 " * 4
    rows, length, number = [], 0, 0
    while length < size:
        messages = [{"role": "user", "content": f"{number}: {question}"}, {"role": "assistant", "content": answer}]
        rows.append(json.dumps({"messages": messages}).encode() + b"\n")
        length += len(rows[-1])
        number += 1
    return b"".join(rows)


def _plain(client: httpx.Client, url: str, data: bytes) -> float:
    return _rate(client, url, data, [data], {})


def _file(client: httpx.Client, service: str, data: bytes) -> float:
    fields = _field("purpose", b"fine-tune")
    return _rate(client, f"{service}/files", data, [fields, *_multipart("file", data)], _MULTIPART)


def _part(client: httpx.Client, service: str, data: bytes) -> float:
    announced = {"filename": "rows.jsonl", "purpose": "fine-tune", "bytes": len(data), "mime_type": "application/jsonl"}
    upload = client.post(f"{service}/uploads", json=announced).raise_for_status().json()["id"]
    rate = _rate(client, f"{service}/uploads/{upload}/parts", data, _multipart("data", data), _MULTIPART)
    client.post(f"{service}/uploads/{upload}/cancel").raise_for_status()
    return rate


_MULTIPART = {"content-type": f"multipart/form-data; boundary={_BOUNDARY}"}


def _field(name: str, value: bytes) -> bytes:
    return f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value + b"\r\n"


def _multipart(name: str, data: bytes) -> list[bytes]:
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="rows.jsonl"\r\n\r\n'
    return [head.encode(), data, f"\r\n--{_BOUNDARY}--\r\n".encode()]


def _rate(client: httpx.Client, url: str, data: bytes, pieces: list[bytes], headers: dict[str, str]) -> float:
    """MB/s of one request."""
    length = {"content-length": str(sum(map(len, pieces)))}
    started = time.perf_counter()
    client.post(url, content=_chunks(pieces), headers=headers | length).raise_for_status()
    return len(data) / 1e6 / (time.perf_counter() - started)


def _chunks(pieces: list[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        view = memoryview(piece)
        for start in range(0, len(piece), CHUNK_BYTES):
            yield bytes(view[start : start + CHUNK_BYTES])
