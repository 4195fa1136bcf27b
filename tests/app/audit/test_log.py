"""The audit log: what is in it, that it is only added to, and that whoever tampers with it is seen."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Connection, select, text
from sqlalchemy.exc import DBAPIError

from app.audit.log import GENESIS, OPERATOR, BrokenChainError, Chain, record, verify
from app.auth.service import AuthService
from app.catalog.entries import CATALOGUE
from app.catalog.service import CatalogService
from app.contracts.states import JobStatus
from app.db import Database
from app.jobs.operations import JobOperations
from app.models import AuditEntry, FineTunedModel, Job
from tests.app.helpers import created_job, uploaded

NUM_WRITERS = 8
NUM_ENTRIES_EACH = 10


def checked(database: Database, head: str | None = None) -> Chain:
    with database.reading() as session:
        return verify(session, head=head)


def entries(database: Database) -> list[AuditEntry]:
    with database.reading() as session:
        return list(session.scalars(select(AuditEntry).order_by(AuditEntry.seq)))


def actions(database: Database) -> list[str]:
    return [entry.action for entry in entries(database)]


def write(database: Database, number: int) -> None:
    with database.transaction() as session:
        record(session, OPERATOR, None, "test.done", f"subject-{number}", {"number": number, "name": 'ä "quoted"'})


@contextmanager
def unguarded(database: Database) -> Iterator[Connection]:
    """A connection for which the triggers are not there: whoever owns the database can drop them."""
    with database.engine.begin() as connection:
        if connection.dialect.name == "sqlite":
            connection.execute(text("DROP TRIGGER audit_log_no_update"))
            connection.execute(text("DROP TRIGGER audit_log_no_delete"))
        else:
            connection.execute(text("SET LOCAL session_replication_role = replica"))
        yield connection


class TestChain:
    def test_an_empty_log_is_unbroken(self, database: Database) -> None:
        assert checked(database) == Chain(0, GENESIS)
        assert checked(database, GENESIS) == Chain(0, GENESIS)

    def test_entries_are_numbered_without_gaps_and_each_names_the_one_before(self, database: Database) -> None:
        for number in range(3):
            write(database, number)
        found = entries(database)
        assert [entry.seq for entry in found] == [1, 2, 3]
        assert [entry.previous_hash for entry in found] == [GENESIS, found[0].hash, found[1].hash]
        assert checked(database) == Chain(3, found[2].hash)

    def test_several_entries_of_a_transaction_stand_in_their_order(self, database: Database) -> None:
        with database.transaction() as session:
            record(session, OPERATOR, None, "test.first", "x")
            record(session, OPERATOR, None, "test.second", "x")
        assert actions(database) == ["test.first", "test.second"]
        assert checked(database).num_entries == 2

    def test_what_was_rolled_back_is_not_told_of(self, database: Database) -> None:
        def fail() -> None:
            with database.transaction() as session:
                record(session, OPERATOR, None, "test.done", "x")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        write(database, 1)
        assert [entry.subject for entry in entries(database)] == ["subject-1"]
        assert checked(database).num_entries == 1

    def test_many_writers_at_once_make_one_chain(self, database: Database) -> None:
        def run(writer: int) -> None:
            for number in range(NUM_ENTRIES_EACH):
                write(database, writer * NUM_ENTRIES_EACH + number)

        threads = [threading.Thread(target=run, args=(writer,)) for writer in range(NUM_WRITERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        total = NUM_WRITERS * NUM_ENTRIES_EACH
        assert checked(database).num_entries == total
        assert {entry.data["number"] for entry in entries(database)} == set(range(total))

    def test_writers_that_hold_rows_do_not_wait_for_each_other_in_a_circle(
        self, client: TestClient, base: str, database: Database
    ) -> None:
        # Were entries written where `record` stands, each of the two would wait for what the other one holds.
        jobs = [created_job(client)["id"] for _ in range(2)]
        both_have_recorded = threading.Barrier(2, timeout=20.0)
        failures: list[BaseException] = []

        def run(first: str, second: str) -> None:
            try:
                with database.transaction() as session:
                    record(session, OPERATOR, None, "test.done", first)
                    if database.engine.dialect.name == "postgresql":
                        both_have_recorded.wait()
                    session.get_one(Job, min(first, second), with_for_update=True)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=run, args=pair) for pair in (jobs, reversed(jobs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert checked(database).num_entries == len(entries(database))


class TestTampering:
    @pytest.mark.parametrize("statement", ["UPDATE audit_log SET actor = 'nobody'", "DELETE FROM audit_log"])
    def test_the_database_refuses_to_change_or_delete_entries(self, database: Database, statement: str) -> None:
        write(database, 1)
        before = checked(database)
        with pytest.raises(DBAPIError, match="only added to"), database.engine.begin() as connection:
            connection.execute(text(statement))
        assert checked(database) == before

    @pytest.mark.parametrize(
        ("statement", "message"),
        [
            ("UPDATE audit_log SET actor = 'nobody' WHERE seq = 2", "Entry 2 was changed"),
            ("UPDATE audit_log SET at = at - 1 WHERE seq = 3", "Entry 3 was changed"),
            ("UPDATE audit_log SET project_id = 'proj_x' WHERE seq = 1", "Entry 1 was changed"),
            ("""UPDATE audit_log SET data = '{"number": 7}' WHERE seq = 2""", "Entry 2 was changed"),
            ("UPDATE audit_log SET hash = 'cafe' WHERE seq = 4", "Entry 4 was changed"),
            ("DELETE FROM audit_log WHERE seq = 1", "Entry 1 is missing"),
            ("DELETE FROM audit_log WHERE seq = 3", "Entry 3 is missing"),
            ("UPDATE audit_log SET seq = 9 WHERE seq = 4", "Entry 4 is missing"),
        ],
    )
    def test_the_first_entry_that_was_tampered_with_is_named(
        self, database: Database, statement: str, message: str
    ) -> None:
        for number in range(4):
            write(database, number)
        with unguarded(database) as connection:
            connection.execute(text(statement))
        with pytest.raises(BrokenChainError, match=message):
            checked(database)

    def test_an_entry_that_was_taken_out_and_the_rest_renumbered_is_missed(self, database: Database) -> None:
        for number in range(3):
            write(database, number)
        with unguarded(database) as connection:
            connection.execute(text("DELETE FROM audit_log WHERE seq = 2"))
            connection.execute(text("UPDATE audit_log SET seq = 2 WHERE seq = 3"))
        with pytest.raises(BrokenChainError, match="Entry 2 does not follow"):
            checked(database)

    def test_a_log_that_was_cut_off_is_found_out_by_a_head_that_was_remembered(self, database: Database) -> None:
        for number in range(3):
            write(database, number)
        head = checked(database).head
        write(database, 3)
        assert checked(database, head).num_entries == 4
        with unguarded(database) as connection:
            connection.execute(text("DELETE FROM audit_log WHERE seq >= 3"))
        assert checked(database).num_entries == 2
        with pytest.raises(BrokenChainError, match="cut off"):
            checked(database, head)


class TestWhatIsRecorded:
    def test_keys_and_projects(self, database: Database) -> None:
        auth = AuthService(database)
        secret = auth.create_key("acme", name="laptop")
        key_id = auth.list_keys()[0].id
        auth.revoke_key(key_id)
        auth.revoke_key(key_id)
        found = entries(database)
        assert [entry.action for entry in found] == ["project.created", "api_key.created", "api_key.revoked"]
        assert {entry.actor for entry in found} == {OPERATOR}
        assert found[2].subject == key_id
        text_of_all = json.dumps([entry.data for entry in found])
        assert "laptop" in text_of_all
        assert secret.removeprefix("sk-unf-")[:8] not in text_of_all

    def test_what_a_tenant_does_carries_its_key_and_project(
        self, client: TestClient, base: str, database: Database
    ) -> None:
        num_before = len(entries(database))
        job = created_job(client)
        for action in ("pause", "pause", "resume", "resume", "cancel", "cancel"):
            assert client.post(f"/v1/fine_tuning/jobs/{job['id']}/{action}").status_code == 200
        assert client.delete(f"/v1/files/{job['training_file']}").status_code == 200
        found = entries(database)[num_before:]
        assert [entry.action for entry in found] == [
            "file.created",
            "job.created",
            "job.paused",
            "job.resumed",
            "job.cancelled",
            "file.deleted",
        ]
        key = AuthService(database).list_keys()[0]
        assert {entry.actor for entry in found} == {key.id}
        assert len({entry.project_id for entry in found}) == 1
        assert found[0].data["filename"] == "train.jsonl"
        assert checked(database).num_entries == num_before + 6

    def test_what_is_only_read_or_refused_is_not_recorded(
        self, client: TestClient, stranger: TestClient, base: str, database: Database
    ) -> None:
        job = created_job(client)
        before = actions(database)
        for path in ("", "/events", "/checkpoints"):
            client.get(f"/v1/fine_tuning/jobs/{job['id']}{path}")
        stranger.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
        client.post("/v1/fine_tuning/jobs", json={"model": base, "training_file": "file-none"})
        client.delete("/v1/files/file-none")
        assert actions(database) == before

    def test_a_running_job_is_asked_to_stop(self, client: TestClient, base: str, database: Database) -> None:
        job = created_job(client)
        with database.transaction() as session:
            session.get_one(Job, job["id"]).status = JobStatus.RUNNING
            session.execute(text("UPDATE work SET state = 'running'"))
        for action in ("pause", "resume", "cancel", "cancel"):
            client.post(f"/v1/fine_tuning/jobs/{job['id']}/{action}")
        assert actions(database)[-3:] == ["job.pause_requested", "job.resumed", "job.cancel_requested"]

    def test_models_and_bases(self, client: TestClient, base: str, database: Database) -> None:
        job = created_job(client)
        with database.transaction() as session:
            row = session.get_one(Job, job["id"])
            row.status, row.error_code, row.adapter_key = JobStatus.FAILED, "safety_gate", "adapters/x"
        name = JobOperations(database, "us").release(job["id"], "We looked at it.")
        assert client.delete(f"/v1/models/{name}").status_code == 200
        catalog = CatalogService(database, "us")
        catalog.add_base(CATALOGUE[0])
        catalog.add_base(CATALOGUE[0])
        catalog.change_training(CATALOGUE[0].id, {})
        catalog.change_training(CATALOGUE[0].id, {"gradient_checkpointing": True})
        found = entries(database)[-4:]
        assert [(entry.action, entry.subject) for entry in found] == [
            ("model.released", name),
            ("model.deleted", name),
            ("base.added", CATALOGUE[0].id),
            ("base.changed", CATALOGUE[0].id),
        ]
        assert found[0].data == {"job": job["id"], "reason": "We looked at it."}
        with database.reading() as session:
            assert session.get_one(FineTunedModel, name).deleted_at is not None

    def test_an_upload_in_parts_is_a_file_once_it_is_complete(
        self, client: TestClient, new_client: Callable[[str], TestClient], database: Database
    ) -> None:
        file_id = uploaded(client)
        data = client.get(f"/v1/files/{file_id}/content").content
        body = {"filename": "a.jsonl", "purpose": "fine-tune", "bytes": len(data), "mime_type": "application/jsonl"}
        upload_id = client.post("/v1/uploads", json=body).json()["id"]
        part = client.post(f"/v1/uploads/{upload_id}/parts", files={"data": ("upload", data)}).json()["id"]
        done = client.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": [part]}).json()
        assert entries(database)[-1].action == "file.created"
        assert entries(database)[-1].subject == done["file"]["id"]
