"""`unforgotten projects`: who may use how much, and who goes first."""

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from app.contracts.limits import ProjectLimits
from app.errors import NotFoundError
from app.projects.operations import OperatedProject, ProjectOperations
from app.settings import Settings
from app.terminal import fail, open_database, out

projects_cli = typer.Typer(
    help="Projects: what they use, their limits and their priority in the queue. A key makes its project: "
    "`unforgotten keys create`.",
    no_args_is_help=True,
)

DEFAULT = "default"
MAX_PRIORITY = 1_000_000
_TITLES = {
    "max_running_jobs": "Running jobs",
    "max_unfinished_jobs": "Unfinished jobs",
    "max_stored_bytes": "Stored bytes",
    "trained_tokens_per_day": "Tokens of a day",
    "requests_per_minute": "Requests a minute",
}

ProjectName = Annotated[str, typer.Argument(help="The project's name, from `projects list`.")]
Limit = str | None


@projects_cli.command("list")
def list_projects() -> None:
    """Every project with what it uses, of what it may use."""
    settings = Settings()
    with open_database(settings) as database:
        projects = ProjectOperations(database, settings.limits).all()
    table = Table("Project", "Priority", *_TITLES.values())
    for project in projects:
        table.add_row(escape(project.name), str(project.priority), *(_used(project, name) for name in _TITLES))
    out.print(table)


@projects_cli.command("limits")
def change_limits(
    project: ProjectName,
    max_running_jobs: Annotated[
        Limit, typer.Option(help="Jobs that train at the same time; more of them wait and hold up nobody.")
    ] = None,
    max_unfinished_jobs: Annotated[Limit, typer.Option(help="Jobs that wait, run or are paused.")] = None,
    max_stored_bytes: Annotated[
        Limit, typer.Option(help="Files, parts of unfinished uploads and adapters, in bytes: 10_000_000_000.")
    ] = None,
    trained_tokens_per_day: Annotated[
        Limit, typer.Option(help="Of jobs that ended in the last 24 hours; once they are reached, no new job.")
    ] = None,
    requests_per_minute: Annotated[Limit, typer.Option(help="To each process of the API.")] = None,
) -> None:
    """Show a project's limits, or change those that are given.

    Each takes a number, or `default` for the service's own (UNFORGOTTEN_LIMITS).

    A change holds two seconds later at the latest; jobs that run go on.
    """
    given = {
        "max_running_jobs": max_running_jobs,
        "max_unfinished_jobs": max_unfinished_jobs,
        "max_stored_bytes": max_stored_bytes,
        "trained_tokens_per_day": trained_tokens_per_day,
        "requests_per_minute": requests_per_minute,
    }
    changes = {name: _parsed(name, text) for name, text in given.items() if text is not None}
    settings = Settings()
    with open_database(settings) as database:
        projects = ProjectOperations(database, settings.limits)
        try:
            found = projects.change_limits(project, changes) if changes else projects.get(project)
        except NotFoundError:
            fail(_unknown(project))
    for name, title in _TITLES.items():
        origin = " (the project's own)" if getattr(found.own, name) is not None else ""
        out.print(f"{title + ':':19}{_used(found, name)}{origin}", markup=False, highlight=False, soft_wrap=True)


@projects_cli.command("priority", context_settings={"ignore_unknown_options": True})
def change_priority(
    project: ProjectName,
    priority: Annotated[
        int, typer.Argument(min=-MAX_PRIORITY, max=MAX_PRIORITY, help="0 is what projects begin with; -1 is lower.")
    ],
) -> None:
    """Change whose work is taken first: that of a higher priority, whatever waits below it.

    Projects of the same priority take turns. Work that waits already moves too.
    """
    settings = Settings()
    with open_database(settings) as database:
        try:
            ProjectOperations(database, settings.limits).change_priority(project, priority)
        except NotFoundError:
            fail(_unknown(project))
    out.print(f"{project} has the priority {priority}.", markup=False, highlight=False, soft_wrap=True)


def _parsed(name: str, text: str) -> int | None:
    """The limit; None for the service's."""
    if text == DEFAULT:
        return None
    try:
        return ProjectLimits.model_validate({name: int(text)}).model_dump()[name]  # type: ignore[no-any-return]
    except ValueError:
        fail(f"--{name.replace('_', '-')} takes a whole number from 1, or `{DEFAULT}` for the service's limit.")


def _used(project: OperatedProject, name: str) -> str:
    used = project.use._asdict().get(name)
    limit = getattr(project.limits, name)
    most = "no limit" if limit is None else f"{limit:,}"
    return most if used is None else f"{used:,} of {most}" if limit is not None else f"{used:,}"


def _unknown(project: str) -> str:
    return f"There is no project {project}: `unforgotten projects list` shows them."
