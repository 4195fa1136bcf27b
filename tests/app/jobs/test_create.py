"""POST /v1/fine_tuning/jobs: what a request becomes, and what is refused."""

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from app.contracts.bases import TrainingDefaults
from app.contracts.methods import Der, NoMethod
from app.contracts.plan import TrainingPlan
from app.contracts.states import BaseStatus
from app.db import Database
from app.models import Event, Job, Work
from tests.app.helpers import BASE, RecordingPublisher, add_base, created_job, uploaded

OPENAI_KEYS = {
    "id",
    "object",
    "created_at",
    "finished_at",
    "model",
    "fine_tuned_model",
    "organization_id",
    "status",
    "hyperparameters",
    "method",
    "training_file",
    "validation_file",
    "result_files",
    "trained_tokens",
    "error",
    "seed",
    "estimated_finish",
    "integrations",
    "metadata",
}


class TestAccepted:
    def test_the_job_object_has_all_of_openais_keys_and_ours(self, client: TestClient, base: str) -> None:
        job = created_job(client, suffix="my-model", seed=7, metadata={"team": "red"})
        assert set(job) >= OPENAI_KEYS | {"phase", "safety", "plan", "adapter", "user_provided_suffix"}
        assert (job["object"], job["status"], job["model"], job["seed"]) == ("fine_tuning.job", "queued", BASE, 7)
        assert (job["error"], job["result_files"], job["finished_at"]) == (None, [], None)
        assert job["metadata"] == {"team": "red"}

    def test_auto_is_resolved_from_the_bases_defaults(self, client: TestClient, database: Database) -> None:
        add_base(database, "other", BaseStatus.READY, learning_rate=2e-4, num_epochs=3, batch_size=16, lora_rank=32)
        hyperparameters = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
        job = created_job(client, model="other", hyperparameters=hyperparameters)
        assert job["hyperparameters"] == {"n_epochs": 3, "batch_size": 16, "learning_rate_multiplier": 1.0}
        plan = TrainingPlan.model_validate(job["plan"])
        assert (plan.learning_rate, plan.num_epochs, plan.batch_size) == (2e-4, 3, 16)
        assert (plan.lora.rank, plan.lora.alpha) == (32, 64)

    def test_memory_is_saved_as_the_base_asks_for(self, client: TestClient, database: Database, base: str) -> None:
        add_base(database, "large", BaseStatus.READY, quantisation="nf4", gradient_checkpointing=True)
        large, other = (TrainingPlan.model_validate(created_job(client, model=m)["plan"]) for m in ("large", BASE))
        assert (large.quantisation, large.gradient_checkpointing) == ("nf4", True)
        assert (other.quantisation, other.gradient_checkpointing) == ("none", False)

    def test_the_multiplier_multiplies_the_bases_learning_rate(self, client: TestClient, base: str) -> None:
        asked = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 0.5}
        method = {"type": "supervised", "supervised": {"hyperparameters": asked}}
        job = created_job(client, method=method)
        plan = TrainingPlan.model_validate(job["plan"])
        assert plan.learning_rate == TrainingDefaults().learning_rate * 0.5
        assert (plan.num_epochs, plan.batch_size) == (2, 4)
        assert job["method"] == method
        assert job["hyperparameters"] == asked

    def test_der_is_the_default_method(self, client: TestClient, base: str) -> None:
        job = created_job(client)
        assert job["safety"]["method"] == "der"
        assert TrainingPlan.model_validate(job["plan"]).method == Der()

    def test_settings_of_the_method_reach_the_plan(self, client: TestClient, base: str) -> None:
        job = created_job(client, safety={"method": "der", "hyperparameters": {"alpha": 3.5}})
        settings = Der(alpha=3.5).model_dump(exclude={"name"})
        asked = {"method": "der", "hyperparameters": settings, "ema": None, "merge": None}
        assert asked.items() <= job["safety"].items()
        assert TrainingPlan.model_validate(job["plan"]).method == Der(alpha=3.5)
        plain = created_job(client, safety={"method": "none"})
        assert TrainingPlan.model_validate(plain["plan"]).method == NoMethod()

    def test_a_seed_is_drawn_when_none_is_given(self, client: TestClient, base: str) -> None:
        first, second = created_job(client), created_job(client)
        assert first["seed"] != second["seed"]
        assert first["plan"]["seed"] == first["seed"]

    def test_work_is_announced_once_and_only_after_the_commit(
        self, client: TestClient, base: str, database: Database, publisher: RecordingPublisher
    ) -> None:
        job = created_job(client)
        with database.transaction() as session:
            work = session.scalars(select(Work)).one()
        assert publisher.published == [work.id]
        assert (work.kind, work.subject_id, work.state, work.attempt) == ("fine_tuning_job", job["id"], "queued", 0)
        assert work.max_attempts == 3
        assert work.available_at == pytest.approx(work.created_at, abs=5.0)

    def test_a_dead_broker_does_not_lose_the_job(
        self, client: TestClient, base: str, database: Database, publisher: RecordingPublisher
    ) -> None:
        publisher.is_dead = True
        created_job(client)
        with database.transaction() as session:
            assert session.scalars(select(Work)).one().state == "queued"

    def test_events_tell_what_happened_the_newest_first(self, client: TestClient, base: str) -> None:
        job = created_job(client)
        page = client.get(f"/v1/fine_tuning/jobs/{job['id']}/events").json()
        assert [event["message"] for event in page["data"]] == [
            "Files validated, moving job to queued state",
            f"Validating training file: {job['training_file']}",
            f"Created fine-tuning job: {job['id']}",
        ]
        assert page["has_more"] is False
        assert {event["object"] for event in page["data"]} == {"fine_tuning.job.event"}


