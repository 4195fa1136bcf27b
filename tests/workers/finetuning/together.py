"""Runs of `finetune` in several processes: `python -m tests.workers.finetuning.together FOLDER` is one of them.

`runs.json` in the folder says what to train; the first process leaves each run's folder there, with `outcome.json`.
All runs of a test module go through the same processes, because starting them takes longer than training.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from app.contracts.plan import TrainingPlan
from tests.workers.finetuning.runs import StopAfter, rows_for
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.distributed import RENDEZVOUS, Ranks, joined
from workers.finetuning.errors import FinetuningError
from workers.finetuning.run import finetune
from workers.modeling.loading import load

ROOT = Path(__file__).parents[3]
SECONDS = 240.0


class Run(NamedTuple):
    """What to train, in the folder of this name."""

    name: str
    plan: TrainingPlan
    stop_after: int | None = None
    rows_missing: int = 0
    """How many rows fewer each process has than the one before it: they should all have the same."""


class Outcome(NamedTuple):
    """What the first process got."""

    history: list[dict[str, Any]]
    notes: list[str] | None
    """None where the run did not come to its end."""
    error: str | None


def train_together(folder: Path, base: Artefacts, runs: Sequence[Run], *, on_gpus: bool = False) -> dict[str, Outcome]:
    """All runs, one after the other, in two processes: of one CPU thread each, or on a GPU each."""
    folder.mkdir(exist_ok=True)
    described = [run._asdict() | {"plan": run.plan.model_dump(mode="json")} for run in runs]
    (folder / "runs.json").write_text(json.dumps({"base": str(base.directory), "runs": described}))
    processes = [_start(rank, folder, on_gpus=on_gpus) for rank in range(2)]
    try:
        logs = [process.communicate(timeout=SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(logs)
    return {run.name: Outcome(**json.loads((folder / run.name / "outcome.json").read_text())) for run in runs}


def _start(rank: int, folder: Path, *, on_gpus: bool) -> subprocess.Popen[str]:
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    devices = {} if on_gpus else {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.workers.finetuning.together", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, **devices, **place, RENDEZVOUS: f"file://{folder / 'rendezvous'}", "OMP_NUM_THREADS": "1"},
    )


def main() -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    described = json.loads((folder / "runs.json").read_text())
    base = Artefacts(Path(described["base"]))
    with joined() as ranks:
        for settings in described["runs"]:
            run = Run(**settings | {"plan": TrainingPlan.model_validate(settings["plan"])})
            outcome = _train(folder / run.name, base, run, ranks)
            if ranks.is_first:
                (folder / run.name).mkdir(exist_ok=True)
                (folder / run.name / "outcome.json").write_text(json.dumps(outcome._asdict()))


def _train(out_dir: Path, base: Artefacts, run: Run, ranks: Ranks) -> Outcome:
    # The others would stop at once, if they were asked.
    stop_after = (run.stop_after or 1000) if ranks.is_first else 0
    try:
        result = finetune(
            load(base.model_dir, precision=run.plan.precision),
            rows_for(run.plan, 9 - ranks.rank * run.rows_missing),
            run.plan,
            out_dir=out_dir,
            base_name="tiny",
            base_hash="hash of tiny",
            artefacts=base,
            validation_rows=rows_for(run.plan, 4),
            control=StopAfter(stop_after),
            ranks=ranks,
        )
    except FinetuningError as error:
        return Outcome([], None, f"{type(error).__name__}: {error}")
    return Outcome([asdict(m) for m in result.history], result.summary.notes if result.summary else None, None)


if __name__ == "__main__":
    main()
