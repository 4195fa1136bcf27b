"""The command `unforgotten`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.auth.service import AuthService
from app.catalog.service import CatalogService
from app.cli import cli
from app.db import Database
from app.settings import Settings

VERSIONS = Path(__file__).parents[2] / "migrations" / "versions"


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

    @pytest.mark.parametrize("project", ["", " ", "x" * 129, "a\x00b"])
    def test_names_that_no_database_takes_are_refused(self, run: CliRunner, project: str) -> None:
        result = run.invoke(cli, ["keys", "create", "--project", project])
        assert result.exit_code == 1
        assert "name" in result.stderr.lower()

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

    def test_a_folder_is_registered_wherever_it_is_read_from(self, run: CliRunner, tmp_path: Path) -> None:
        run.invoke(cli, ["models", "add", "mine", "--source", "path:models/x"])
        database = database_in(tmp_path)
        assert CatalogService(database, "us").bases()["mine"].source == f"path:{tmp_path / 'models' / 'x'}"
        database.dispose()

    def test_a_model_that_is_safe_already_can_have_a_twin(self, run: CliRunner, tmp_path: Path) -> None:
        add = ["models", "add", "mine", "--source", "path:safe", "--unaligned-twin"]
        assert "begins with hf:" in run.invoke(cli, [*add, "twin"]).stderr
        assert "its own unaligned twin" in run.invoke(cli, [*add, "path:twin", "--align"]).stderr
        assert "for a new name" in run.invoke(cli, ["models", "add", "gemma-2b-it", "--unaligned-twin", "x"]).stderr
        assert run.invoke(cli, [*add, "path:twin"]).exit_code == 0
        database = database_in(tmp_path)
        assert CatalogService(database, "us").bases()["mine"].recipe.unaligned_twin == f"path:{tmp_path / 'twin'}"
        database.dispose()

    def test_a_model_without_a_chat_template_is_given_one(self, run: CliRunner, tmp_path: Path) -> None:
        template = tmp_path / "turns.jinja"
        template.write_text("{{ messages }}")
        add = ["models", "add", "mine", "--source", "path:pretrained", "--align", "--chat-template"]
        assert run.invoke(cli, [*add, "nowhere.jinja"]).exit_code == 2
        for content, complaint in [
            (b"\xff\xfe", "is not a text in UTF-8"),
            (b" \n", "is empty"),
            (b"x" * 65_537, "has 65537 characters; a chat template may have 65536"),
        ]:
            (tmp_path / "bad.jinja").write_bytes(content)
            refused = run.invoke(cli, [*add, str(tmp_path / "bad.jinja")])
            assert (refused.exit_code, complaint in refused.stderr) == (1, True)
        assert run.invoke(cli, [*add, str(template)]).exit_code == 0
        database = database_in(tmp_path)
        assert CatalogService(database, "us").bases()["mine"].recipe.chat_template == "{{ messages }}"
        database.dispose()
        template.write_text("{{ messages[0] }}")
        assert "another name" in run.invoke(cli, [*add, str(template)]).stderr
        known = run.invoke(cli, ["models", "add", "gemma-2b-it", "--chat-template", str(template)])
        assert "--chat-template is for a new name" in known.stderr

    def test_how_jobs_on_a_base_are_trained_is_the_providers_choice(self, run: CliRunner, tmp_path: Path) -> None:
        assert "not registered" in run.invoke(cli, ["models", "training", "gemma-2b-it"]).stderr
        run.invoke(cli, ["models", "add", "gemma-2b-it"])
        assert run.invoke(cli, ["models", "training", "gemma-2b-it", "--quantisation", "int3"]).exit_code == 2
        before = run.invoke(cli, ["models", "training", "gemma-2b-it"]).stdout
        assert "quantisation: none\ngradient_checkpointing: False" in before
        run.invoke(cli, ["models", "training", "gemma-2b-it", "--quantisation", "nf4"])
        after = run.invoke(cli, ["models", "training", "gemma-2b-it", "--gradient-checkpointing"]).stdout
        changed = before.replace("quantisation: none", "quantisation: nf4")
        assert after == changed.replace("gradient_checkpointing: False", "gradient_checkpointing: True")

    def test_what_would_be_ignored_is_refused(self, run: CliRunner) -> None:
        assert run.invoke(cli, ["models", "add", "qwen2.5-0.5b-instruct", "--align"]).exit_code == 1
        for _ in range(2):
            assert run.invoke(cli, ["models", "add", "mine", "--source", "path:x"]).exit_code == 0
        other = run.invoke(cli, ["models", "add", "mine", "--source", "path:y"])
        assert other.exit_code == 1
        assert "another name" in other.stderr
        for option in (["--align"], ["--unaligned-twin", "path:twin"]):
            changed = run.invoke(cli, ["models", "add", "mine", "--source", "path:x", *option])
            assert "another name" in changed.stderr


def test_upgrade_can_be_repeated(run: CliRunner) -> None:
    newest = max(path.name[:4] for path in VERSIONS.glob("0*.py"))
    for _ in range(2):
        assert run.invoke(cli, ["db", "upgrade"]).stdout == f"The database is at revision {newest}.\n"


def test_a_setting_that_cannot_be_is_told_in_a_line(tmp_path: Path) -> None:
    environment = {**os.environ, "UNFORGOTTEN_PORT": "70000", "UNFORGOTTEN_LOG_LEVEL": "LOUD"}
    environment["UNFORGOTTEN_DATA_DIR"] = str(tmp_path)
    command = [sys.executable, "-m", "app.cli", "keys", "list"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "UNFORGOTTEN_PORT: " in done.stderr
    assert "UNFORGOTTEN_LOG_LEVEL: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_setting_that_is_no_json_is_told_in_a_line(tmp_path: Path) -> None:
    environment = {**os.environ, "UNFORGOTTEN_GATE": "{'on_fail': 1}", "UNFORGOTTEN_DATA_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "app.cli", "keys", "list"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert 'field "gate"' in done.stderr
    assert "double quotes" in done.stderr
    assert "Traceback" not in done.stderr


def test_version(run: CliRunner) -> None:
    assert run.invoke(cli, ["version"]).stdout.strip() == "0.1.0"


@pytest.mark.parametrize("command", [[], ["up"], ["api"], ["worker"], ["models", "add"], ["keys", "create"]])
def test_help_says_what_a_command_does(run: CliRunner, command: list[str]) -> None:
    result = run.invoke(cli, [*command, "--help"])
    assert result.exit_code == 0
    assert len(result.stdout) > 200


@pytest.mark.parametrize("command", [["demo"], ["models", "prepare"]])
def test_a_workers_command_says_so_itself(command: list[str], tmp_path: Path) -> None:
    # In a process of its own, because the command replaces the process that it runs in.
    environment = {**os.environ, "UNFORGOTTEN_DATA_DIR": str(tmp_path)}
    arguments = [sys.executable, "-m", "app.cli", *command, "--help"]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert f"unforgotten {' '.join(command)}" in done.stdout
    assert "--retrain" in done.stdout


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
