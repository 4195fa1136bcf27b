"""The unmodified `openai` client against the service, over HTTP. No worker runs, so jobs stay queued."""

from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import openai
import pytest
from sqlalchemy import select

from app.auth.service import AuthService
from app.contracts.states import JobStatus
from app.db import Database
from app.ids import new_id
from app.models import Checkpoint, FineTunedModel, Job
from app.settings import Settings
from tests.app.helpers import BASE, chat_file


def upload(ai: openai.OpenAI, data: bytes | None = None) -> str:
    return ai.files.create(file=("train.jsonl", BytesIO(data or chat_file())), purpose="fine-tune").id


def create(ai: openai.OpenAI, file_id: str) -> str:
    return ai.fine_tuning.jobs.create(model=BASE, training_file=file_id).id


class TestFiles:
    def test_create_wait_retrieve_content_list_delete(self, ai: openai.OpenAI) -> None:
        data = chat_file(11)
        file_id = upload(ai, data)
        assert ai.files.wait_for_processing(file_id).status == "processed"
        found = ai.files.retrieve(file_id)
        assert (found.bytes, found.filename, found.purpose) == (len(data), "train.jsonl", "fine-tune")
        assert ai.files.content(file_id).read() == data
        assert [file.id for file in ai.files.list()] == [file_id]
        assert ai.files.delete(file_id).deleted
        with pytest.raises(openai.NotFoundError):
            ai.files.retrieve(file_id)

    def test_lists_page_by_themselves(self, ai: openai.OpenAI) -> None:
        made = [upload(ai) for _ in range(5)]
        assert [file.id for file in ai.files.list(limit=2, order="asc")] == made

    def test_expiry(self, ai: openai.OpenAI) -> None:
        found = ai.files.create(
            file=("a.jsonl", chat_file()),
            purpose="fine-tune",
            expires_after={"anchor": "created_at", "seconds": 7200},
        )
        assert found.expires_at == found.created_at + 7200

    def test_bad_lines_are_in_the_error(self, ai: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match="Line 11") as caught:
            upload(ai, chat_file() + b"{oops\n")
        assert (caught.value.code, caught.value.param) == ("invalid_training_file", "file")
        assert isinstance(caught.value.body, dict)
        assert caught.value.body["lines"][0]["line"] == 11
        assert caught.value.request_id is not None


class TestJobs:
    def test_create_retrieve_list_cancel_events(self, ai: openai.OpenAI, base: str) -> None:
        file_id = upload(ai)
        job = ai.fine_tuning.jobs.create(
            model=base,
            training_file=file_id,
            validation_file=upload(ai),
            suffix="mine",
            seed=3,
            metadata={"team": "red"},
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
            extra_body={"safety": {"method": "der", "hyperparameters": {"alpha": 1.0}}},
        )
        assert (job.status, job.seed, job.hyperparameters.n_epochs) == ("queued", 3, 2)
        assert job.model_extra is not None
        assert job.model_extra["safety"]["hyperparameters"]["alpha"] == 1.0
        assert ai.fine_tuning.jobs.retrieve(job.id) == job
        assert [found.id for found in ai.fine_tuning.jobs.list(metadata={"team": "red"})] == [job.id]
        assert list(ai.fine_tuning.jobs.list(metadata={"team": "blue"})) == []
        assert len(list(ai.fine_tuning.jobs.list_events(job.id, limit=1))) == 3
        assert list(ai.fine_tuning.jobs.checkpoints.list(job.id)) == []
        assert ai.fine_tuning.jobs.cancel(job.id).status == "cancelled"
        assert ai.fine_tuning.jobs.cancel(job.id).status == "cancelled"

    def test_lists_page_by_themselves(self, ai: openai.OpenAI, base: str) -> None:
        file_id = upload(ai)
        made = [create(ai, file_id) for _ in range(5)]
        assert [job.id for job in ai.fine_tuning.jobs.list(limit=2)] == made[::-1]

    def test_checkpoints(self, ai: openai.OpenAI, base: str, database: Database) -> None:
        job_id = create(ai, upload(ai))
        name = "ft:tiny-base:unforgotten::abc:ckpt-step-5"
        with database.transaction() as session:
            checkpoint_id = new_id("ftckpt_")
            session.add(
                Checkpoint(
                    id=checkpoint_id, job_id=job_id, step_number=5, model_name=name, metrics={"train_loss": 0.25}
                )
            )
        found = list(ai.fine_tuning.jobs.checkpoints.list(job_id))
        assert [checkpoint.fine_tuned_model_checkpoint for checkpoint in found] == [name]
        assert found[0].metrics.train_loss == 0.25


