"""POST /v1/fine_tuning/jobs with `method: dpo`: what it becomes, how it is shown, what it cannot be combined with."""

from typing import Any

import httpx2
import openai
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from app.contracts.bases import PrepareRecipe, TrainingDefaults
from app.contracts.methods import METHOD_CONFIGS, methods_for
from app.contracts.objectives import SUPERVISED, Dpo
from app.contracts.plan import TrainingPlan
from app.contracts.states import BaseStatus
from app.db import Database
from app.models import File, Job
from tests.app.helpers import BASE, add_base, chat_file, created_job, uploaded


@pytest.fixture
def pairs(client: TestClient, database: Database, base: str) -> str:
    """A file that counts as one of preferences; a base to train on is there, too."""
    return preferences(uploaded(client), database)


def preferences(file_id: str, database: Database) -> str:
    """The file, which now counts as one of preferences."""
    with database.transaction() as session:
        file = session.get_one(File, file_id)
        file.validation = {**(file.validation or {}), "format": "preference"}
    return file_id


def asked(client: TestClient, pairs: str, method: dict[str, Any], **body: Any) -> httpx2.Response:
    request = {"model": BASE, "training_file": pairs, "method": method, **body}
    return client.post("/v1/fine_tuning/jobs", json=request)


def dpo(**hyperparameters: Any) -> dict[str, Any]:
    return {"type": "dpo", "dpo": {"hyperparameters": hyperparameters}}


class TestAccepted:
    def test_numbers_reach_the_plan_and_are_shown_as_openai_does(self, client: TestClient, pairs: str) -> None:
        numbers = {"beta": 0.4, "batch_size": 4, "learning_rate_multiplier": 0.5, "n_epochs": 2}
        job = created_job(client, training_file=pairs, method=dpo(**numbers))
        assert job["method"] == dpo(**numbers)
        assert job["hyperparameters"] == {"batch_size": 4, "learning_rate_multiplier": 0.5, "n_epochs": 2}
        plan = TrainingPlan.model_validate(job["plan"])
        assert plan.objective == Dpo(beta=0.4)
        assert (plan.batch_size, plan.num_epochs) == (4, 2)
        assert client.get(f"/v1/fine_tuning/jobs/{job['id']}").json()["method"] == job["method"]

    @pytest.mark.parametrize("method", [{"type": "dpo"}, {"type": "dpo", "dpo": {}}, dpo(beta="auto", n_epochs="auto")])
    def test_auto_is_resolved(self, method: dict[str, Any], client: TestClient, pairs: str) -> None:
        job = created_job(client, training_file=pairs, method=method)
        assert job["method"]["dpo"]["hyperparameters"]["beta"] == 0.1
        assert TrainingPlan.model_validate(job["plan"]).objective == Dpo(beta=0.1)

    def test_preferences_are_learnt_at_a_tenth_of_the_bases_rate(self, client: TestClient, pairs: str) -> None:
        job = created_job(client, training_file=pairs, method=dpo(learning_rate_multiplier=2.0))
        assert job["plan"]["learning_rate"] == pytest.approx(0.2 * TrainingDefaults().learning_rate)

    def test_hyperparameters_may_stand_where_older_clients_put_them(self, client: TestClient, pairs: str) -> None:
        job = created_job(client, training_file=pairs, method={"type": "dpo"}, hyperparameters={"n_epochs": 3})
        assert job["method"]["dpo"]["hyperparameters"]["n_epochs"] == job["plan"]["num_epochs"] == 3

    @pytest.mark.parametrize("name", [*methods_for("dpo"), "auto"])
    def test_every_safety_method_that_goes_with_it_is_taken(
        self, name: str, client: TestClient, database: Database, pairs: str
    ) -> None:
        add_base(database, "aligned", BaseStatus.READY, recipe=PrepareRecipe(align=True))
        job = created_job(client, model="aligned", training_file=pairs, method={"type": "dpo"}, safety={"method": name})
        assert job["safety"]["method"] == name

    def test_a_job_from_before_there_was_a_choice_is_supervised(
        self, client: TestClient, database: Database, base: str
    ) -> None:
        job = created_job(client)
        assert TrainingPlan.model_validate(job["plan"]).objective == SUPERVISED
        with database.transaction() as session:
            row = session.get_one(Job, job["id"])
            row.plan = {key: value for key, value in row.plan.items() if key != "objective"}
        shown = client.get(f"/v1/fine_tuning/jobs/{job['id']}").json()
        assert (
            shown["method"]
            == job["method"]
            == {
                "type": "supervised",
                "supervised": {"hyperparameters": job["hyperparameters"]},
            }
        )


