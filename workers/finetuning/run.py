"""`finetune`: a base, rows and a plan in; an adapter folder and a summary out."""

import csv
import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from app.contracts.chat import ChatRow
from app.contracts.evaluation import TrainingSummary
from app.contracts.plan import TrainingPlan
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.backbone import Backbone
from workers.finetuning.errors import ArtefactMissing, DatasetRefused, ValidationRefused
from workers.finetuning.loop import LoopResult, RunControl, StepMetrics, TrainingLoop
from workers.finetuning.memory import SafetyMemory, load_memory
from workers.finetuning.method import MethodContext
from workers.finetuning.methods import build_method
from workers.finetuning.rows import Dataset, encode_dataset
from workers.modeling import adapters
from workers.modeling.chat import ChatCodec
from workers.modeling.heads import output_head
from workers.modeling.loading import LoadedModel
from workers.modeling.packing import row_limit

ADAPTER_DIR = "adapter"
CHECKPOINT_DIR = "checkpoints"
METRICS_FILE = "step_metrics.csv"


class FinetuneResult(NamedTuple):
    """What a run made."""

    adapter_dir: Path | None
    """PEFT adapter folder; None when the run was stopped before its end."""
    history: list[StepMetrics]
    summary: TrainingSummary | None
    """None when the run was stopped."""

    @property
    def is_complete(self) -> bool:
        return self.adapter_dir is not None


def finetune(
    base: LoadedModel,
    rows: Sequence[ChatRow],
    plan: TrainingPlan,
    *,
    out_dir: Path,
    base_name: str,
    base_hash: str,
    artefacts: Artefacts | None = None,
    validation_rows: Sequence[ChatRow] = (),
    control: RunControl | None = None,
) -> FinetuneResult:
    """Trains a LoRA adapter with the plan's method.

    The same base, rows and plan give the same adapter, bit for bit on CPU with a fixed number of threads. A run
    whose checkpoints lie in `out_dir` is continued, with the same result as one that was never interrupted.

    Args:
        base: Loaded base; an adapter is attached to it and stays attached.
        rows: The user's conversations.
        plan: What to do.
        out_dir: Receives `adapter/`, `checkpoints/` and `step_metrics.csv`.
        base_name: Written into the adapter's configuration.
        base_hash: Content hash of the base; ties checkpoints to it.
        artefacts: Prepared artefacts of the base; methods that need them refuse to run without.
        validation_rows: Scored at the end of each epoch.
        control: Watches and stops the run.

    Raises:
        DatasetRefused: A row cannot be trained on (ValidationRefused: or not be validated with).
        ArtefactMissing: The method needs something that was not prepared.
        TrainingDiverged: A loss or gradient is not a number.
        CheckpointDamaged: The checkpoints in `out_dir` cannot be continued from.
    """
    max_tokens = row_limit(base.model, plan.max_row_tokens)
    dataset = encode_dataset(base.codec, rows, max_tokens=max_tokens)
    validation = _encode_validation(base.codec, validation_rows, max_tokens) if validation_rows else None
    backbone = _with_fresh_adapter(base, plan)
    method = build_method(plan.method)
    loop = TrainingLoop(
        backbone=backbone,
        method=method,
        plan=plan,
        rows=dataset.rows,
        validation_rows=validation.rows if validation else (),
        checkpoint_dir=out_dir / CHECKPOINT_DIR,
        run_key=_run_key(base_hash, dataset, plan, artefacts),
        control=control or RunControl(),
    )
    memory = partial(_memory, artefacts, base, plan)
    method.prepare(MethodContext(backbone, dataset.rows, plan, artefacts, memory, loop.num_steps))
    result = loop.run()
    write_metrics(out_dir / METRICS_FILE, result.history)
    if not result.is_complete:
        return FinetuneResult(None, result.history, None)
    adapters.save(backbone.peft_model, out_dir / ADAPTER_DIR, base_name=base_name)
    return FinetuneResult(out_dir / ADAPTER_DIR, result.history, _summary(result, loop, dataset, max_tokens))


def write_metrics(path: Path, history: Sequence[StepMetrics]) -> None:
    """The `result_files` CSV with OpenAI's columns; empty cells where there was no validation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"])
        for m in history:
            valid = ("", "") if m.valid_loss is None else (f"{m.valid_loss:.6f}", f"{m.valid_token_accuracy:.6f}")
            writer.writerow([m.step, f"{m.loss:.6f}", f"{m.token_accuracy:.6f}", *valid])


def _with_fresh_adapter(base: LoadedModel, plan: TrainingPlan) -> Backbone:
    peft_model = adapters.attach(base.model, plan.lora, seed=plan.seed)
    parameters = adapters.trainable_parameters(peft_model)
    return Backbone(base, peft_model, output_head(base.model), parameters, tokens=plan.micro_batch_tokens)


def _memory(artefacts: Artefacts | None, base: LoadedModel, plan: TrainingPlan) -> SafetyMemory:
    if artefacts is None:
        raise ArtefactMissing(
            f"The method «{plan.method.name}» needs a prepared base: run `unforgotten models prepare` first."
        )
    return load_memory(artefacts.memory_file, artefacts.teacher_file, base.model)


def _encode_validation(codec: ChatCodec, rows: Sequence[ChatRow], max_tokens: int) -> Dataset:
    try:
        return encode_dataset(codec, rows, max_tokens=max_tokens)
    except DatasetRefused as error:
        raise ValidationRefused(f"Validation file, {str(error)[:1].lower()}{str(error)[1:]}") from error


def _summary(result: LoopResult, loop: TrainingLoop, dataset: Dataset, max_tokens: int) -> TrainingSummary:
    history, plan = result.history, loop.plan
    users_steps = [m for m in history if m.trained_tokens]
    notes = loop.method.notes()
    if dataset.num_cut:
        notes.append(f"{dataset.num_cut} rows were cut at {max_tokens} tokens.")
    return TrainingSummary(
        method=plan.method,
        num_rows=len(dataset.rows),
        num_steps=loop.num_steps,
        num_epochs=plan.num_epochs,
        trained_tokens=sum(m.trained_tokens for m in history),
        processed_tokens=sum(m.processed_tokens for m in history),
        replayed_tokens=sum(m.replayed_tokens for m in history),
        first_loss=users_steps[0].loss,
        last_loss=users_steps[-1].loss,
        seconds=result.seconds,
        counters=history[-1].counters,
        notes=notes,
    )


def _run_key(base_hash: str, dataset: Dataset, plan: TrainingPlan, artefacts: Artefacts | None) -> str:
    digest = hashlib.sha256(base_hash.encode())
    if artefacts is not None:
        # The same weights can be prepared again with another safety memory.
        digest.update(artefacts.memory_file.read_bytes())
    digest.update(plan.model_dump_json().encode())
    digest.update(json.dumps([(row.ids, row.positions) for row in dataset.rows]).encode())
    return digest.hexdigest()