REFUSALS: list[tuple[dict[str, Any], str, str]] = [
    ({"safety": {"method": "magic"}}, "safety.method", "unknown_method"),
    ({"safety": {"method": "der", "hyperparameters": {"beta": 1}}}, "safety.hyperparameters.beta", "unknown_parameter"),
    (
        {"safety": {"method": "none", "hyperparameters": {"name": "der"}}},
        "safety.hyperparameters.name",
        "unknown_parameter",
    ),
    ({"safety": {"method": "der", "hyperparameters": {"alpha": -1}}}, "safety.hyperparameters.alpha", "invalid_value"),
    ({"safety": {"method": "der", "extra": 1}}, "safety.extra", "unknown_parameter"),
    ({"safety": {}}, "safety.method", "missing_required_parameter"),
    ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", "invalid_value"),
    ({"hyperparameters": {"n_epochs": 51}}, "hyperparameters.n_epochs", "invalid_value"),
    ({"hyperparameters": {"n_epochs": "3"}}, "hyperparameters.n_epochs", "invalid_type"),
    ({"hyperparameters": {"n_epochs": True}}, "hyperparameters.n_epochs", "invalid_type"),
    ({"hyperparameters": {"batch_size": 257}}, "hyperparameters.batch_size", "invalid_value"),
    ({"hyperparameters": {"learning_rate_multiplier": 0}}, "hyperparameters.learning_rate_multiplier", "invalid_value"),
    (
        {"hyperparameters": {"learning_rate_multiplier": 1e9}},
        "hyperparameters.learning_rate_multiplier",
        "invalid_value",
    ),
    ({"hyperparameters": {"beta": 1}}, "hyperparameters.beta", "unknown_parameter"),
    ({"method": {"type": "reinforcement", "reinforcement": {}}}, "method.type", "unsupported"),
    ({"method": {"type": "magic"}}, "method.type", "invalid_value"),
    ({"integrations": [{"type": "wandb"}]}, "integrations", "unsupported"),
    ({"suffix": ""}, "suffix", "invalid_value"),
    ({"suffix": "a:b"}, "suffix", "invalid_value"),
    ({"suffix": "x" * 65}, "suffix", "invalid_value"),
    ({"seed": -1}, "seed", "invalid_value"),
    ({"seed": 2**31}, "seed", "invalid_value"),
    ({"metadata": {str(i): "x" for i in range(17)}}, "metadata", "invalid_value"),
    ({"metadata": {"k": "x" * 513}}, "metadata.k", "invalid_value"),
    ({"metadata": {"k": "a\x00b"}}, "metadata.k", "invalid_value"),
    ({"metadata": {"k": 1}}, "metadata.k", "invalid_type"),
    ({"metadata": {'a"b': "x"}}, 'metadata.a"b', "invalid_value"),
    ({"metadata": {"": "x"}}, "metadata.", "invalid_value"),
    ({"training_file": "file-none"}, "training_file", "invalid_file"),
    ({"training_file": 5}, "training_file", "invalid_type"),
    ({"validation_file": "file-none"}, "validation_file", "invalid_file"),
    ({"colour": "red"}, "colour", "unknown_parameter"),
]


