"""Estimates and previews through HTTP, counted by the real process."""

import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.contracts.chat import ChatRow
from app.contracts.counting import CountResult, CountSpec, TokenCounts
from app.contracts.states import JobStatus
from app.db import Database, db_now
from app.estimates.counter import EstimatesUnavailableError, TokenCounter
from app.estimates.service import EstimateService, Price
from app.main import create_app
from app.models import BaseModelRow, Job, Project
from app.settings import Settings
from app.storage import ObjectStorage
from tests.app.helpers import BASE, RecordingPublisher, chat_file, created_job, upload, uploaded
from tests.workers.tiny import END, tiny_tokenizer
from workers.finetuning.rows import encode_dataset
from workers.modeling.chat import ChatCodec

ESTIMATE = "/v1/fine_tuning/estimate"
TOOL = {"type": "function", "function": {"name": "tide", "description": "High water.", "parameters": {}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "tide", "arguments": '{"harbour": "Whitby"}'}}
TOOL_ROW = {
    "messages": [{"role": "user", "content": "When?"}, {"role": "assistant", "content": None, "tool_calls": [CALL]}],
    "tools": [TOOL],
}


def lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def preferences(count: int = 10) -> bytes:
    return lines(
        *(
            {
                "input": {"messages": [{"role": "user", "content": f"{number}?"}]},
                "preferred_output": [{"role": "assistant", "content": "Yes."}],
                "non_preferred_output": [{"role": "assistant", "content": "No."}],
            }
            for number in range(count)
        )
    )


def completions(count: int = 10) -> bytes:
    return lines(*({"prompt": f"Question {number}?", "completion": f"Four {number}"} for number in range(count)))


class TestEstimate:
    def test_counts_what_training_counts(self, client: TestClient, prepare_base: Callable[[str], None]) -> None:
        prepare_base(BASE)
        data = chat_file(12)
        body = {
            "model": BASE,
            "training_file": uploaded(client, data),
            "hyperparameters": {"n_epochs": 3, "batch_size": 5},
            "safety": {"method": "none"},
        }
        response = client.post(ESTIMATE, json=body)
        assert response.status_code == 200, response.text
        found = response.json()
        rows = [ChatRow.model_validate_json(line) for line in data.splitlines()]
        dataset = encode_dataset(ChatCodec(tiny_tokenizer()), rows, max_tokens=2048)
        assert found["file_tokens"] == sum(len(row.ids) for row in dataset.rows)
        assert found["trained_tokens"] == 3 * sum(len(row.positions) for row in dataset.rows)
        assert found["longest_row_tokens"] == max(len(row.ids) for row in dataset.rows)
        assert (found["num_rows"], found["num_rows_counted"], found["num_steps"]) == (12, 12, 9)
        assert (found["is_exact"], found["notes"], found["num_cut_rows"]) == (True, [], 0)
        assert found["hyperparameters"] == {"batch_size": 5, "learning_rate_multiplier": 1.0, "n_epochs": 3}
        assert (found["seconds_estimate"], found["cost_estimate"], found["currency"]) == (None, None, None)
        assert found["seconds_reason"] == "No job with the method none has finished on this base yet."
        assert client.get("/v1/fine_tuning/jobs").json()["data"] == []

    def test_completions_are_counted_as_the_conversations_they_are(
        self, client: TestClient, prepare_base: Callable[[str], None]
    ) -> None:
        prepare_base(BASE)
        files = [uploaded(client, data) for data in (chat_file(), completions())]
        found = [client.post(ESTIMATE, json={"model": BASE, "training_file": file}).json() for file in files]
        assert [estimate["format"] for estimate in found] == ["chat", "completion"]
        assert found[0]["trained_tokens"] == found[1]["trained_tokens"]

    def test_rows_that_cannot_be_trained_on_are_found_before_the_job_is_made(
        self, client: TestClient, prepare_base: Callable[[str], None]
    ) -> None:
        prepare_base(BASE)
        long = {"messages": [{"role": "user", "content": "x" * 3000}, {"role": "assistant", "content": "Yes."}]}
        file = uploaded(client, chat_file() + lines(long))
        response = client.post(ESTIMATE, json={"model": BASE, "training_file": file})
        assert response.status_code == 400
        error = response.json()["error"]
        assert (error["code"], error["param"]) == ("invalid_training_file", "training_file")
        assert error["message"].startswith("Line 11 cannot be trained on: no token of the answer is left within 2048")

    def test_of_a_long_file_the_beginning_is_counted_and_the_rest_extrapolated(
        self,
        settings: Settings,
        database: Database,
        storage: ObjectStorage,
        publisher: RecordingPublisher,
        client: TestClient,
        prepare_base: Callable[[str], None],
    ) -> None:
        prepare_base(BASE)
        small = settings.model_copy(update={"estimate_max_bytes": 2000, "price_per_million_tokens": 3.0})
        app = create_app(small, database=database, storage=storage, publisher=publisher)
        other = TestClient(app, headers=dict(client.headers))
        file = uploaded(client, chat_file(100))
        body = {"model": BASE, "training_file": file, "hyperparameters": {"n_epochs": 1}}
        whole, part = (api.post(ESTIMATE, json=body).json() for api in (client, other))
        assert whole["is_exact"]
        assert not part["is_exact"]
        assert part["num_rows"] == 100
        assert 10 < part["num_rows_counted"] < 30
        assert part["notes"][0].startswith("The file is long: its first")
        assert part["trained_tokens"] == pytest.approx(whole["trained_tokens"], rel=0.15)
        assert part["cost_estimate"] == pytest.approx(3e-6 * part["trained_tokens"])
        assert part["currency"] == "USD"

    @pytest.mark.parametrize(
        ("change", "param"),
        [
            ({"hyperparameters": {"n_epochs": 99}}, "hyperparameters.n_epochs"),
            ({"model": "nobody"}, "model"),
            ({"safety": {"method": "ewc"}, "training_file": "file-none"}, "training_file"),
            ({"safety": {"method": "safelora"}}, "safety.method"),
            ({"validation_file": "file-none"}, "validation_file"),
        ],
    )
    def test_what_would_be_refused_as_a_job_is_refused_alike(
        self, client: TestClient, prepare_base: Callable[[str], None], change: dict[str, Any], param: str
    ) -> None:
        prepare_base(BASE)
        body = {"model": BASE, "training_file": uploaded(client), **change}
        answers = [client.post(path, json=body) for path in (ESTIMATE, "/v1/fine_tuning/jobs")]
        assert answers[0].json() == answers[1].json()
        assert answers[0].status_code == answers[1].status_code >= 400
        assert answers[0].json()["error"]["param"] == param

    def test_files_of_others_are_not_there(
        self, client: TestClient, stranger: TestClient, prepare_base: Callable[[str], None]
    ) -> None:
        prepare_base(BASE)
        file = uploaded(client)
        theirs = stranger.post(ESTIMATE, json={"model": BASE, "training_file": file})
        missing = stranger.post(ESTIMATE, json={"model": BASE, "training_file": "file-none"})
        assert theirs.status_code == missing.status_code == 400
        assert theirs.json()["error"]["message"].replace(file, "file-none") == missing.json()["error"]["message"]

    def test_through_the_unmodified_client(self, ai: openai.OpenAI, prepare_base: Callable[[str], None]) -> None:
        prepare_base(BASE)
        file = ai.files.create(file=("train.jsonl", chat_file()), purpose="fine-tune")
        body = {"model": BASE, "training_file": file.id}
        found = ai.post("/fine_tuning/estimate", body=body, cast_to=dict[str, Any])
        assert found["object"] == "fine_tuning.estimate"
        assert found["trained_tokens"] > 0


