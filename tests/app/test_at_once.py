"""Equal requests at the same time: on either database one wins, and nobody is told that the service failed."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from app.auth.schemas import Tenant
from app.auth.service import AuthService
from app.catalog.service import CatalogService
from app.contracts.bases import CatalogueEntry, PrepareRecipe
from app.contracts.states import BaseStatus
from app.db import Database, Row, one_at_a_time
from app.errors import InvalidRequestError
from app.idempotency.created import request_seed
from app.models import ApiKey, BaseModelRow, CheckpointPermission, Project
from app.organization.schemas import ProjectCreate
from app.organization.service import OrganizationService
from app.storage import ObjectStorage
from tests.app.finished import finish

AT_ONCE = 8
TIMEOUT = 30.0
ENTRY = CatalogueEntry(
    id="mine", title="Mine", source="path:/nowhere", licence="mine", recipe=PrepareRecipe(align=False)
)

R = TypeVar("R")


def at_once(do: Callable[[], R]) -> list[R]:
    """What each of several that begin together gets."""
    barrier = Barrier(AT_ONCE)

    def together(_: int) -> R:
        barrier.wait(TIMEOUT)
        return do()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(together, range(AT_ONCE)))


def count(database: Database, kind: type[Row]) -> int:
    with database.transaction() as session:
        return session.scalar(select(func.count()).select_from(kind)) or 0


@pytest.fixture
def operator(database: Database) -> Tenant:
    key = AuthService(database).create_key("provider", is_admin=True)
    return AuthService(database).authenticate(f"Bearer {key}")


class TestProjects:
    def test_a_name_is_given_once(self, database: Database, operator: Tenant) -> None:
        organization = OrganizationService(database)

        def create() -> str:
            try:
                return organization.create_project(operator, ProjectCreate(name="acme")).id
            except InvalidRequestError as error:
                return error.code or ""

        answers = at_once(create)
        assert answers.count("name_taken") == AT_ONCE - 1
        assert count(database, Project) == 2

    def test_one_request_that_is_carried_out_several_times_makes_one(
        self, database: Database, operator: Tenant
    ) -> None:
        organization = OrganizationService(database)

        def create() -> str:
            request_seed.set("0" * 64)
            return organization.create_project(operator, ProjectCreate(name="acme")).id

        assert len(set(at_once(create))) == 1
        assert count(database, Project) == 2

    def test_keys_of_a_new_project_share_it(self, database: Database) -> None:
        at_once(lambda: AuthService(database).create_key("acme"))
        assert (count(database, Project), count(database, ApiKey)) == (1, AT_ONCE)


def test_a_checkpoint_is_shared_once(
    api: FastAPI, client: TestClient, base: str, database: Database, storage: ObjectStorage
) -> None:
    name = finish(client, database, storage).checkpoint(40)
    key = AuthService(database).create_key("acme", is_admin=True)
    AuthService(database).create_key("umbrella")
    with database.reading() as session:
        project_id = session.scalars(select(Project.id).where(Project.name == "umbrella")).one()

    admin = TestClient(api, headers={"authorization": f"Bearer {key}"}, raise_server_exceptions=False)

    def share() -> str:
        path = f"/v1/fine_tuning/checkpoints/{name}/permissions"
        response = admin.post(path, json={"project_ids": [project_id]})
        assert response.status_code == 200, response.text
        permission_id: str = response.json()["data"][0]["id"]
        return permission_id

    assert len(set(at_once(share))) == 1
    assert count(database, CheckpointPermission) == 1


def test_a_base_is_added_once(database: Database) -> None:
    states = at_once(lambda: CatalogService(database, "us").add_base(ENTRY))
    assert states == [BaseStatus.REGISTERED] * AT_ONCE
    assert count(database, BaseModelRow) == 1


def test_changes_of_a_base_at_once_are_all_kept(database: Database) -> None:
    catalog = CatalogService(database, "us")
    catalog.add_base(ENTRY)
    names = iter(["num_epochs", "batch_size"] * (AT_ONCE // 2))
    at_once(lambda: catalog.change_training("mine", {next(names): 7}))
    defaults = catalog.change_training("mine", {})
    assert (defaults.num_epochs, defaults.batch_size) == (7, 7)


def test_others_are_not_waited_for(database: Database) -> None:
    with database.reading() as one, database.reading() as other:
        one_at_a_time(one, "a")
        one_at_a_time(other, "b")
