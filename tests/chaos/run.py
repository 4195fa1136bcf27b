"""Jobs under fire, and whether each came to its right end: looked at through the API and in the rows."""

import hashlib
import io
import json
import random
import statistics
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import httpx
import openai
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.contracts.states import FINAL_JOB_STATUSES, JobStatus, WorkState
from app.db import Database
from app.models import Checkpoint, Event, File, FineTunedModel, Job, Work
from app.storage import ObjectStorage
from tests.chaos.faults import Faults, Kill
from tests.chaos.world import World
from workers.runtime.waste import sweep_waste

BASE = "tiny"
METHODS = ("der", "ewc", "none")
SETTLE_SECONDS = 240.0
RECOVERY_SECONDS = 90.0
_ENDED = (WorkState.DONE, WorkState.FAILED, WorkState.CANCELLED)
SUCCESS = "The job has successfully completed"


@dataclass
class Outcome:
    """What a run showed; all lists must be empty."""

    jobs: int
    kills: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    recoveries: list[float] = field(default_factory=list)
    """Seconds from a kill until the service was ready and the work that was hit had ended or another holder."""
    attempts: int = 0
    lost: list[str] = field(default_factory=list)
    """Jobs that did not succeed though they should have."""
    duplicated: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    """Not ended, or with something of theirs still running."""
    wrong: list[str] = field(default_factory=list)
    """Another adapter than the undisturbed job's, or none that can be had."""
    left: list[str] = field(default_factory=list)
    """Folders and objects that nobody needs."""

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.duplicated or self.stuck or self.wrong or self.left)

    def row(self, name: str) -> list[str]:
        """Of the table."""
        times = self.recoveries or [0.0]
        faults = ", ".join(f"{count} {what}" for what, count in sorted(self.faults.items())) or "none"
        return [
            name,
            str(self.kills.total()),
            faults,
            str(self.jobs),
            str(self.attempts),
            *(str(len(found)) for found in (self.lost, self.duplicated, self.stuck, self.wrong, self.left)),
            f"{statistics.median(times):.1f}",
            f"{max(times):.1f}",
        ]


HEADER = (
    *("back end", "kills", "other faults", "jobs", "attempts", "lost", "duplicated", "stuck", "wrong adapters"),
    *("left behind", "recovery, median s", "longest s"),
)


