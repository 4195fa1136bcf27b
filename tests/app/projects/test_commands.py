"""`unforgotten projects`."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from app.auth.service import AuthService
from app.cli import cli
from app.db import Database
from app.models import AuditEntry, File, Project
from app.settings import Settings


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("UNFORGOTTEN_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("UNFORGOTTEN_LIMITS", '{"max_running_jobs": 4}')
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    made = runner.invoke(cli, ["keys", "create", "--project", "acme", "--quiet"])
    assert made.exit_code == 0, made.output
    return lambda *words: runner.invoke(cli, ["projects", *words])


@pytest.fixture
def here(run: Callable[..., Any], tmp_path: Path) -> Iterator[Database]:
    database = Database(Settings(data_dir=tmp_path, _env_file=None).resolved_database_url)
    yield database
    database.dispose()


def project(database: Database) -> Project:
    with database.reading() as session:
        return session.scalars(select(Project)).one()


class TestList:
    def test_shows_what_is_used_of_what_may_be(self, run: Callable[..., Any], here: Database) -> None:
        with here.transaction() as session:
            project_id = session.scalars(select(Project.id)).one()
            file = File(
                id="file-1",
                project_id=project_id,
                filename="x",
                purpose="fine-tune",
                bytes=12_345,
                sha256="",
                storage_key="k",
                status="processed",
            )
            session.add(file)
        (row,) = [line for line in run("list").stdout.splitlines() if "acme" in line]
        assert [cell.strip() for cell in row.strip("│ ").split("│")] == [
            "acme",
            "0",
            "0 of 4",
            "0",
            "12,345",
            "0",
            "no limit",
        ]


class TestLimits:
    def test_are_set_shown_and_left_to_the_service_again(self, run: Callable[..., Any], here: Database) -> None:
        shown = run("limits", "acme", "--max-running-jobs", "2", "--requests-per-minute", "600")
        assert shown.exit_code == 0
        assert "Running jobs:      0 of 2 (the project's own)" in shown.stdout
        assert "Requests a minute: 600 (the project's own)" in shown.stdout
        assert project(here).limits == {"max_running_jobs": 2, "requests_per_minute": 600}
        assert run("limits", "acme", "--max-running-jobs", "default").exit_code == 0
        assert project(here).limits == {"requests_per_minute": 600}
        assert "Running jobs:      0 of 4\n" in run("limits", "acme").stdout

    def test_hold_for_keys_that_are_there(self, run: Callable[..., Any], here: Database, tmp_path: Path) -> None:
        key = AuthService(here).create_key("acme")
        run("limits", "acme", "--max-stored-bytes", "10_000")
        assert AuthService(here).authenticate(f"Bearer {key}").limits.max_stored_bytes == 10_000

    @pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", ""])
    def test_that_cannot_be_are_refused(self, run: Callable[..., Any], here: Database, text: str) -> None:
        result = run("limits", "acme", f"--max-unfinished-jobs={text}")
        assert result.exit_code == 1
        assert "--max-unfinished-jobs takes a whole number from 1" in result.stderr.replace("\n", " ")
        assert project(here).limits == {}


class TestPriority:
    @pytest.mark.parametrize("priority", ["7", "-3"])
    def test_is_changed(self, run: Callable[..., Any], here: Database, priority: str) -> None:
        assert run("priority", "acme", priority).exit_code == 0
        assert project(here).priority == int(priority)

    def test_beyond_what_the_column_holds_is_refused(self, run: Callable[..., Any], here: Database) -> None:
        assert run("priority", "acme", "3000000000").exit_code == 2
        assert project(here).priority == 0


@pytest.mark.parametrize(
    "words", [("limits", "nobody"), ("limits", "nobody", "--max-running-jobs", "1"), ("priority", "nobody", "1")]
)
def test_an_unknown_project_is_told(run: Callable[..., Any], words: tuple[str, ...]) -> None:
    result = run(*words)
    assert result.exit_code == 1
    assert "projects list" in result.stderr


def test_help_tells_units_and_what_default_means(run: Callable[..., Any]) -> None:
    told = " ".join(run("limits", "--help").stdout.replace("│", " ").split())
    for words in ("in bytes", "last 24 hours", "each process of the API", "`default` for the service's own"):
        assert words in told


def test_changes_are_in_the_audit_log(run: Callable[..., Any], here: Database) -> None:
    run("limits", "acme", "--max-running-jobs", "2")
    run("priority", "acme", "3")
    with here.reading() as session:
        entries = session.scalars(select(AuditEntry).where(AuditEntry.action.like("project.%_changed")))
        found = {entry.action: entry.data for entry in entries}
    assert found == {
        "project.limits_changed": {"max_running_jobs": 2},
        "project.priority_changed": {"priority": 3},
    }
