"""The command `unforgotten`."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.auth.service import AuthService
from app.cli import cli
from app.db import Database
from app.settings import Settings


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("UNFORGOTTEN_DATA_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return CliRunner()


def database_in(tmp_path: Path) -> Database:
    return Database(Settings(data_dir=tmp_path, _env_file=None).resolved_database_url)


class TestKeys:
    def test_quiet_prints_the_key_alone_and_it_works_at_once(self, run: CliRunner, tmp_path: Path) -> None:
        result = run.invoke(cli, ["keys", "create", "--project", "acme", "--quiet"])
        assert result.exit_code == 0
        key = result.stdout.strip()
        assert result.stdout == f"{key}\n"
        database = database_in(tmp_path)
        assert not AuthService(database).authenticate(f"Bearer {key}").is_admin
        database.dispose()

    def test_a_key_is_listed_without_its_secret_and_can_be_revoked(self, run: CliRunner, tmp_path: Path) -> None:
        key = run.invoke(cli, ["keys", "create", "--project", "acme", "--quiet", "--admin"]).stdout.strip()
        database = database_in(tmp_path)
        (found,) = AuthService(database).list_keys()
        assert found.is_admin
        listed = run.invoke(cli, ["keys", "list"]).stdout
        assert found.id in listed
        assert key not in listed
        assert run.invoke(cli, ["keys", "revoke", found.id]).exit_code == 0
        (found,) = AuthService(database).list_keys()
        assert found.revoked_at is not None
        database.dispose()

    def test_revoking_an_unknown_key_fails(self, run: CliRunner) -> None:
        result = run.invoke(cli, ["keys", "revoke", "key_none"])
        assert result.exit_code == 1
        assert "keys list" in result.stderr


class TestModels:
    def test_a_catalogue_model_is_added_and_listed(self, run: CliRunner) -> None:
        assert "not added" in run.invoke(cli, ["models", "list"]).stdout
        result = run.invoke(cli, ["models", "add", "smollm2-135m-instruct"])
        assert "unforgotten models prepare smollm2-135m-instruct" in result.stdout
        assert "registered" in run.invoke(cli, ["models", "list"]).stdout

    def test_a_model_of_ones_own_needs_a_source(self, run: CliRunner) -> None:
        assert run.invoke(cli, ["models", "add", "mine"]).exit_code == 1
        assert run.invoke(cli, ["models", "add", "mine", "--source", "ftp:x"]).exit_code == 1
        assert run.invoke(cli, ["models", "add", "Not A Name", "--source", "path:x"]).exit_code == 1
        assert run.invoke(cli, ["models", "add", "mine", "--source", "path:x", "--align"]).exit_code == 0


def test_upgrade_can_be_repeated(run: CliRunner) -> None:
    for _ in range(2):
        assert "0001" in run.invoke(cli, ["db", "upgrade"]).stdout


def test_version(run: CliRunner) -> None:
    assert run.invoke(cli, ["version"]).stdout.strip() == "0.1.0"


@pytest.mark.parametrize(
    "command", [[], ["up"], ["api"], ["worker"], ["demo"], ["models", "prepare"], ["models", "add"], ["keys", "create"]]
)
def test_help_says_what_a_command_does(run: CliRunner, command: list[str]) -> None:
    result = run.invoke(cli, [*command, "--help"])
    assert result.exit_code == 0
    assert len(result.stdout) > 200


def test_a_postgresql_database_that_is_not_migrated_is_left_alone(
    run: CliRunner, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNFORGOTTEN_DATABASE_URL", f"{postgres_url}?options=-csearch_path%3Dunmigrated")
    result = run.invoke(cli, ["keys", "list"])
    assert result.exit_code == 1
    assert "unforgotten db upgrade" in result.stderr


def test_the_api_does_not_need_torch() -> None:
    code = """
import sys
for name in ("torch", "transformers", "peft", "numpy", "workers"):
    sys.modules[name] = None
import app.main, app.cli
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
