"""`unforgotten audit`: reading the audit log and checking it."""

import json
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from app.audit import repository
from app.audit.log import BrokenChainError, verify
from app.models import AuditEntry
from app.settings import Settings
from app.terminal import fail, open_database, out

audit_cli = typer.Typer(help="Who did what: the log that is only added to.", no_args_is_help=True)

_HEX_DIGITS = 64
_EXPORTED_AT_ONCE = 1000


@audit_cli.command("verify")
def verify_log(
    head: Annotated[
        str | None, typer.Option(help="The head that an earlier verification printed: finds a log that was cut off.")
    ] = None,
) -> None:
    """Check that no entry is missing or changed, and print the log's head. Keep that elsewhere."""
    if head is not None and (len(head) != _HEX_DIGITS or set(head) - set("0123456789abcdef")):
        fail(f"A head is a hash of {_HEX_DIGITS} hexadecimal digits.")
    with open_database(Settings()) as database, database.reading() as session:
        try:
            chain = verify(session, head=head)
        except BrokenChainError as error:
            fail(f"The audit log is broken. {error}")
    entries = "1 entry" if chain.num_entries == 1 else f"{chain.num_entries} entries"
    out.print(f"{entries}, unbroken. Head: {chain.head}", highlight=False, soft_wrap=True)


@audit_cli.command("list")
def list_entries(
    project: Annotated[str | None, typer.Option(help="Only of the project with this id: proj_...")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many, the newest first.")] = 50,
) -> None:
    """The newest entries."""
    with open_database(Settings()) as database, database.reading() as session:
        found = repository.newest(session, project_ids=[project] if project else [], limit=limit)
    table = Table("No.", "At", "Actor", "Project", "Action", "Subject", "More")
    for entry in found:
        at = datetime.fromtimestamp(entry.at, UTC).strftime("%Y-%m-%d %H:%M:%S")
        more = ", ".join(f"{key}={value}" for key, value in entry.data.items())
        texts = (entry.actor, entry.project_id or "", entry.action, entry.subject, more)
        table.add_row(str(entry.seq), at, *map(escape, texts))
    out.print(table)


@audit_cli.command("export")
def export_log() -> None:
    """Write the whole log to standard output, the oldest entry first: a JSON object a line."""
    last = 0
    with open_database(Settings()) as database:
        while True:
            # Not in one transaction, of which the database does not know how long a reader of the output takes.
            with database.reading() as session:
                entries = repository.after(session, last, limit=_EXPORTED_AT_ONCE)
            if not entries:
                return
            for entry in entries:
                typer.echo(_line(entry))
            last = entries[-1].seq


def _line(entry: AuditEntry) -> str:
    return json.dumps({column.key: getattr(entry, column.key) for column in AuditEntry.__table__.columns})