class TestPreview:
    def test_shows_what_is_trained_and_what_is_only_read(
        self, client: TestClient, prepare_base: Callable[[str], None]
    ) -> None:
        prepare_base(BASE)
        file = uploaded(client)
        response = client.get(f"/v1/files/{file}/preview", params={"model": BASE, "limit": 2})
        assert response.status_code == 200, response.text
        found = response.json()
        assert (found["object"], found["format"], found["num_rows"]) == ("file.preview", "chat", 10)
        assert [row["line"] for row in found["data"]] == [1, 2]
        first = found["data"][0]
        assert [(span["text"], span["is_trained"]) for span in first["spans"]] == [
            ("<|im_start|>user\nQuestion 0?<|im_end|>\n<|im_start|>assistant\n", False),
            (f"Four 0{END}", True),
            ("\n", False),
        ]
        assert sum(span["num_tokens"] for span in first["spans"]) == first["num_tokens"]
        assert first["num_trained_tokens"] == first["spans"][1]["num_tokens"]
        assert (first["is_cut"], first["problem"], first["answer"]) == (False, None, None)

    def test_shows_tools_and_rows_that_cannot_be_trained_on(
        self, client: TestClient, prepare_base: Callable[[str], None]
    ) -> None:
        prepare_base(BASE)
        prepare_base("tools")
        file = uploaded(client, lines(*[TOOL_ROW] * 10))
        shown, problem = (
            client.get(f"/v1/files/{file}/preview", params={"model": model, "limit": 1}).json()["data"][0]
            for model in ("tools", BASE)
        )
        assert [span["text"] for span in shown["spans"] if span["is_trained"]] == [
            f'[tide {{"harbour": "Whitby"}}]{END}'
        ]
        assert "High water." in shown["spans"][0]["text"]
        assert "cannot render tools" in problem["problem"]
        assert problem["spans"] == []

    def test_shows_both_answers_of_preferences(self, client: TestClient, prepare_base: Callable[[str], None]) -> None:
        prepare_base(BASE)
        file = uploaded(client, preferences())
        found = client.get(f"/v1/files/{file}/preview", params={"model": BASE, "limit": 1}).json()
        assert [row["answer"] for row in found["data"]] == ["preferred", "non_preferred"]
        assert [[s["text"] for s in row["spans"] if s["is_trained"]] for row in found["data"]] == [
            [f"Yes.{END}"],
            [f"No.{END}"],
        ]

    def test_files_of_others_are_as_missing_ones(self, client: TestClient, stranger: TestClient, base: str) -> None:
        file = uploaded(client)
        theirs, missing = (
            stranger.get(f"/v1/files/{name}/preview", params={"model": base}) for name in (file, "file-none")
        )
        assert theirs.status_code == missing.status_code == 404
        assert theirs.json()["error"]["message"].replace(file, "file-none") == missing.json()["error"]["message"]

    @pytest.mark.parametrize("params", [{}, {"model": BASE, "limit": 0}, {"model": BASE, "limit": 101}])
    def test_refuses_odd_parameters(self, client: TestClient, base: str, params: dict[str, Any]) -> None:
        assert client.get(f"/v1/files/{uploaded(client)}/preview", params=params).status_code == 400