class TestRefused:
    @pytest.mark.parametrize(
        ("body", "rule"),
        [
            ({"suffix": "my model"}, "only letters, digits, . _ and -, and a letter or digit first"),
            ({"metadata": {'a"b': "x"}}, "a key of metadata has no quotation marks, backslashes or control characters"),
        ],
        ids=["suffix", "metadata"],
    )
    def test_characters_that_are_not_allowed_are_told_in_words(
        self, client: TestClient, base: str, body: dict[str, Any], rule: str
    ) -> None:
        request = {"model": base, "training_file": uploaded(client), **body}
        error = client.post("/v1/fine_tuning/jobs", json=request).json()["error"]
        assert error["message"] == f"Invalid value for {error['param']}: {rule}"

    @pytest.mark.parametrize(
        ("body", "param", "code"), REFUSALS, ids=[f"{p}-{c}-{i}" for i, (_, p, c) in enumerate(REFUSALS)]
    )
    def test_a_bad_parameter_is_named(
        self,
        client: TestClient,
        base: str,
        database: Database,
        publisher: RecordingPublisher,
        body: dict[str, Any],
        param: str,
        code: str,
    ) -> None:
        request = {"model": BASE, "training_file": uploaded(client), **body}
        response = client.post("/v1/fine_tuning/jobs", json=request)
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
        with database.transaction() as session:
            for row in (Job, Event, Work):
                assert session.scalar(select(func.count()).select_from(row)) == 0
        assert publisher.published == []

    def test_unknown_methods_and_settings_are_answered_with_the_allowed_ones(
        self, client: TestClient, base: str
    ) -> None:
        request: dict[str, Any] = {"model": BASE, "training_file": uploaded(client)}
        response = client.post("/v1/fine_tuning/jobs", json={**request, "safety": {"method": "magic"}})
        assert "der, derpp, refresh" in response.json()["error"]["message"]
        allowed = [name for name in Der.model_fields if name != "name"]
        safety = {"method": "der", "hyperparameters": {"beta": 1}}
        response = client.post("/v1/fine_tuning/jobs", json={**request, "safety": safety})
        assert f"Allowed: {', '.join(allowed)}." in response.json()["error"]["message"]

    def test_hyperparameters_in_both_places_are_refused(self, client: TestClient, base: str) -> None:
        body = {
            "model": BASE,
            "training_file": uploaded(client),
            "hyperparameters": {"n_epochs": 1},
            "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        }
        assert client.post("/v1/fine_tuning/jobs", json=body).json()["error"]["param"] == "hyperparameters"

    def test_an_unknown_model_is_404(self, client: TestClient) -> None:
        body = {"model": "gpt-9", "training_file": uploaded(client)}
        response = client.post("/v1/fine_tuning/jobs", json=body)
        assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")

    @pytest.mark.parametrize("status", [status for status in BaseStatus if status != BaseStatus.READY])
    def test_a_base_that_is_not_ready_is_refused_with_its_state(
        self, client: TestClient, database: Database, status: BaseStatus
    ) -> None:
        add_base(database, "raw", status)
        body = {"model": "raw", "training_file": uploaded(client)}
        response = client.post("/v1/fine_tuning/jobs", json=body)
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (400, "base_not_ready", "model")
        assert status in error["message"]

    def test_another_projects_file_is_as_missing_as_one_that_never_was(
        self, client: TestClient, stranger: TestClient, base: str
    ) -> None:
        theirs = uploaded(stranger)
        answers = []
        for file_id in (theirs, "file-" + "x" * 24):
            response = client.post("/v1/fine_tuning/jobs", json={"model": BASE, "training_file": file_id})
            answers.append(response.text.replace(file_id, "ID"))
        assert answers[0] == answers[1]

    @pytest.mark.parametrize(
        "body",
        [
            b'{"\\ud800": 1}',
            b'{"model": "\\ud800"}',
            b'{"model": "m", "training_file": "f", "metadata": {"\\ud800": "x"}}',
            b'{"model": "tiny-base", "training_file": "f", "safety": {"method": "\\u0000"}}',
            b'{"model": "tiny-base", "training_file": "f", "safety": {"method": "der", "\\ud800": 1}}',
            b'{"model":"tiny-base","training_file":"f","safety":{"method":"der","hyperparameters":{"\\ud800":1}}}',
            b'{"model": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        ],
    )
    def test_text_that_cannot_be_encoded_is_400(self, client: TestClient, base: str, body: bytes) -> None:
        headers = {"content-type": "application/json"}
        response = client.post("/v1/fine_tuning/jobs", content=body, headers=headers)
        assert response.status_code == 400
        assert response.json()["error"]["message"]

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b'{"model": NaN}', b"\xff"])
    def test_bodies_that_are_no_objects_are_400(self, client: TestClient, body: bytes) -> None:
        headers = {"content-type": "application/json"}
        response = client.post("/v1/fine_tuning/jobs", content=body, headers=headers)
        assert response.status_code == 400
        assert response.json()["error"]["type"] == "invalid_request_error"
