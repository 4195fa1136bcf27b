"""Stage 3: base against tuned, on the same prompts and rows; writes the report."""

import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from app.contracts.chat import ChatRow, PreferenceRow
from app.contracts.evaluation import Cost, Provenance, Report, TrainingSummary
from app.contracts.progress import PhaseMessage
from app.contracts.report_table import main_table
from app.contracts.states import JobPhase
from workers.evaluation.curves import read_curves
from workers.evaluation.report import build_report
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.run import ADAPTER_DIR, METRICS_FILE
from workers.stages.context import MAX_UTILITY_ROWS, StageContext
from workers.stages.measuring import Measured, Subject, measure_folder

NAME = "evaluate"
_PACKAGES = ("torch", "transformers", "peft", "safetensors", "unforgotten")


def run(context: StageContext) -> dict[str, Any]:
    """Measures and writes report.json."""
    context.channel.send(PhaseMessage(phase=JobPhase.EVALUATING))
    report = measure_adapter(context, context.training_dir / ADAPTER_DIR)
    context.report_file.write_text(report.model_dump_json(indent=2) + "\n")
    for row in main_table(report):
        context.channel.say(f"{row.measure}: base {row.base}, tuned {row.tuned}; change {row.change}")
    if report.cost is not None and report.cost.share_of_training is not None:
        context.channel.say(
            f"Evaluation took {report.evaluation_seconds:.0f} s: {100 * report.cost.share_of_training:.0f} % of the "
            "training's time"
        )
    return {"seconds": round(report.evaluation_seconds, 1)}


def measure_adapter(context: StageContext, adapter_dir: Path, *, quiet: bool = False) -> Report:
    """The report of one adapter of the job's: the trained one, or one that repair made of it. No gate has seen it.

    Args:
        context: The job.
        adapter_dir: Folder of the adapter.
        quiet: Leaves out the sentences on the way.

    Raises:
        EvaluationFailed: A benchmark of the project's own gave no result.
    """
    plan = context.plan
    rows, source = _utility_rows(context)
    subject = Subject(
        artefacts=context.artefacts,
        plan=context.spec.evaluation,
        max_row_tokens=plan.max_row_tokens,
        precision=plan.precision,
        utility_rows=rows,
        utility_source=source,
        channel=context.channel,
        is_quiet=quiet,
    )
    measured = measure_folder(subject, adapter_dir)
    training = TrainingSummary.model_validate_json(context.summary_file.read_text())
    return build_report(
        job_id=context.spec.job_id,
        model=context.spec.model_name,
        created_at=int(time.time()),
        benchmarks=measured.benchmarks,
        not_run=measured.not_run,
        task_benchmarks=measured.tasks,
        utility=measured.utility,
        training=training,
        provenance=_provenance(context, measured, plan.seed),
        evaluation_seconds=measured.seconds,
        decoding=measured.decoding,
        cost=cost_of(measured, training.seconds),
        curves=read_curves(context.training_dir / METRICS_FILE),
        data_risk=context.risk,
        risk_outcome=context.outcome,
    )


def _provenance(context: StageContext, measured: Measured, seed: int) -> Provenance:
    spec = context.spec
    found = provenance(
        spec.base_id, context.artefacts, measured, training_file_sha256=spec.training_file_sha256, seed=seed
    )
    if spec.start is None:
        return found
    return found.model_copy(update={"continued_from": spec.start.model, "start_adapter_sha256": spec.start.sha256})


def cost_of(measured: Measured, training_seconds: float | None) -> Cost:
    """Where the time went."""
    return Cost(
        training_seconds=training_seconds,
        evaluation_seconds=measured.seconds,
        base_seconds=measured.base_seconds,
        parts=measured.parts,
    )


def provenance(
    base_id: str, artefacts: Artefacts, measured: Measured, *, training_file_sha256: str | None, seed: int | None
) -> Provenance:
    """Which things, exactly."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    return Provenance(
        base=base_id,
        base_hash=artefacts.record["theta_safe_hash"],
        prepared_hash=artefacts.directory.name,
        training_file_sha256=training_file_sha256,
        chat_template_sha256=measured.template_sha256,
        seed=seed,
        versions={"python": platform.python_version(), "device": device, **{p: version(p) for p in _PACKAGES}},
    )


def _utility_rows(context: StageContext) -> tuple[list[ChatRow], str]:
    """What the task is measured on: answers, as the model should give them. Of preference pairs the wanted ones."""
    answers = ", the preferred answers" if context.has_pairs else ""
    validation = _conversations(context.validation_rows())
    if validation:
        return validation, f"validation file, first {len(validation)} rows{answers}"
    rows = _conversations(context.training_rows()[:MAX_UTILITY_ROWS])
    source = f"first {len(rows)} rows of the training file{answers}, which the model has seen"
    return rows, f"no validation file was given: {source}"


def _conversations(rows: Sequence[ChatRow] | Sequence[PreferenceRow]) -> list[ChatRow]:
    return [row.preferred_row if isinstance(row, PreferenceRow) else row for row in rows]