class ChaosRun:
    """One seeded run."""

    def __init__(
        self,
        world: World,
        database: Database,
        storage: ObjectStorage,
        key: str,
        seed: int,
        *,
        can_fill_disk: bool = False,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._world = world
        self._database = database
        self._storage = storage
        self._ai = openai.OpenAI(base_url=f"{world.url}/v1", api_key=key, max_retries=8, timeout=20.0)
        self._faults = Faults(world, database, seed, can_fill_disk=can_fill_disk)
        self._random = random.Random(seed + 1)
        self._say = say
        self._reference: dict[str, str] = {}

    def run(self, *, kills: int, jobs: int, mean_pause: float) -> Outcome:
        """Undisturbed jobs first, one a method; then as many jobs under fire, which must give the same adapters."""
        file_id = self._ai.files.create(file=("rows.jsonl", rows(24)), purpose="fine-tune").id
        undisturbed = {method: self._create(file_id, method) for method in METHODS}
        self._settle(list(undisturbed.values()))
        self._reference = {method: self._weights(job_id) for method, job_id in undisturbed.items()}
        self._say("undisturbed jobs are done")
        outcome = Outcome(jobs)
        made: dict[str, str] = {}
        for number in range(jobs):
            method = METHODS[number % len(METHODS)]
            made[self._create(file_id, method)] = method
        while outcome.kills.total() < kills:
            time.sleep(self._faults.pause_seconds(mean_pause))
            if self._random.random() < 0.15 and (name := self._faults.disturb()):
                outcome.faults[name] += 1
            killed = self._faults.kill()
            if killed is None:
                continue
            outcome.kills[killed.name] += 1
            seconds = self._recover(killed)
            outcome.recoveries.append(seconds)
            self._say(f"{outcome.kills.total()}/{kills}: {killed.name}, {len(killed.victims)} hit, {seconds:.1f} s")
            if self._all_ended(list(made)):
                # Nothing is left to disturb: more jobs.
                for method in METHODS:
                    made[self._create(file_id, method)] = method
                outcome.jobs = len(made)
        self._settle(list(made))
        self._judge(made, outcome)
        return outcome

    def _create(self, file_id: str, method: str) -> str:
        """As a client does that repeats what fails; the key makes it one job."""
        key = f"chaos-{self._random.getrandbits(64)}"
        while True:
            with suppress(openai.APIConnectionError, openai.InternalServerError, openai.ConflictError):
                return self._ai.fine_tuning.jobs.create(
                    model=BASE,
                    training_file=file_id,
                    seed=5,
                    hyperparameters={"n_epochs": 12, "batch_size": 2},
                    extra_body={"safety": {"method": method}},
                    extra_headers={"Idempotency-Key": key},
                ).id
            time.sleep(0.3)

    def _recover(self, killed: Kill) -> float:
        """Seconds until the service is ready and all work that was hit has ended or found another holder."""
        started = time.monotonic()
        while time.monotonic() - started < RECOVERY_SECONDS:
            if self._is_taken_up(killed.victims) and self._world.wait_until_ready(0.5):
                break
            time.sleep(0.05)
        return time.monotonic() - started

    def _is_taken_up(self, victims: dict[str, str]) -> bool:
        with self._database.reading() as session:
            found = session.execute(select(Work.id, Work.state, Work.lease_token).where(Work.id.in_(victims)))
            return all(
                state in _ENDED or (state == WorkState.RUNNING and token != victims[work_id])
                for work_id, state, token in found
            )

    def _all_ended(self, made: list[str]) -> bool:
        with self._database.reading() as session:
            open_jobs = select(Job.id).where(Job.id.in_(made), Job.status.not_in(FINAL_JOB_STATUSES))
            return session.scalars(open_jobs).first() is None

    def _settle(self, made: list[str]) -> None:
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline and not (self._all_ended(made) and not self._world.training_children()):
            time.sleep(0.2)
        self._world.wait_until_ready(60.0)

    def _judge(self, made: dict[str, str], outcome: Outcome) -> None:
        outcome.stuck += [f"process {pid}" for pid in self._world.training_children()]
        for job_id, method in made.items():
            self._judge_job(job_id, method, outcome)
        for _ in sweep_waste(self._database, self._storage, older_than_seconds=0.0):
            pass
        time.sleep(2.0)  # Two sweeps of the housekeeping.
        work = self._world.data_dir / "work"
        outcome.left += [folder.name for folder in work.iterdir() if folder.name.startswith("work_")]
        with self._database.reading() as session:
            named = _named_keys(session)
            outcome.attempts = session.scalar(select(func.sum(Work.attempt)).where(Work.subject_id.in_(made))) or 0
        stored = set(self._storage.keys("jobs/"))
        outcome.left += sorted(stored - named)
        outcome.wrong += [f"{key} is gone" for key in sorted(named - stored)]

    def _judge_job(self, job_id: str, method: str, outcome: Outcome) -> None:
        shown = self._ai.fine_tuning.jobs.retrieve(job_id)
        with self._database.reading() as session:
            works = session.scalars(select(Work).where(Work.subject_id == job_id)).all()
            num_models = len(session.scalars(select(FineTunedModel).where(FineTunedModel.job_id == job_id)).all())
            said = select(func.count()).select_from(Event).where(Event.job_id == job_id, Event.message == SUCCESS)
            num_successes = session.scalar(said) or 0
        if shown.status not in {status.value for status in FINAL_JOB_STATUSES}:
            outcome.stuck.append(f"{job_id} is {shown.status}")
        elif shown.status != JobStatus.SUCCEEDED.value:
            outcome.lost.append(f"{job_id} has {shown.status}: {shown.error}")
        elif self._weights(job_id) != self._reference[method]:
            outcome.wrong.append(job_id)
        if [work.state for work in works] != [WorkState.DONE] and shown.status == JobStatus.SUCCEEDED.value:
            outcome.stuck.append(f"{job_id}: its work is {[work.state for work in works]}")
        if num_models > 1 or num_successes > 1:
            outcome.duplicated.append(f"{job_id}: {num_models} models, {num_successes} successes")

    def _weights(self, job_id: str) -> str:
        """Hash of the adapter's weights, after its archive was compared with what the job says of it."""
        url = f"{self._world.url}/v1/fine_tuning/jobs/{job_id}"
        headers = {"Authorization": f"Bearer {self._ai.api_key}"}
        with httpx.Client(headers=headers, timeout=20.0, trust_env=False) as client:
            announced = client.get(url).raise_for_status().json()["adapter"]["sha256"]
            archive = client.get(f"{url}/adapter").raise_for_status().content
        assert hashlib.sha256(archive).hexdigest() == announced, job_id
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            weights = tar.extractfile("adapter_model.safetensors")
            assert weights is not None
            return hashlib.sha256(weights.read()).hexdigest()


def _named_keys(session: Session) -> set[str]:
    """Objects of jobs that rows name."""
    columns = (Job.adapter_key, Job.report_key, Checkpoint.adapter_key)
    found = {key for column in columns for key in session.scalars(select(column).where(column.is_not(None)))}
    return {key for key in found if key is not None} | set(
        session.scalars(select(File.storage_key).where(File.purpose == "fine-tune-results"))
    )


def rows(count: int) -> bytes:
    """A small training file."""
    return b"".join(
        json.dumps(
            {"messages": [{"role": "user", "content": f"Is {n} odd?"}, {"role": "assistant", "content": "yes"}]}
        ).encode()
        + b"\n"
        for n in range(count)
    )


def table(rows_of: list[list[str]]) -> str:
    """As Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in ([*HEADER], ["---"] * len(HEADER), *rows_of)]
    return "\n".join(lines)
