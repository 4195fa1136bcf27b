"""The child process that runs a fine-tuning job: `python -m workers.stages WORK_FOLDER`."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.contracts.decision import decide
from app.contracts.evaluation import Report
from app.contracts.progress import JobResultMessage, StageDoneMessage
from app.contracts.specs import SPEC_FILE, JobSpec
from workers.channel import Channel, StopAsked, run_child
from workers.evaluation.errors import EvaluationFailed
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.run import METRICS_FILE
from workers.modeling.adapters import rank_of
from workers.modeling.loading import use_threads
from workers.stages import evaluate, gate, package, preflight, train
from workers.stages.checkpoints import measured_checkpoint
from workers.stages.context import StageContext
from workers.stages.gate import shipped_adapter

STAGES: dict[str, Callable[[StageContext], dict[str, Any]]] = {
    preflight.NAME: preflight.run,
    train.NAME: train.run,
    evaluate.NAME: evaluate.run,
    gate.NAME: gate.run,
    package.NAME: package.run,
}


def main() -> int:
    """Reads the spec and runs it."""
    folder = Path(sys.argv[1])
    spec = JobSpec.model_validate_json((folder / SPEC_FILE).read_text())
    use_threads(int(os.environ.get("UNFORGOTTEN_WORKER_THREADS", "0")))
    return run_child(lambda channel: run_job(spec, folder, channel))


def run_job(spec: JobSpec, folder: Path, channel: Channel) -> None:
    """Runs the stages that are not finished yet, then reports the result.

    A stage counts as finished only if this work folder still holds what it made; another machine starts over.
    """
    context = StageContext(spec, folder, channel, Artefacts(spec.prepared_dir))
    results: dict[str, dict[str, Any]] = {}
    # What follows on a stage that is made again is made again: a report without a decision is no report to publish.
    is_resuming = True
    for name, stage in STAGES.items():
        if channel.should_stop():
            raise StopAsked
        marker = folder / f".{name}.done"
        is_resuming = is_resuming and marker.exists() and name in spec.finished_stages
        if is_resuming:
            results[name] = dict(spec.finished_stages[name])
            continue
        results[name] = stage(context)
        marker.touch()
        channel.send(StageDoneMessage(stage=name, data=results[name]))
    report = Report.model_validate_json(context.report_file.read_bytes())
    if report.gate is None and decide(report, spec.gate).rules:
        raise EvaluationFailed("the gate has not decided about the model, and nothing is released without")
    shipped = shipped_adapter(context)
    channel.send(
        JobResultMessage(
            trained_tokens=results[train.NAME]["trained_tokens"],
            adapter_archive=context.archive_file.name,
            adapter_sha256=results[package.NAME]["adapter_sha256"],
            report=context.report_file.name,
            step_metrics=str((context.training_dir / METRICS_FILE).relative_to(folder)),
            base_hash=report.provenance.base_hash,
            adapter_rank=rank_of(shipped),
            measured_checkpoint=measured_checkpoint(context, shipped),
            gate=report.gate,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