class TestErrors:
    """What a client makes of an error, with its retries on: each of these would fail again, so one request it is."""

    @pytest.fixture
    def sent(self) -> list[str]:
        """Every request that the client sends."""
        return []

    @pytest.fixture
    def new_ai(self, address: str, sent: list[str]) -> Iterator[Callable[[str], openai.OpenAI]]:
        clients: list[openai.OpenAI] = []

        def make(key: str) -> openai.OpenAI:
            hooks = {"request": [lambda request: sent.append(f"{request.method} {request.url.path}")]}
            http_client = openai.DefaultHttpxClient(event_hooks=hooks)
            clients.append(openai.OpenAI(base_url=address, api_key=key, http_client=http_client))
            assert clients[-1].max_retries == 2
            return clients[-1]

        yield make
        for client in clients:
            client.close()

    @pytest.fixture
    def ai(self, new_ai: Callable[[str], openai.OpenAI], database: Database) -> openai.OpenAI:
        return new_ai(AuthService(database).create_key("acme"))

    def test_a_bad_key(self, new_ai: Callable[[str], openai.OpenAI], sent: list[str]) -> None:
        for call in (lambda ai: ai.models.list(), upload):
            sent.clear()
            with pytest.raises(openai.AuthenticationError) as caught:
                call(new_ai("sk-unf-wrong"))
            assert (caught.value.code, len(sent)) == ("invalid_api_key", 1)
            assert caught.value.request_id is not None

    def test_a_missing_file(self, ai: openai.OpenAI, base: str, sent: list[str]) -> None:
        for call in (ai.files.retrieve, ai.files.content, ai.files.delete):
            sent.clear()
            with pytest.raises(openai.NotFoundError, match="No such File object: file-x") as caught:
                call("file-x")
            assert (caught.value.code, len(sent)) == ("not_found", 1)
        with pytest.raises(openai.BadRequestError, match="file-x") as refused:
            create(ai, "file-x")
        assert (refused.value.code, refused.value.param) == ("invalid_file", "training_file")

    @pytest.mark.parametrize(("purpose", "code"), [("assistants", "unsupported"), ("fun", "invalid_value")])
    def test_a_wrong_purpose(self, ai: openai.OpenAI, sent: list[str], purpose: Any, code: str) -> None:
        with pytest.raises(openai.BadRequestError, match="fine-tune") as caught:
            ai.files.create(file=("a.jsonl", chat_file()), purpose=purpose)
        assert (caught.value.code, caught.value.param, len(sent)) == (code, "purpose", 1)

    def test_a_file_with_bad_lines(self, ai: openai.OpenAI, sent: list[str]) -> None:
        with pytest.raises(openai.BadRequestError, match="Line 11") as caught:
            upload(ai, chat_file() + b"{oops\n" * 50_000)
        assert (caught.value.code, caught.value.param, len(sent)) == ("invalid_training_file", "file", 1)

    def test_a_file_that_is_too_large(self, ai: openai.OpenAI, settings: Settings, sent: list[str]) -> None:
        with pytest.raises(openai.APIStatusError, match="larger than") as caught:
            upload(ai, b" " * (settings.max_file_bytes + 100_000))
        assert (caught.value.status_code, caught.value.code, len(sent)) == (413, "file_too_large", 1)

    def test_an_unknown_model(self, ai: openai.OpenAI, sent: list[str]) -> None:
        with pytest.raises(openai.NotFoundError, match="gpt-9") as caught:
            ai.fine_tuning.jobs.create(model="gpt-9", training_file="file-x")
        assert (caught.value.code, caught.value.param, len(sent)) == ("model_not_found", "model", 1)

    @pytest.mark.parametrize(
        ("safety", "param"),
        [
            ({"method": "magic"}, "safety.method"),
            ({"method": "der", "hyperparameters": {"beta": 1}}, "safety.hyperparameters.beta"),
            ({"method": "der", "hyperparameters": {"alpha": -1}}, "safety.hyperparameters.alpha"),
            ({"method": "der", "hyperparameters": {"alpha": {"budget": 0}}}, "safety.hyperparameters.alpha.budget"),
            ({"method": "der", "ema": {"decay": 2}}, "safety.ema.decay"),
            ({"method": "der", "merge": {"name": "soup"}}, "safety.merge.name"),
            ({"method": "magmax"}, "safety.method"),
        ],
    )
    def test_unknown_safety(
        self, ai: openai.OpenAI, base: str, sent: list[str], safety: dict[str, Any], param: str
    ) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            ai.fine_tuning.jobs.create(model=base, training_file="file-x", extra_body={"safety": safety})
        assert (caught.value.param, len(sent)) == (param, 1)

    @pytest.mark.parametrize("status", [JobStatus.SUCCEEDED, JobStatus.FAILED])
    def test_cancelling_a_finished_job(
        self, ai: openai.OpenAI, base: str, database: Database, sent: list[str], status: JobStatus
    ) -> None:
        job_id = create(ai, upload(ai))
        with database.transaction() as session:
            session.get_one(Job, job_id).status = status
        sent.clear()
        with pytest.raises(openai.BadRequestError, match=status) as caught:
            ai.fine_tuning.jobs.cancel(job_id)
        assert (caught.value.code, sent) == ("job_finished", [f"POST /v1/fine_tuning/jobs/{job_id}/cancel"])


class TestModels:
    def test_list_retrieve_delete(self, ai: openai.OpenAI, base: str, database: Database) -> None:
        job_id = create(ai, upload(ai))
        name = "ft:tiny-base:unforgotten:mine:abcd1234"
        with database.transaction() as session:
            project_id = session.scalars(select(Job.project_id)).one()
            session.add(FineTunedModel(id=name, project_id=project_id, job_id=job_id, base_id=base))
        assert [model.id for model in ai.models.list()] == [base, name]
        assert ai.models.retrieve(name).id == name
        assert ai.models.delete(name).deleted
        with pytest.raises(openai.NotFoundError):
            ai.models.retrieve(name)
        with pytest.raises(openai.PermissionDeniedError):
            ai.models.delete(base)
