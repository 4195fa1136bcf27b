"""Models and safety methods."""

from fastapi.testclient import TestClient
from sqlalchemy import select

from app.catalog.entries import CATALOGUE, find_entry
from app.catalog.service import CatalogService
from app.contracts.methods import METHOD_CONFIGS, Der
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
        assert client.delete(path).json() == {"id": TUNED, "object": "model", "deleted": True}

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

    def test_training_a_fine_tuned_model_further_is_refused_with_a_reason(
        self, client: TestClient, base: str, database: Database
    ) -> None:
        add_tuned(client, database)
        response = client.post("/v1/fine_tuning/jobs", json={"model": TUNED, "training_file": uploaded(client)})
        assert (response.status_code, response.json()["error"]["code"]) == (400, "unsupported")


def test_methods_are_published_with_the_schemas_of_the_contracts(client: TestClient) -> None:
    methods = client.get("/v1/safety/methods").json()["data"]
    assert [method["name"] for method in methods] == list(METHOD_CONFIGS)
    assert [method["name"] for method in methods if method["is_default"]] == ["der"]
    for method in methods:
        assert method["settings"] == METHOD_CONFIGS[method["name"]].model_json_schema()
        assert method["description"]
    alpha = methods[0]["settings"]["properties"]["alpha"]
    assert (alpha["default"], alpha["minimum"]) == (Der().alpha, 0.0)
    assert alpha["description"].startswith("Weight of the replay term.")


class TestCatalogue:
    def test_names_are_unique(self) -> None:
        names = [entry.id for entry in CATALOGUE]
        assert len(names) == len(set(names))

    def test_smollm2_needs_no_hub_and_is_aligned(self) -> None:
        entry = find_entry("smollm2-135m-instruct")
        assert entry is not None
        assert entry.source.startswith("wheel:")
        assert entry.recipe.align

    def test_adding_twice_keeps_the_first(self, database: Database) -> None:
        service = CatalogService(database, "us")
        assert service.add_base(CATALOGUE[0]) == BaseStatus.REGISTERED
        changed = CATALOGUE[0].model_copy(update={"source": "path:other"})
        assert service.add_base(changed) == BaseStatus.REGISTERED
        assert service.bases()[CATALOGUE[0].id].source == CATALOGUE[0].source
