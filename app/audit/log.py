"""Adding to the audit log, and checking that nobody has taken from it.

Each entry's hash covers the entry and the hash before it. Whoever changes, removes or inserts one breaks the chain
there; whoever cuts off the end, or writes the whole log anew, is found out by a head that somebody has remembered
elsewhere.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import event, select
from sqlalchemy.orm import Session

from app.audit import repository
from app.db import db_now, one_at_a_time
from app.models import AuditEntry

OPERATOR = "operator"
"""Whoever uses the command line."""
SERVICE = "service"
"""What happens by itself."""
GENESIS = "0" * 64
"""The hash before the first entry."""

# Numbers with a fraction are left out: PostgreSQL and SQLite do not give each of them back as it was written.
AuditData = Mapping[str, str | int | bool | None]


class BrokenChainError(ValueError):
    """The log is not what was written to it."""


@dataclass(frozen=True)
class Chain:
    """A log that is unbroken."""

    num_entries: int
    head: str
    """Hash of the last entry: remember it elsewhere, and give it to the next verification."""


def record(
    session: Session, actor: str, project_id: str | None, action: str, subject: str, data: AuditData | None = None
) -> None:
    """Adds an entry in the session's transaction: it is there if, and only if, what it tells of is.

    It is written when the transaction commits, after everything else. Only one transaction appends at a time, and one
    that has begun to waits for no other lock, so that none waits for it in a circle.

    Args:
        session: The caller's.
        actor: Id of the key that was used, `OPERATOR` or `SERVICE`.
        project_id: Whose project it concerns, if one.
        action: In the past tense, with its feature: `job.created`.
        subject: Id of what it was done to.
        data: What else should be known. Never a secret, nor what tenants have written in their files.
    """
    kept = dict(data or {})

    @event.listens_for(session, "before_commit", once=True)
    def _before_commit(_: Session) -> None:
        session.flush()
        _append(session, actor, project_id, action, subject, kept)


def verify(session: Session, *, head: str | None = None) -> Chain:
    """Reads the whole log.

    Args:
        session: One that reads.
        head: A hash that was the last entry's once.

    Raises:
        BrokenChainError: An entry is missing, changed or added; the message names the first one.
    """
    num_entries, last, is_head_there = 0, GENESIS, head in (None, GENESIS)
    for entry in repository.all_entries(session):
        expected = num_entries + 1
        if entry.seq != expected:
            raise BrokenChainError(f"Entry {expected} is missing: after entry {num_entries} comes {entry.seq}.")
        if entry.previous_hash != last:
            raise BrokenChainError(f"Entry {entry.seq} does not follow from the one before it.")
        if entry.hash != _hash(entry):
            raise BrokenChainError(f"Entry {entry.seq} was changed after it was written.")
        num_entries, last = entry.seq, entry.hash
        is_head_there = is_head_there or last == head
    if not is_head_there:
        what = (
            f"No entry has the hash {head}: the log was cut off at its end, or written anew, since that was its head."
        )
        raise BrokenChainError(f"{what} It ends with entry {num_entries}.")
    return Chain(num_entries, last)


def _append(
    session: Session,
    actor: str,
    project_id: str | None,
    action: str,
    subject: str,
    data: dict[str, str | int | bool | None],
) -> None:
    one_at_a_time(session, "audit log")
    last = session.execute(select(AuditEntry.seq, AuditEntry.hash).order_by(AuditEntry.seq.desc()).limit(1)).first()
    entry = AuditEntry(
        seq=1 if last is None else last.seq + 1,
        at=session.scalars(db_now().select()).one(),
        actor=actor,
        project_id=project_id,
        action=action,
        subject=subject,
        data=data,
        previous_hash=GENESIS if last is None else last.hash,
    )
    entry.hash = _hash(entry)
    session.add(entry)
    session.flush()


def _hash(entry: AuditEntry) -> str:
    """SHA-256 of everything in the entry but its hash, as JSON with sorted keys, no spaces, and ASCII only."""
    fields = {
        "seq": entry.seq,
        "at": entry.at,
        "actor": entry.actor,
        "project_id": entry.project_id,
        "action": entry.action,
        "subject": entry.subject,
        "data": entry.data,
        "previous_hash": entry.previous_hash,
    }
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
