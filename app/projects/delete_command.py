"""`unforgotten projects delete`."""

from typing import Annotated

import typer

from app.errors import InvalidRequestError, NotFoundError
from app.projects.deletion import ProjectDeletion
from app.settings import Settings
from app.storage import ObjectStorage
from app.terminal import fail, open_database, out

_LEFT = "What was written down about its work and in the audit log stays: ids, states and times."


def delete_project(
    name: Annotated[str, typer.Argument(help="The project's name.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a project with its files, jobs, models and keys, once nothing of it is unfinished. For good."""
    settings = Settings()
    with open_database(settings) as database:
        deletion = ProjectDeletion(database, ObjectStorage(settings.resolved_storage_url))
        try:
            contents = deletion.contents(name)
            if not yes:
                out.print(f"{name} has {_counts(contents)}.", markup=False, highlight=False, soft_wrap=True)
                typer.confirm("Delete all of it?", abort=True)
            removed = deletion.delete(name)
        except (NotFoundError, InvalidRequestError) as error:
            fail(error.message)
    sentences = [f"{name} is deleted: {removed.num_objects} stored objects, {_counts(removed.num_rows)}."]
    if removed.num_continued:
        sentences.append(
            f"{removed.num_continued} jobs of other projects went on from its checkpoints: they and their models stay, "
            "and go on naming them."
        )
    for sentence in (*sentences, _LEFT):
        out.print(sentence, markup=False, highlight=False, soft_wrap=True)


def _counts(by_table: dict[str, int]) -> str:
    """Rows by table, without the project's own."""
    counts = [
        f"{number} {table.replace('_', ' ')}" for table, number in sorted(by_table.items()) if table != "projects"
    ]
    return ", ".join(counts) if counts else "nothing"
