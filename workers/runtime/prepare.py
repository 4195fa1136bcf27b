"""`unforgotten models prepare`: prepares a base now, in the foreground, with progress shown.

It is the same work as a worker would do, claimed and fenced by the same mechanism, so it can run beside a service
that is up. With --no-wait it is only queued, for a worker to take.
"""

import threading
import time
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from sqlalchemy import select

from app.broker import resolved_broker_url
from app.catalog.entries import find_entry
from app.catalog.service import CatalogService
from app.contracts.bases import PrepareRecipe
from app.contracts.progress import EventMessage, Message, ProgressMessage
from app.contracts.states import BaseStatus, WorkKind, WorkState
from app.db import Database
from app.logs import configure_logs
from app.models import BaseModelRow, Work
from app.queue import LatePublisher, Publisher, enqueue
from app.schema import NotMigratedError, ensure_schema
from app.settings import Settings
from app.storage import ObjectStorage
from workers.runtime.housekeeping import Housekeeper
from workers.runtime.supervisor import Runtime, run_work

POLL_SECONDS = 1.0
console = Console()


class PrepareError(Exception):
    """The base cannot be prepared; the message says why and what to do."""


class _Nobody:
    """Rings for nobody: this process takes the work itself."""

    def publish(self, work_id: str) -> None:
        """Nothing to send."""

    def check(self) -> None:
        """Nothing to reach."""

    def num_waiting(self) -> int:
        """No message is under way."""
        return 0


def main(
    name: Annotated[str, typer.Argument(help="A registered base model, or a name of the catalogue.")],
    *,
    retrain: Annotated[bool, typer.Option("--retrain", help="Train the alignment anew, not the shipped one.")] = False,
    wait: Annotated[bool, typer.Option(help="Stay until it is ready and show progress.")] = True,
    eval_harmful: Annotated[
        int | None,
        typer.Option(min=1, help="Measure with only the first N harmful prompts (at first: all; remembered)."),
    ] = None,
    eval_lookalikes: Annotated[
        int | None, typer.Option(min=1, help="Measure with only the first N look-alikes (at first: all; remembered).")
    ] = None,
) -> None:
    """Prepare a base model: align it if its entry says so, and build what all jobs on it share."""
    settings = Settings()
    # Progress is shown as bars; only what goes wrong is logged.
    configure_logs("WARNING")
    database = Database(settings.resolved_database_url)
    try:
        ensure_schema(database)
        changes: dict[str, object] = {"eval_harmful": eval_harmful, "eval_lookalikes": eval_lookalikes}
        changes = {key: value for key, value in changes.items() if value is not None}
        if retrain:
            changes["shipped_adapter"] = None
        publisher = _Nobody() if wait else LatePublisher(lambda: resolved_broker_url(settings))
        work_id = request_preparation(database, settings, publisher, name, changes)
        if not wait:
            console.print(f"{name} is queued for preparation; see `unforgotten models list`.")
            return
        _prepare_here(database, settings, work_id)
        _report(database, name)
    except (PrepareError, NotMigratedError) as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    finally:
        database.dispose()


def request_preparation(
    database: Database, settings: Settings, publisher: Publisher, name: str, changes: dict[str, object]
) -> str:
    """Registers the base if need be, notes the recipe's changes and queues the work (or finds it queued).

    Returns:
        Id of the work.
    """
    entry = find_entry(name)
    if entry is not None:
        CatalogService(database, settings.organization).add_base(entry)
    with database.transaction() as session:
        base = session.get(BaseModelRow, name)
        if base is None:
            raise PrepareError(f"There is no base model «{name}»: register it with `unforgotten models add {name}`.")
        recipe = PrepareRecipe.model_validate(base.recipe).model_copy(update=changes)
        base.recipe = PrepareRecipe.model_validate(recipe.model_dump()).model_dump(mode="json")
        open_work = session.scalar(
            select(Work.id).where(
                Work.kind == WorkKind.PREPARE_BASE,
                Work.subject_id == name,
                Work.state.in_([WorkState.QUEUED, WorkState.RUNNING]),
            )
        )
        if open_work is not None:
            return open_work
        work = enqueue(session, publisher, WorkKind.PREPARE_BASE, name, max_attempts=settings.max_attempts)
        return work.id


def _prepare_here(database: Database, settings: Settings, work_id: str) -> None:
    """Makes attempts until the work is over; where a worker was faster, waits for it."""
    columns = (TextColumn("   {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bars: dict[str, TaskID] = {}

        def show(message: Message) -> None:
            if isinstance(message, EventMessage):
                progress.console.print(f"   {message.message}", highlight=False, markup=False)
            elif isinstance(message, ProgressMessage):
                if message.what not in bars:
                    bars[message.what] = progress.add_task(message.what, total=message.total)
                progress.update(bars[message.what], completed=message.done, total=message.total)

        runtime = Runtime(settings, database, ObjectStorage(settings.resolved_storage_url), on_message=show)
        keeper = Housekeeper(settings, database, runtime.storage, _Nobody)
        while _state(database, work_id) in (WorkState.QUEUED, WorkState.RUNNING):
            if not run_work(runtime, work_id, threading.Event()):
                # Nobody else may be there to notice that an earlier holder was killed.
                keeper.reap()
                time.sleep(POLL_SECONDS)


def _state(database: Database, work_id: str) -> WorkState:
    with database.transaction() as session:
        return WorkState(session.get_one(Work, work_id).state)


def _report(database: Database, name: str) -> None:
    with database.transaction() as session:
        base = session.get_one(BaseModelRow, name)
        if base.status != BaseStatus.READY:
            raise PrepareError(f"{name} could not be prepared: {base.error}")
        console.print(f"{name} is ready ({(base.prepared_hash or '')[:12]}).")


if __name__ == "__main__":
    command_line = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    command_line.command()(main)
    command_line(prog_name="unforgotten models prepare")
