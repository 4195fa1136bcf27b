"""`unforgotten audit`."""

import json
from pathlib import Path

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from app.audit import commands
from app.cli import cli
from app.db import Database


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNFORGOTTEN_DATA_DIR", str(tmp_path))
    return CliRunner()


def head(run: CliRunner) -> str:
    return run.invoke(cli, ["audit", "verify"]).stdout.split("Head: ")[1].strip()


def tamper(tmp_path: Path, statement: str) -> None:
    database = Database(f"sqlite:///{tmp_path / 'unforgotten.db'}")
    with database.engine.begin() as connection:
        connection.execute(text("DROP TRIGGER audit_log_no_update"))
        connection.execute(text("DROP TRIGGER audit_log_no_delete"))
        connection.execute(text(statement))
    database.dispose()


def test_an_unbroken_log_is_counted_and_its_head_printed(run: CliRunner) -> None:
    assert run.invoke(cli, ["audit", "verify"]).stdout == f"0 entries, unbroken. Head: {'0' * 64}\n"
    run.invoke(cli, ["keys", "create", "--project", "acme"])
    done = run.invoke(cli, ["audit", "verify"])
    assert done.exit_code == 0
    assert done.stdout.startswith("2 entries, unbroken. Head: ")
    assert run.invoke(cli, ["audit", "verify", "--head", head(run)]).exit_code == 0


def test_a_broken_log_ends_the_command_with_an_error_that_names_the_entry(run: CliRunner, tmp_path: Path) -> None:
    run.invoke(cli, ["keys", "create", "--project", "acme"])
    tamper(tmp_path, "UPDATE audit_log SET subject = 'key_other' WHERE seq = 2")
    done = run.invoke(cli, ["audit", "verify"])
    assert done.exit_code == 1
    assert done.stderr == "The audit log is broken. Entry 2 was changed after it was written.\n"


def test_a_log_that_was_cut_off_is_told_by_its_old_head(run: CliRunner, tmp_path: Path) -> None:
    run.invoke(cli, ["keys", "create", "--project", "acme"])
    old = head(run)
    tamper(tmp_path, "DELETE FROM audit_log WHERE seq = 2")
    assert run.invoke(cli, ["audit", "verify"]).exit_code == 0
    done = run.invoke(cli, ["audit", "verify", "--head", old])
    assert done.exit_code == 1
    assert "cut off" in done.stderr


@pytest.mark.parametrize("wrong", ["", "abc", "G" * 64])
def test_what_is_no_hash_is_not_looked_for(run: CliRunner, wrong: str) -> None:
    done = run.invoke(cli, ["audit", "verify", "--head", wrong])
    assert done.exit_code == 1
    assert "hexadecimal" in done.stderr


def test_list_shows_the_newest_first(run: CliRunner) -> None:
    run.invoke(cli, ["keys", "create", "--project", "[red]acme"])
    shown = run.invoke(cli, ["audit", "list"]).stdout
    assert shown.index("api_key.created") < shown.index("project.created")
    assert "[red]acme" in shown
    assert "api_key.created" not in run.invoke(cli, ["audit", "list", "--project", "proj_none"]).stdout


def exported(run: CliRunner) -> list[dict[str, object]]:
    return [json.loads(line) for line in run.invoke(cli, ["audit", "export"]).stdout.splitlines()]


def test_export_takes_some_at_a_time(run: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_EXPORTED_AT_ONCE", 2)
    for name in ("a", "b"):
        run.invoke(cli, ["keys", "create", "--project", name])
    run.invoke(cli, ["keys", "create", "--project", "a"])
    assert [line["seq"] for line in exported(run)] == [1, 2, 3, 4, 5]


def test_export_writes_every_column_the_oldest_entry_first(run: CliRunner) -> None:
    run.invoke(cli, ["keys", "create", "--project", "acme", "--name", "ci"])
    lines = exported(run)
    assert [line["action"] for line in lines] == ["project.created", "api_key.created"]
    assert lines[1]["previous_hash"] == lines[0]["hash"]
    assert lines[1]["data"] == {"name": "ci", "is_admin": False}
    assert lines[1]["hash"] == head(run)
