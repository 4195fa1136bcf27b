"""What can go wrong: kills, cut connections, a full disk, a broker without memory."""

import errno
import os
import random
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import ColumnElement, select, text

from app.contracts.states import WorkState
from app.db import Database
from app.models import Work
from tests.chaos.world import World, environment_of, kill_broker
from workers.runtime.process_group import MARK

BALLAST_SECONDS = 2.0

KILLS = ("api", "worker", "pool child", "training child", "housekeeping", "broker", "broker, wiped")
"""Each a SIGKILL; those of workers and their children twice as often."""
_WEIGHTS = (1, 2, 2, 4, 1, 1, 1)
FAULTS = ("database cut", "disk full")


@dataclass(frozen=True)
class Kill:
    """What was killed, and whose work it did."""

    name: str
    victims: dict[str, str]
    """Ids of the work that lost its process, and the tokens of the leases that it had."""


class Faults:
    """Draws what goes wrong next from a seed."""

    def __init__(self, world: World, database: Database, seed: int, *, can_fill_disk: bool) -> None:
        self._world = world
        self._database = database
        self._random = random.Random(seed)
        self._faults = [
            name
            for name in FAULTS
            if (name != "disk full" or can_fill_disk) and (name != "database cut" or _is_postgres(database))
        ]

    def pause_seconds(self, mean: float) -> float:
        """Until the next."""
        return self._random.uniform(0.3, 1.7) * mean

    def kill(self) -> Kill | None:
        """Kills something with SIGKILL; None where nothing of the kind runs."""
        name = self._random.choices(KILLS, _WEIGHTS)[0]
        world = self._world
        match name:
            case "broker" | "broker, wiped":
                kill_broker(world, is_wiped=name == "broker, wiped")
                return Kill(name, {})
            case "pool child":
                pid = self._one_of(world.pool_children())
                victims = self._held_by([pid])
            case "training child":
                pid = self._one_of(world.training_children())
                victims = self._worked_on_by(pid)
            case "worker":
                pid = world.pid(self._random.choice(("worker-1", "worker-2")))
                victims = self._held_by(world.pool_children(pid))
            case _:
                pid = world.pid(name)
                victims = {}
        return Kill(name, victims) if pid is not None and _killed(pid) else None

    def disturb(self) -> str | None:
        """Does something that kills nobody; its name, or None where this machine or back end has nothing of it."""
        if not self._faults:
            return None
        name = self._random.choice(self._faults)
        {"database cut": self._cut_database, "disk full": self._fill_disk}[name]()
        return name

    def _one_of(self, pids: list[int]) -> int | None:
        return self._random.choice(sorted(pids)) if pids else None

    def _held_by(self, pids: Sequence[int | None]) -> dict[str, str]:
        """Work and tokens of the leases that these processes hold."""
        owners = [f"{socket.gethostname()}:{pid}" for pid in pids]
        return self._leases(Work.lease_owner.in_(owners))

    def _worked_on_by(self, pid: int | None) -> dict[str, str]:
        return {} if pid is None else self._leases(Work.id == environment_of(pid).get(MARK, ""))

    def _leases(self, which: ColumnElement[bool]) -> dict[str, str]:
        with self._database.reading() as session:
            rows = session.execute(select(Work.id, Work.lease_token).where(which, Work.state == WorkState.RUNNING))
            return {work_id: token or "" for work_id, token in rows}

    def _cut_database(self) -> None:
        with self._database.engine.connect() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )

    def _fill_disk(self) -> None:
        """Leaves no room for checkpoints for a moment."""
        ballast = Path(self._world.data_dir / "work" / "ballast")
        try:
            with suppress(OSError), ballast.open("wb") as file:
                while True:
                    file.write(bytes(1 << 20))
            time.sleep(BALLAST_SECONDS)
        finally:
            ballast.unlink(missing_ok=True)


def _is_postgres(database: Database) -> bool:
    return database.engine.dialect.name == "postgresql"


def _killed(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError as error:
        if error.errno == errno.ESRCH:
            return False
        raise
    return True
