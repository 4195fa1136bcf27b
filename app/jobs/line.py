"""Where jobs stand in the queue: in which order free workers take them, as workers/runtime/turns.py has it.

First comes what may be taken now; then, as if it could be by then, what waits for a place among its project's running
jobs or pauses before another attempt. Work that is no job takes its turns too and is not counted.
"""

import heapq
import time
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterable, Iterator
from itertools import chain, count
from typing import Any, TypeAlias

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.contracts.limits import ProjectLimits
from app.contracts.states import WorkKind, WorkState
from app.db import db_now
from app.models import Project, Work

LONG = 200
"""A line of more jobs takes milliseconds to read ..."""
REMEMBERED_SECONDS = 1.0
"""... and is read again after this time."""

_Row: TypeAlias = Any
"""One of the query below."""


class Line:
    """The queue as jobs show it. A long one may be a moment old, except for jobs that were not in it then.

    Args:
        limits: The service's, for projects without their own.
    """

    def __init__(self, limits: ProjectLimits) -> None:
        self._limits = limits
        self._remembered: tuple[dict[str, int], float] = ({}, 0.0)

    def positions(self, session: Session, job_ids: Collection[str]) -> dict[str, int]:
        """Places of waiting jobs by their ids, counted from 1; those of others may be among them."""
        found, until = self._remembered
        if not job_ids or (time.monotonic() < until and all(job_id in found for job_id in job_ids)):
            return found
        found = queue_positions(session, self._limits)
        if len(found) > LONG:
            self._remembered = found, time.monotonic() + REMEMBERED_SECONDS
        return found


def queue_positions(session: Session, limits: ProjectLimits) -> dict[str, int]:
    """Places of all waiting jobs by their ids, counted from 1.

    Args:
        session: Where they wait.
        limits: The service's, for projects without their own.
    """
    rows = session.execute(
        select(
            Work.id,
            Work.subject_id,
            Work.kind,
            Work.state,
            Work.project_id,
            Work.created_at,
            (Work.available_at <= db_now()).label("is_available"),
            Project.priority,
            Project.limits,
            Project.served_at,
        )
        .outerjoin(Project, Project.id == Work.project_id)
        .where(Work.state.in_((WorkState.QUEUED, WorkState.RUNNING)))
        .order_by(Work.created_at, Work.id)
    ).all()
    now, later = _divided(rows, limits)
    served = {row.project_id: row.served_at or 0.0 for row in rows}
    in_order = chain(_by_turns(now, served), _by_turns(later, served))
    jobs = (row.subject_id for row in in_order if row.kind == WorkKind.FINE_TUNING_JOB)
    return {job_id: place for place, job_id in enumerate(jobs, start=1)}


def _divided(rows: Iterable[_Row], limits: ProjectLimits) -> tuple[list[_Row], list[_Row]]:
    """What waits: what may be taken now, and the rest."""
    now, later = list[_Row](), list[_Row]()
    waiting, num_jobs = list[_Row](), Counter[str | None]()
    for row in rows:
        if row.state == WorkState.QUEUED:
            waiting.append(row)
        elif row.kind == WorkKind.FINE_TUNING_JOB:
            num_jobs[row.project_id] += 1
    most: dict[str | None, int | None] = {}
    for row in waiting:
        if row.project_id not in most:
            most[row.project_id] = _most_running(row, limits)
        is_limited = row.kind == WorkKind.FINE_TUNING_JOB and most[row.project_id] is not None
        if not row.is_available or (is_limited and num_jobs[row.project_id] >= (most[row.project_id] or 0)):
            later.append(row)
            continue
        now.append(row)
        num_jobs[row.project_id] += row.kind == WorkKind.FINE_TUNING_JOB
    return now, later


def _most_running(row: _Row, limits: ProjectLimits) -> int | None:
    # The provider's own work is of no project.
    return None if row.limits is None else ProjectLimits.model_validate(row.limits).over(limits).max_running_jobs


def _by_turns(waiting: Iterable[_Row], served: dict[str | None, float]) -> Iterator[_Row]:
    """One after the other; `served` is kept up to date."""
    lines: defaultdict[str | None, deque[_Row]] = defaultdict(deque)
    for row in waiting:
        lines[row.project_id].append(row)
    # Later than any time so far: whoever is served now is last of its equals.
    clock = count(max(served.values(), default=0.0) + 1.0)

    def turn(row: _Row) -> tuple[bool, int, float, float, str]:
        # A project that is gone leaves work that is nobody's, as the provider's is.
        is_projects = row.priority is not None
        return is_projects, -(row.priority or 0), served[row.project_id] if is_projects else 0.0, row.created_at, row.id

    heads = [(turn(line[0]), project_id) for project_id, line in lines.items()]
    heapq.heapify(heads)
    while heads:
        _, project_id = heapq.heappop(heads)
        line = lines[project_id]
        yield line.popleft()
        served[project_id] = next(clock)
        if line:
            heapq.heappush(heads, (turn(line[0]), project_id))
