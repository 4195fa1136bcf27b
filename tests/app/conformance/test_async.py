"""The unmodified `openai` package's asynchronous client: every method of the resources that the service has."""

import asyncio
from io import BytesIO
from pathlib import Path

import openai
import pytest

from app.auth.service import AuthService
from app.db import Database
from tests.app.helpers import BASE, chat_file
from tests.receiver import receiving

DATA = chat_file(12)


@pytest.fixture
def key(database: Database) -> str:
    return AuthService(database).create_key("async")


def test_every_method(address: str, key: str, base: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(DATA)

    async def act() -> None:
        async with openai.AsyncOpenAI(base_url=address, api_key=key, max_retries=0) as ai:
            await _files(ai)
            await _uploads(ai, path)
            await _jobs(ai)
            await _webhooks(ai)
            assert BASE in [model.id async for model in ai.models.list()]
            assert (await ai.models.retrieve(BASE)).id == BASE

    asyncio.run(act())


async def _files(ai: openai.AsyncOpenAI) -> None:
    made = [(await ai.files.create(file=(f"{n}.jsonl", BytesIO(DATA)), purpose="fine-tune")).id for n in range(7)]
    assert (await ai.files.wait_for_processing(made[0])).status == "processed"
    assert [file.id async for file in ai.files.list(limit=2)] == made[::-1]
    assert (await ai.files.content(made[0])).content == DATA
    assert (await ai.files.retrieve(made[0])).bytes == len(DATA)
    assert (await ai.files.delete(made[0])).deleted
    with pytest.raises(openai.NotFoundError) as missing:
        await ai.files.retrieve(made[0])
    assert missing.value.request_id is not None


async def _uploads(ai: openai.AsyncOpenAI, path: Path) -> None:
    upload = await ai.uploads.upload_file_chunked(
        file=path, mime_type="application/jsonl", purpose="fine-tune", part_size=500
    )
    assert upload.file is not None
    assert upload.file.bytes == len(DATA)
    begun = await ai.uploads.create(filename="a", purpose="fine-tune", bytes=len(DATA), mime_type="text/plain")
    pieces = [DATA[start : start + 400] for start in range(0, len(DATA), 400)]
    parts = await asyncio.gather(*(ai.uploads.parts.create(begun.id, data=piece) for piece in pieces))
    done = await ai.uploads.complete(begun.id, part_ids=[part.id for part in parts])
    assert done.file is not None
    assert (await ai.files.content(done.file.id)).content == DATA
    other = await ai.uploads.create(filename="a", purpose="fine-tune", bytes=5, mime_type="text/plain")
    assert (await ai.uploads.cancel(other.id)).status == "cancelled"


async def _jobs(ai: openai.AsyncOpenAI) -> None:
    file = await ai.files.create(file=("a.jsonl", BytesIO(DATA)), purpose="fine-tune")
    jobs = [
        (await ai.fine_tuning.jobs.create(model=BASE, training_file=file.id, metadata={"number": str(n)})).id
        for n in range(7)
    ]
    assert [job.id async for job in ai.fine_tuning.jobs.list(limit=2)] == jobs[::-1]
    found = await ai.fine_tuning.jobs.list(extra_query={"metadata[number]": "5"})
    assert [job.id for job in found.data] == [jobs[5]]
    assert (await ai.fine_tuning.jobs.retrieve(jobs[0])).status == "queued"
    assert str((await ai.fine_tuning.jobs.pause(jobs[1])).status) == "paused"
    assert (await ai.fine_tuning.jobs.resume(jobs[1])).status == "queued"
    assert (await ai.fine_tuning.jobs.cancel(jobs[2])).status == "cancelled"
    events = [event.message async for event in ai.fine_tuning.jobs.list_events(jobs[0], limit=1)]
    assert events[-1] == f"Created fine-tuning job: {jobs[0]}"
    assert (await ai.fine_tuning.jobs.checkpoints.list(jobs[0])).data == []
    with pytest.raises(openai.BadRequestError) as refused:
        await ai.fine_tuning.jobs.cancel((await ai.fine_tuning.jobs.create(model=BASE, training_file="file-no")).id)
    assert (refused.value.code, refused.value.param) == ("invalid_file", "training_file")


async def _webhooks(ai: openai.AsyncOpenAI) -> None:
    assert "fine_tuning.job.cancelled" in (await ai.webhooks.event_types.list()).data
    with receiving() as receiver:
        made = [
            await ai.webhooks.create(name=f"n{n}", url=receiver.url, event_types=["fine_tuning.job.succeeded"])
            for n in range(5)
        ]
        assert [found.id async for found in ai.webhooks.list(limit=2)] == [each.id for each in reversed(made)]
        first = made[0].id
        assert (await ai.webhooks.update(first, name="other")).name == "other"
        assert (await ai.webhooks.retrieve(first)).name == "other"
        rotated = await ai.webhooks.rotate_secret(first, keep_old_secret_active_for_24_hours=True)
        assert (await ai.webhooks.test(first, event_type="fine_tuning.job.cancelled")).status_code == 200
        [message] = receiver.received
    for secret in (made[0].signing_secret, rotated.signing_secret):
        event = ai.webhooks.unwrap(message.body, message.headers, secret=secret)
        assert event.type == "fine_tuning.job.cancelled"
    with pytest.raises(openai.InvalidWebhookSignatureError):
        ai.webhooks.unwrap(message.body, message.headers, secret=made[1].signing_secret)
    assert (await ai.webhooks.delete(first)).deleted
    with pytest.raises(openai.NotFoundError):
        await ai.webhooks.retrieve(first)
