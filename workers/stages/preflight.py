"""The first stage: what the upload would do to the base's refusals, and what the provider's policy makes of it.

Every job has it: a forward over some hundred rows before any gradient. Of preference pairs it looks at the wanted
answers, towards which the model is trained. It leaves the risk, the outcome and, where it
changed what is trained, the plan in the work folder, where later stages read them (see context.py).
"""

import time
from typing import Any

from app.contracts.plan import TrainingPlan
from app.contracts.progress import EventMessage, PhaseMessage, PlanMessage
from app.contracts.risk import DataRisk, RiskLevel
from app.contracts.states import JobPhase
from workers.finetuning.errors import DatasetRefused
from workers.modeling.loading import load
from workers.preflight.errors import UploadRefused
from workers.preflight.outcome import Decision, decide
from workers.preflight.run import Assessment, assess
from workers.stages.context import StageContext

NAME = "preflight"
LEAST_ROWS = 10
"""Fewer rows are no training file, here as in an upload."""
FORWARDS_A_STEP = 3
"""A training step costs about as much as so many forwards over its rows: one forward, and twice that backward."""


def run(context: StageContext) -> dict[str, Any]:
    """Looks at the upload and applies the policy.

    Raises:
        UploadRefused: The policy blocks the job; the message lists the flagged lines.
        DatasetRefused: Too few rows would be left, or a row cannot be trained on.
        ArtefactMissing: The base was prepared before there were reference uploads.
    """
    context.channel.send(PhaseMessage(phase=JobPhase.PREFLIGHT))
    started = time.monotonic()
    spec = context.spec
    found = _assess(context)
    decision = decide(
        found.risk,
        found.flagged_lines,
        spec.risk_policy,
        spec.plan,
        is_auto=spec.is_auto,
        drop_flagged_rows=spec.drop_flagged_rows,
    )
    _write(context, found.risk, decision)
    _tell(context, found.risk, decision, time.monotonic() - started)
    if decision.is_blocked:
        raise UploadRefused(decision.outcome.sentence)
    num_left = found.risk.num_rows - len(decision.outcome.dropped_lines)
    if decision.outcome.dropped_lines and num_left < LEAST_ROWS:
        raise DatasetRefused(
            f"Of {found.risk.num_rows} rows {num_left} are left without the flagged ones, and training needs "
            f"{LEAST_ROWS} at least. Upload a file with more rows that are not flagged (they are in the job's events)."
        )
    return {
        "seconds": round(time.monotonic() - started, 1),
        "level": found.risk.level,
        "score": round(found.risk.score, 4),
        "outcome": decision.outcome.model_dump(mode="json"),
        "plan": decision.plan.model_dump(mode="json"),
    }


def _assess(context: StageContext) -> Assessment:
    spec = context.spec
    context.channel.say("Looking at the training file before any training")
    return assess(
        load(context.artefacts.model_dir),
        context.artefacts,
        context.conversations(),
        base_name=spec.base_id,
        training_file_sha256=spec.training_file_sha256,
        on_progress=context.channel.progress("examined rows"),
    )


def _write(context: StageContext, risk: DataRisk, decision: Decision) -> None:
    context.risk_file.write_text(risk.model_dump_json(indent=2) + "\n")
    context.outcome_file.write_text(decision.outcome.model_dump_json(indent=2) + "\n")
    # An attempt that was cut short may have left one.
    context.plan_file.unlink(missing_ok=True)
    if decision.outcome.changed_plan:
        context.plan_file.write_text(decision.plan.model_dump_json(indent=2) + "\n")


def _tell(context: StageContext, risk: DataRisk, decision: Decision, seconds: float) -> None:
    share = share_of_training(risk, decision.plan)
    context.channel.send(
        EventMessage(
            level="info" if risk.level is RiskLevel.LOW else "warn",
            message=f"Data risk: {risk.level} (score {risk.score:.2f}). {' '.join(risk.reasons)}",
            data={
                "level": risk.level,
                "score": round(risk.score, 4),
                "num_flagged": risk.num_flagged,
                "flagged_lines": [line.line for line in risk.flagged],
            },
        )
    )
    context.channel.say(
        f"The look at the training file took {seconds:.1f} s, about {100 * share:.0f} % of the training's work"
    )
    if decision.outcome.action != "none" or decision.outcome.changed_plan:
        context.channel.send(EventMessage(level="warn", message=decision.outcome.sentence))
    if context.spec.is_auto or decision.outcome.changed_plan:
        context.channel.send(PlanMessage(plan=decision.plan))


def share_of_training(risk: DataRisk, plan: TrainingPlan) -> float:
    """Forwards over examined rows, as a share of the training's work on the user's rows."""
    return risk.num_examined / (FORWARDS_A_STEP * plan.num_epochs * risk.num_rows)