class TestOpenAiClient:
    def test_gets_the_job_that_it_asked_for(self, ai: openai.OpenAI, database: Database, base: str) -> None:
        file_id = ai.files.create(file=("pairs.jsonl", chat_file()), purpose="fine-tune").id
        job = ai.fine_tuning.jobs.create(
            model=base,
            training_file=preferences(file_id, database),
            method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 2}}},
        )
        assert job.method is not None
        assert (job.method.type, job.method.supervised) == ("dpo", None)
        assert job.method.dpo is not None
        assert job.method.dpo.hyperparameters is not None
        assert (job.method.dpo.hyperparameters.beta, job.method.dpo.hyperparameters.n_epochs) == (0.2, 2)
        assert ai.fine_tuning.jobs.retrieve(job.id) == job


class TestRefused:
    @pytest.mark.parametrize(
        ("body", "param", "code"),
        [
            ({"method": dpo(beta=0)}, "method.dpo.hyperparameters.beta", "invalid_value"),
            ({"method": dpo(beta=2.1)}, "method.dpo.hyperparameters.beta", "invalid_value"),
            ({"method": dpo(beta="0.1")}, "method.dpo.hyperparameters.beta", "invalid_type"),
            ({"method": dpo(beta=True)}, "method.dpo.hyperparameters.beta", "invalid_type"),
            ({"method": dpo(gamma=1)}, "method.dpo.hyperparameters.gamma", "unknown_parameter"),
            ({"method": dpo(n_epochs=51)}, "method.dpo.hyperparameters.n_epochs", "invalid_value"),
            (
                {"method": dpo(learning_rate_multiplier=1e9)},
                "method.dpo.hyperparameters.learning_rate_multiplier",
                "invalid_value",
            ),
            ({"method": {"type": "dpo", "dpo": {"epochs": 1}}}, "method.dpo.epochs", "unknown_parameter"),
            ({"method": {**dpo(beta=1), "type": "supervised"}}, "method.dpo", "invalid_combination"),
            ({"method": {**dpo(), "supervised": {}}}, "method.supervised", "invalid_combination"),
            ({"method": {**dpo(), "reinforcement": {}}}, "method.reinforcement", "invalid_combination"),
            ({"method": dpo(), "hyperparameters": {}}, "hyperparameters", "invalid_value"),
            ({"method": {"type": "dpo"}, "hyperparameters": {"beta": 1}}, "hyperparameters.beta", "unknown_parameter"),
        ],
        ids=str,
    )
    def test_a_bad_parameter_is_named(
        self, body: dict[str, Any], param: str, code: str, client: TestClient, pairs: str, database: Database
    ) -> None:
        response = client.post("/v1/fine_tuning/jobs", json={"model": BASE, "training_file": pairs, **body})
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
        with database.transaction() as session:
            assert session.scalar(select(func.count()).select_from(Job)) == 0

    def test_a_safety_method_that_makes_no_sense_with_it_is_answered_with_those_that_do(
        self, client: TestClient, pairs: str
    ) -> None:
        response = asked(client, pairs, {"type": "dpo"}, safety={"method": "constrained_sft"})
        assert response.status_code == 400
        error = response.json()["error"]
        assert (error["param"], error["code"]) == ("safety.method", "invalid_combination")
        assert error["message"].endswith(f"use one of {', '.join(methods_for('dpo'))}.")

    def test_reinforcement_has_its_reason(self, client: TestClient, pairs: str) -> None:
        response = asked(client, pairs, {"type": "reinforcement"})
        assert (response.status_code, response.json()["error"]["code"]) == (400, "unsupported")
        assert "needs graders" in response.json()["error"]["message"]


class TestListedMethods:
    def test_say_which_of_openais_methods_they_go_with(self, client: TestClient) -> None:
        listed = {entry["name"]: entry for entry in client.get("/v1/safety/methods").json()["data"]}
        for name, config in METHOD_CONFIGS.items():
            assert listed[name]["method_types"] == list(config.objectives)
        assert listed["constrained_sft"]["method_types"] == ["supervised"]
        assert listed["ema"]["method_types"] == listed["dare"]["method_types"] == ["supervised", "dpo"]
