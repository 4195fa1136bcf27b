"""Stage 1: train the adapter with the job's method."""

import time
from collections.abc import Sequence
from typing import Any

from app.contracts.chat import ChatRow, PreferenceRow
from app.contracts.modifiers import with_modifiers
from app.contracts.progress import CheckpointMessage, EventMessage, MetricsMessage, PhaseMessage
from app.contracts.states import JobPhase
from workers.channel import StopAsked
from workers.finetuning.backbone import Backbone
from workers.finetuning.distributed import Ranks
from workers.finetuning.loop import RunControl, StepMetrics
from workers.finetuning.rows import steps_per_epoch
from workers.finetuning.run import FinetuneResult, finetune
from workers.modeling.loading import load
from workers.stages.checkpoints import pack_checkpoint
from workers.stages.context import StageContext
from workers.stages.processes import training_processes
from workers.stages.start import adopt_start, start_dir

NAME = "train"
METRICS_SECONDS = 2.0
"""Metrics are sent no more often than this, but for the first and the last step, and where there is a validation."""


class _Reporter(RunControl):
    def __init__(self, context: StageContext, num_steps: int) -> None:
        self._context = context
        self._channel = context.channel
        self._num_steps = num_steps
        self._sent_at = 0.0
        self._on_rows_read = context.channel.progress("reading the rows before training")

    def on_rows_read(self, done: int, total: int) -> None:
        self._on_rows_read(done, total)

    def on_damaged(self, checkpoints: Sequence[str], next_step: int) -> None:
        goes_on = f"goes on from step {next_step}" if next_step else "begins anew"
        self._channel.send(
            EventMessage(
                level="warn",
                message=f"Damaged on the disk, and passed over: {', '.join(checkpoints)}. Training {goes_on}; "
                "the adapter will be the same",
            )
        )

    def on_step(self, metrics: StepMetrics) -> None:
        now = time.monotonic()
        is_told = metrics.step in (1, self._num_steps) or metrics.valid_loss is not None
        if not is_told and now - self._sent_at < METRICS_SECONDS:
            return
        self._sent_at = now
        extra = {"learning_rate": metrics.learning_rate, "gradient_norm": metrics.gradient_norm, **metrics.counters}
        self._channel.send(
            MetricsMessage(
                step=metrics.step,
                total_steps=self._num_steps,
                train_loss=metrics.loss,
                train_mean_token_accuracy=metrics.token_accuracy,
                full_valid_loss=metrics.valid_loss,
                full_valid_mean_token_accuracy=metrics.valid_token_accuracy,
                extra=extra,
            )
        )

    def on_epoch(self, metrics: StepMetrics, backbone: Backbone) -> None:
        numbers = {
            "step": float(metrics.step),
            "train_loss": metrics.loss,
            "train_mean_token_accuracy": metrics.token_accuracy,
        }
        if metrics.valid_loss is not None and metrics.valid_token_accuracy is not None:
            numbers |= {
                "full_valid_loss": metrics.valid_loss,
                "full_valid_mean_token_accuracy": metrics.valid_token_accuracy,
            }
        packed = pack_checkpoint(self._context, backbone, metrics.step)
        archive = str(packed.path.relative_to(self._context.folder))
        self._channel.send(CheckpointMessage(step=metrics.step, metrics=numbers, archive=archive, sha256=packed.sha256))

    def should_stop(self) -> bool:
        return self._channel.should_stop()


def run(context: StageContext) -> dict[str, Any]:
    """Trains, or goes on from the last checkpoint.

    Raises:
        StopAsked: It was asked to stop; a checkpoint of what was trained is there.
        ArtefactMissing: The adapter to go on from was made for other weights.
    """
    context.channel.send(PhaseMessage(phase=JobPhase.TRAINING))
    plan = context.plan
    rows = context.training_rows()
    num_steps = plan.num_epochs * steps_per_epoch(len(rows), plan.batch_size)
    context.channel.say(
        f"Training {num_steps} steps on {len(rows)} {plan.objective.rows_are} with "
        f"{with_modifiers(f'method «{plan.method.name}»', plan.ema, plan.merge)} "
        f"(LoRA rank {plan.lora.rank}, learning rate {plan.learning_rate:g}, batch size {plan.batch_size})"
    )
    validation_rows = context.validation_rows()
    if validation_rows:
        context.channel.say(
            f"Validating after each epoch on the first {len(validation_rows)} rows of the validation file"
        )
    adopt_start(context)
    with training_processes(context) as ranks:
        result = trained(context, rows, validation_rows, ranks, control=_Reporter(context, num_steps))
    if result.summary is None:
        raise StopAsked
    for note in result.summary.notes:
        context.channel.send(EventMessage(level="warn", message=note))
    context.summary_file.write_text(result.summary.model_dump_json(indent=2))
    return {"trained_tokens": result.summary.trained_tokens, "seconds": round(result.summary.seconds, 1)}


def trained(
    context: StageContext,
    rows: Sequence[ChatRow] | Sequence[PreferenceRow],
    validation_rows: Sequence[ChatRow] | Sequence[PreferenceRow],
    ranks: Ranks,
    control: RunControl | None = None,
) -> FinetuneResult:
    """What each of the job's processes does."""
    spec, plan = context.spec, context.plan
    return finetune(
        load(context.artefacts.model_dir, precision=plan.precision, quantisation=plan.quantisation),
        rows,
        plan,
        out_dir=context.training_dir,
        base_name=spec.base_id,
        base_hash=context.artefacts.record["theta_safe_hash"],
        artefacts=context.artefacts,
        validation_rows=validation_rows,
        control=control,
        ranks=ranks,
        start_from=start_dir(context),
        micro_batch_divisor=spec.micro_batch_divisor,
    )
