"""Models and safety methods."""

from itertools import product
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError
from sqlalchemy import select

from app.catalog.entries import CATALOGUE, find_entry
from app.catalog.service import CatalogService
from app.contracts.bases import PrepareRecipe
from app.contracts.methods import METHOD_CONFIGS, Der
from app.contracts.modifiers import MERGE_CONFIGS, Ema
from app.contracts.plan import TrainingPlan
from app.contracts.states import BaseStatus
from app.db import Database
from app.models import FineTunedModel, Job
from tests.app.helpers import BASE, add_base, created_job, uploaded

TUNED = "ft:tiny-base:unforgotten:my/suffix:abcd1234"


def add_tuned(client: TestClient, database: Database) -> str:
    job = created_job(client)
    with database.transaction() as session:
        project_id = session.scalars(select(Job.project_id).where(Job.id == job["id"])).one()
        session.add(FineTunedModel(id=TUNED, project_id=project_id, job_id=job["id"], base_id=BASE))
    return TUNED


class TestModels:
    def test_the_list_has_ready_bases_and_own_models(self, client: TestClient, base: str, database: Database) -> None:
        add_base(database, "raw", BaseStatus.REGISTERED)
        add_tuned(client, database)
        models = client.get("/v1/models").json()
        assert models["object"] == "list"
        assert [model["id"] for model in models["data"]] == [BASE, TUNED]
        assert set(models["data"][0]) == {"id", "object", "created", "owned_by"}

    def test_names_may_come_with_an_encoded_slash(self, client: TestClient, base: str, database: Database) -> None:
        add_tuned(client, database)
        path = "/v1/models/" + TUNED.replace("/", "%2F")
        assert client.get(path).json()["id"] == TUNED
        deleted = {"id": TUNED, "object": "model", "deleted": True, "referenced_by": []}
        assert client.delete(path).json() == deleted

    def test_a_deleted_model_is_gone(self, client: TestClient, base: str, database: Database) -> None:
        add_tuned(client, database)
        client.delete(f"/v1/models/{TUNED}")
        assert client.get(f"/v1/models/{TUNED}").status_code == 404
        assert client.delete(f"/v1/models/{TUNED}").status_code == 404
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [BASE]

    def test_a_base_cannot_be_deleted(self, client: TestClient, base: str) -> None:
        assert client.delete(f"/v1/models/{base}").status_code == 403
        assert client.get(f"/v1/models/{base}").status_code == 200

    def test_a_base_that_is_not_ready_is_not_shown(self, client: TestClient, database: Database) -> None:
        add_base(database, "raw", BaseStatus.PREPARING)
        for response in (client.get("/v1/models/raw"), client.delete("/v1/models/raw")):
            assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")

    def test_training_on_from_a_model_of_an_earlier_version_is_refused_with_a_reason(
        self, client: TestClient, base: str, database: Database
    ) -> None:
        """Its job did not write down the adapter's rank, nor what weights it is for."""
        add_tuned(client, database)
        response = client.post("/v1/fine_tuning/jobs", json={"model": TUNED, "training_file": uploaded(client)})
        assert (response.status_code, response.json()["error"]["code"]) == (400, "model_not_continuable")
        assert "Train on `tiny-base` instead" in response.json()["error"]["message"]


class TestMethods:
    @pytest.fixture
    def listed(self, client: TestClient) -> list[dict[str, Any]]:
        answer = client.get("/v1/safety/methods").json()
        assert answer["object"] == "list"
        data: list[dict[str, Any]] = answer["data"]
        return data

    def test_are_listed_in_the_contracts_order_with_what_is_combined_with_them(
        self, listed: list[dict[str, Any]]
    ) -> None:
        assert [entry["name"] for entry in listed] == [*METHOD_CONFIGS, "ema", *MERGE_CONFIGS]
        kinds = ["method"] * len(METHOD_CONFIGS) + ["modifier"] + ["merge"] * len(MERGE_CONFIGS)
        assert [entry["kind"] for entry in listed] == kinds
        assert [entry["name"] for entry in listed if entry["is_default"]] == ["der"]
        assert {entry["object"] for entry in listed} == {"safety.method"}

    def test_have_the_contracts_schemas(self, listed: list[dict[str, Any]]) -> None:
        configs = {**METHOD_CONFIGS, "ema": Ema, **MERGE_CONFIGS}
        for entry in listed:
            assert entry["settings"] == configs[entry["name"]].model_json_schema()
            assert entry["needs"] == list(configs[entry["name"]].needs)
            assert entry["description"].endswith(".")
            assert "\n" not in entry["description"]
        alpha = listed[0]["settings"]["properties"]["alpha"]
        assert (alpha["default"], alpha["oneOf"][0]["minimum"]) == (Der().alpha, 0.0)
        assert alpha["description"].startswith("Weight of the replay term")

    def test_examples_are_good_requests(
        self, client: TestClient, database: Database, listed: list[dict[str, Any]]
    ) -> None:
        add_base(database, BASE, BaseStatus.READY, recipe=PrepareRecipe(align=True))
        for entry in listed:
            shown = created_job(client, safety=entry["example"])["safety"]
            asked_for = {
                "method": shown["method"],
                "modifier": "ema" if shown["ema"] is not None else None,
                "merge": (shown["merge"] or {}).get("name"),
            }
            assert asked_for[entry["kind"]] == entry["name"]

    def test_combinations_are_those_that_jobs_accept(self, listed: list[dict[str, Any]]) -> None:
        by_name = {entry["name"]: entry for entry in listed}
        assert by_name["magmax"]["combines_with"] == ["ema", "wise_ft"]
        assert by_name["der"]["combines_with"] == ["ema", *MERGE_CONFIGS]
        for one, other in product(listed, listed):
            assert (other["name"] in one["combines_with"]) == (one["name"] in other["combines_with"])
            if one["kind"] == "method" and other["kind"] == "merge":
                plan = {"method": {"name": one["name"]}, "merge": {"name": other["name"]}}
                if other["name"] in one["combines_with"]:
                    TrainingPlan.model_validate(plan)
                else:
                    with pytest.raises(ValidationError):
                        TrainingPlan.model_validate(plan)
            if one["kind"] == other["kind"]:
                assert other["name"] not in one["combines_with"]


class TestCatalogue:
    def test_names_are_unique(self) -> None:
        names = [entry.id for entry in CATALOGUE]
        assert len(names) == len(set(names))

    @pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma3-270m"])
    def test_two_need_no_hub_and_are_aligned(self, name: str) -> None:
        entry = find_entry(name)
        assert entry is not None
        assert entry.source.startswith("wheel:")
        assert entry.recipe.align

    def test_adding_twice_keeps_the_first(self, database: Database) -> None:
        service = CatalogService(database, "us")
        assert service.add_base(CATALOGUE[0]) == BaseStatus.REGISTERED
        changed = CATALOGUE[0].model_copy(update={"source": "path:other"})
        assert service.add_base(changed) == BaseStatus.REGISTERED
        assert service.bases()[CATALOGUE[0].id].source == CATALOGUE[0].source