class TestRequirementsOfJobs:
    def test_preferences_are_not_for_supervised_training(self, client: TestClient, base: str) -> None:
        good, bad = uploaded(client), uploaded(client, preferences())
        for body, param in (
            ({"training_file": bad}, "training_file"),
            ({"training_file": good, "validation_file": bad}, "validation_file"),
        ):
            response = client.post("/v1/fine_tuning/jobs", json={"model": base, **body})
            assert response.status_code == 400
            error = response.json()["error"]
            assert (error["param"], error["code"]) == (param, "invalid_file_format")
            assert "in the preference format, and the method supervised takes chat or completion" in error["message"]

    def test_completions_are(self, client: TestClient, base: str) -> None:
        assert created_job(client, training_file=uploaded(client, completions()))["status"] == "queued"

    @pytest.mark.parametrize(("renders_tools", "status"), [(True, 200), (None, 200), (False, 400)])
    def test_tools_need_a_template_that_shows_them(
        self, client: TestClient, database: Database, base: str, renders_tools: bool | None, status: int
    ) -> None:
        with database.transaction() as session:
            session.get_one(BaseModelRow, base).renders_tools = renders_tools
        file = uploaded(client, lines(TOOL_ROW, *[TOOL_ROW] * 9))
        bodies: dict[str, dict[str, Any]] = {
            "/v1/fine_tuning/jobs": {"model": base, "training_file": file},
            "/v1/safety/preflight": {"model": base, "training_file": file},
        }
        for path, body in bodies.items():
            response = client.post(path, json=body)
            assert response.status_code == status, response.text
            if status == 400:
                error = response.json()["error"]
                assert (error["param"], error["code"]) == ("training_file", "tools_not_supported")
                assert error["message"].startswith("Invalid training_file: 10 rows of the file have tools")

    def test_preflights_look_at_preferred_answers(self, client: TestClient, base: str) -> None:
        body = {"model": base, "training_file": uploaded(client, preferences())}
        assert client.post("/v1/safety/preflight", json=body).status_code == 200

    def test_models_are_not_measured_on_preferences(self, client: TestClient, base: str) -> None:
        bad = uploaded(client, preferences())
        adapter = upload(client, b"\x1f\x8b", {"purpose": "adapter"}).json()["id"]
        body = {"model": base, "adapter_file": adapter, "validation_file": bad}
        response = client.post("/v1/safety/evaluations", json=body)
        assert response.status_code == 400, response.text
        assert response.json()["error"]["code"] == "invalid_file_format"
        assert response.json()["error"]["param"] == "validation_file"


