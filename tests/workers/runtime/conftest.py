"""Databases of both kinds, rows of a job, and a runtime whose children are fakes."""

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import create_engine, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

from app.contracts.plan import TrainingPlan
from app.contracts.protection import Protection
from app.contracts.states import BaseStatus, JobStatus, WorkKind, WorkState
from app.db import Database, Row, db_now
from app.ids import new_id
from app.models import BaseModelRow, Checkpoint, Event, File, Job, Project, Work
from app.settings import Settings
from app.storage import ObjectStorage, file_key
from workers.runtime.supervisor import Runtime

POSTGRES_URL = os.environ.get("TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/test").replace(
    "postgresql://", "postgresql+psycopg://"
)
IS_CI = os.environ.get("CI") == "true"
FAKE_CHILD = Path(__file__).with_name("fake_child.py")
TRAINING_BYTES = b'{"messages": []}\n'


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A database of our own on the running PostgreSQL, gone afterwards."""
    name = new_id("unforgotten_runtime_", 12).lower()
    admin = create_engine(POSTGRES_URL, isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 2})
    try:
        with admin.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
    except OperationalError as error:
        if IS_CI:
            raise
        pytest.skip(f"no PostgreSQL: {error}")
    yield make_url(POSTGRES_URL).set(database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'test.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    Row.metadata.create_all(database.engine)
    with database.transaction() as session:
        for table in reversed(Row.metadata.sorted_tables):
            session.execute(table.delete())
    yield database
    database.dispose()


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return Settings(
        _env_file=None,
        data_dir=tmp_path / "data",
        database_url=database_url,
        lease_seconds=30.0,
        heartbeat_seconds=0.05,
        sweep_seconds=0.2,
        stop_grace_seconds=0.3,
        max_attempts=3,
    )


@pytest.fixture
def storage(settings: Settings) -> ObjectStorage:
    return ObjectStorage(settings.resolved_storage_url)


@dataclass(frozen=True)
class Queued:
    """A job that waits."""

    job_id: str
    work_id: str


class World:
    """Makes rows and looks at them."""

    def __init__(self, db: Database, settings: Settings, storage: ObjectStorage) -> None:
        self.db = db
        self.settings = settings
        self.storage = storage
        self._add_base()

    def runtime(self, scenario: str, settings: Settings | None = None) -> Runtime:
        return Runtime(settings or self.settings, self.db, self.storage, self.commands(scenario))

    def commands(self, scenario: str) -> dict[WorkKind, list[str]]:
        return {kind: [sys.executable, str(FAKE_CHILD), scenario] for kind in WorkKind}

    def add_job(self, *, suffix: str | None = None, protection: Protection | None = None) -> Queued:
        file_id = new_id("file-")
        training = File(
            id=file_id,
            project_id="proj_a",
            filename="train.jsonl",
            purpose="fine-tune",
            bytes=len(TRAINING_BYTES),
            sha256=hashlib.sha256(TRAINING_BYTES).hexdigest(),
            storage_key=file_key(file_id),
            status="processed",
        )
        self.storage.put(training.storage_key, TRAINING_BYTES)
        job = Job(
            id=new_id("ftjob-"),
            project_id="proj_a",
            base_id="tiny",
            model="tiny",
            training_file=training.id,
            suffix=suffix,
            seed=0,
            hyperparameters={},
            plan=TrainingPlan().model_dump(mode="json"),
            protection=(protection or Protection()).model_dump(mode="json"),
            status=JobStatus.QUEUED,
            result_files=[],
            stages={},
        )
        with self.db.transaction() as session:
            session.add(training)
            session.flush()
            session.add(job)
        return Queued(job.id, self.add_work(WorkKind.FINE_TUNING_JOB, job.id))

    def add_work(self, kind: WorkKind, subject_id: str) -> str:
        work = Work(
            id=new_id("work_"),
            kind=kind,
            subject_id=subject_id,
            state=WorkState.QUEUED,
            max_attempts=self.settings.max_attempts,
            available_at=db_now(),
        )
        with self.db.transaction() as session:
            session.add(work)
        return work.id

    def job(self, job_id: str) -> Job:
        with self.db.transaction() as session:
            return session.get_one(Job, job_id)

    def work(self, work_id: str) -> Work:
        with self.db.transaction() as session:
            return session.get_one(Work, work_id)

    def base(self) -> BaseModelRow:
        with self.db.transaction() as session:
            return session.get_one(BaseModelRow, "tiny")

    def events(self, job_id: str) -> list[Event]:
        with self.db.transaction() as session:
            return list(session.scalars(select(Event).where(Event.job_id == job_id).order_by(Event.seq)))

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        with self.db.transaction() as session:
            query = select(Checkpoint).where(Checkpoint.job_id == job_id).order_by(Checkpoint.step_number)
            return list(session.scalars(query))

    def sentences(self, job_id: str) -> list[str]:
        return [event.message for event in self.events(job_id)]

    def set_job(self, job_id: str, **values: object) -> None:
        with self.db.transaction() as session:
            job = session.get_one(Job, job_id)
            for name, value in values.items():
                setattr(job, name, value)

    def set_work(self, work_id: str, **values: object) -> None:
        with self.db.transaction() as session:
            work = session.get_one(Work, work_id)
            for name, value in values.items():
                setattr(work, name, value)

    def _add_base(self) -> None:
        (self.settings.bases_dir / "0123").mkdir(parents=True)
        with self.db.transaction() as session:
            # So long ago that nothing was stored before.
            session.add(Project(id="proj_a", name="a", created_at=0.0))
            session.add(
                BaseModelRow(
                    id="tiny",
                    source="path:tiny",
                    recipe={"align": False},
                    training_defaults={},
                    status=BaseStatus.READY,
                    prepared_hash="0123",
                )
            )


@pytest.fixture
def world(db: Database, settings: Settings, storage: ObjectStorage) -> World:
    return World(db, settings, storage)


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], None]:
    """Waits until something is true, for at most 20 seconds."""

    def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 20.0
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.02)

    return wait