class TestTimeAndCost:
    @pytest.fixture
    def estimate(
        self,
        api: FastAPI,
        database: Database,
        storage: ObjectStorage,
        settings: Settings,
        client: TestClient,
        base: str,
    ) -> Callable[..., dict[str, Any]]:
        """An estimate of 2000 trained tokens, with a counter that has counted already."""
        with database.transaction() as session:
            session.get_one(BaseModelRow, base).prepared_hash = "hash"

        def count(spec: CountSpec) -> CountResult:
            counts = TokenCounts(
                num_rows=10,
                num_tokens=5000,
                num_trained_tokens=2000,
                num_cut_rows=0,
                longest_row_tokens=9,
                row_limit=99,
            )
            return CountResult(counts=counts)

        service = EstimateService(database, storage, settings.bases_dir, count, 10_000, Price(2.5, "EUR"))
        object.__setattr__(api.state.services, "estimates", service)
        file = uploaded(client)

        def ask(**safety: Any) -> dict[str, Any]:
            body = {"model": base, "training_file": file, "hyperparameters": {"n_epochs": 1}, "safety": safety or None}
            found: dict[str, Any] = client.post(ESTIMATE, json=body).json()
            return found

        return ask

    def finish(self, database: Database, method: str, *, tokens: int, seconds: float, total: float) -> None:
        now = db_now()
        with database.transaction() as session:
            project = session.query(Project).first()
            assert project is not None
            session.add(
                Job(
                    id=f"ftjob-{method}{tokens}{seconds}",
                    project_id=project.id,
                    base_id=BASE,
                    model=BASE,
                    training_file="file-x",
                    seed=0,
                    hyperparameters={},
                    plan={"method": {"name": method}, "quantisation": "none", "gradient_checkpointing": False},
                    protection={},
                    status=JobStatus.SUCCEEDED,
                    result_files=[],
                    stages={"train": {"seconds": seconds, "trained_tokens": tokens}},
                    trained_tokens=tokens,
                    started_at=now - total,
                    finished_at=now,
                )
            )

    def test_time_is_the_median_of_jobs_with_the_same_method(
        self, database: Database, estimate: Callable[..., dict[str, Any]]
    ) -> None:
        self.finish(database, "der", tokens=1000, seconds=10.0, total=40.0)
        self.finish(database, "der", tokens=1000, seconds=20.0, total=60.0)
        self.finish(database, "der", tokens=1000, seconds=500.0, total=900.0)
        self.finish(database, "ewc", tokens=1000, seconds=1.0, total=1.0)
        found = estimate()
        # 0.02 seconds a token, and 40 seconds beside the training.
        assert found["seconds_estimate"] == pytest.approx(2000 * 0.02 + 40.0, abs=0.2)
        assert found["seconds_reason"].startswith("Medians of the last 3 finished jobs with the method der")

    def test_there_is_none_where_nothing_was_measured(
        self, database: Database, estimate: Callable[..., dict[str, Any]]
    ) -> None:
        self.finish(database, "ewc", tokens=1000, seconds=1.0, total=1.0)
        assert estimate()["seconds_estimate"] is None
        assert estimate(method="auto")["seconds_reason"].startswith("The pre-flight will choose the method")

    def test_cost_is_the_price_of_the_trained_tokens(self, estimate: Callable[..., dict[str, Any]]) -> None:
        found = estimate()
        assert (found["trained_tokens"], found["cost_estimate"], found["currency"]) == (2000, 0.005, "EUR")
        assert found["cost_reason"] == "2.5 EUR for a million trained tokens."

    @pytest.mark.parametrize(
        ("safety", "note"),
        [
            ({"method": "auto"}, "The pre-flight will choose the method"),
            ({"method": "lisa"}, "Lisa passes your rows over"),
            ({"method": "none", "drop_flagged_rows": True}, "Rows that the pre-flight flags"),
        ],
    )
    def test_what_may_change_the_tokens_is_noted(
        self, estimate: Callable[..., dict[str, Any]], safety: dict[str, Any], note: str
    ) -> None:
        found = estimate(**safety)
        assert not found["is_exact"]
        assert found["notes"][0].startswith(note)


class TestCounter:
    def test_says_what_to_do_where_it_cannot_see_the_base(
        self, client: TestClient, database: Database, base: str
    ) -> None:
        with database.transaction() as session:
            session.get_one(BaseModelRow, base).prepared_hash = "elsewhere"
        response = client.post(ESTIMATE, json={"model": base, "training_file": uploaded(client)})
        assert response.status_code == 501
        assert response.headers["x-should-retry"] == "false"
        assert response.json()["error"]["code"] == "estimates_unavailable"
        assert "UNFORGOTTEN_ARTEFACTS_DIR" in response.json()["error"]["message"]

    def test_ends_what_takes_too_long(self, text_parts: Any, tmp_path: Any) -> None:
        spec = CountSpec(model_dir=text_parts, file=tmp_path / "none", max_row_tokens=9)
        with pytest.raises(EstimatesUnavailableError, match=r"longer than 0\.05 seconds"):
            TokenCounter(0.05).count(spec)

    def test_says_little_of_what_went_wrong_in_the_process(self, text_parts: Any, tmp_path: Any) -> None:
        spec = CountSpec(model_dir=text_parts, file=tmp_path / "none", max_row_tokens=9)
        with pytest.raises(EstimatesUnavailableError, match="the service's log says why") as caught:
            TokenCounter(60.0).count(spec)
        assert str(tmp_path) not in str(caught.value)
