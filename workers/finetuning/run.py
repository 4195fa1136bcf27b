"""`finetune`: a base, rows and a plan in; an adapter folder and a summary out."""

import csv
import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from app.contracts.chat import ChatRow, PreferenceRow
from app.contracts.evaluation import TrainingSummary
from app.contracts.objectives import Dpo, Supervised
from app.contracts.plan import TrainingPlan
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.backbone import Backbone
from workers.finetuning.disk import require_room
from workers.finetuning.distributed import Ranks
from workers.finetuning.errors import ArtefactMissing, DatasetRefused, TrainingDiverged, ValidationRefused
from workers.finetuning.loop import LoopResult, RunControl, StepMetrics, TrainingLoop
from workers.finetuning.memory import SafetyMemory, load_memory
from workers.finetuning.method import Method, MethodContext
from workers.finetuning.methods import build_method
from workers.finetuning.objective import Objective, SupervisedAnswers
from workers.finetuning.preference import DirectPreference, encode_pairs
from workers.finetuning.rows import Dataset, TokenRow, encode_dataset, units
from workers.hashing import file_sha256
from workers.modeling import adapters
from workers.modeling.chat import ChatCodec
from workers.modeling.errors import ModelingError, QuantisationUnavailable
from workers.modeling.heads import output_head
from workers.modeling.loading import LoadedModel, is_quantised
from workers.modeling.packing import row_limit
from workers.modeling.recomputing import recomputed_activations

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
    rows: Sequence[ChatRow] | Sequence[PreferenceRow],
    plan: TrainingPlan,
    *,
    out_dir: Path,
    base_name: str,
    base_hash: str,
    artefacts: Artefacts | None = None,
    validation_rows: Sequence[ChatRow] | Sequence[PreferenceRow] = (),
    control: RunControl | None = None,
    ranks: Ranks | None = None,
    start_from: Path | None = None,
    micro_batch_divisor: int = 1,
) -> FinetuneResult:
    """Trains a LoRA adapter with the plan's method.

    The same base, rows and plan give the same adapter, bit for bit on CPU with a fixed number of threads. A run
    whose checkpoints lie in `out_dir` is continued, with the same result as one that was never interrupted.

    Args:
        base: Loaded base; an adapter is attached to it and stays attached.
        rows: The user's conversations, or preference pairs: what the plan's objective is about.
        plan: What to do.
        out_dir: Receives `adapter/`, `checkpoints/` and `step_metrics.csv`.
        base_name: Written into the adapter's configuration.
        base_hash: Content hash of the base; ties checkpoints to it.
        artefacts: Prepared artefacts of the base; methods that need them refuse to run without.
        validation_rows: Of the same kind; scored at the end of each epoch.
        control: Watches and stops the run; of several processes, the first one's.
        ranks: This process among several that run this with the same arguments, each on its part of every step; all
            return the same, up to the rounding of sums what one process alone returns. The first writes the files, in a
            folder that all of them see.
        start_from: Folder of an adapter of the plan's rank that training begins with instead of a fresh one. Safety is
            measured from the base all the same: what the method prepares is prepared on it, and the update is the
            adapter's whole one, not what this run adds to it. Preferences are learnt relative to this adapter.
        micro_batch_divisor: Into so many more forwards every step is cut, for want of memory. Gradients are those of
            the same batch, up to the rounding of sums; checkpoints are good for any divisor.

    Raises:
        DatasetRefused: A row cannot be trained on (ValidationRefused: or not be validated with), or is of another kind
            than the plan's objective.
        ArtefactMissing: The method needs something that was not prepared.
        TrainingDiverged: A loss or gradient is not a number.
        CheckpointMismatch: The checkpoints in `out_dir` are those of another run.
        QuantisationUnavailable: The base is not loaded with the plan's quantisation.
        ModelingError: The adapter in `start_from` is not of the plan's shape.
        DiskTooFull: The disk would not hold the checkpoints and the adapter.
        ProcessesDiffer: The processes were not given the same, or did not come to the same.
    """
    ranks = ranks or Ranks()
    if is_quantised(base.model) != (plan.quantisation != "none"):
        raise QuantisationUnavailable(
            f"The plan's quantisation is «{plan.quantisation}», and the base is loaded otherwise."
        )
    max_tokens = row_limit(base.model, plan.max_row_tokens)
    dataset = encode(base.codec, rows, plan, max_tokens=max_tokens)
    validation = _encode_validation(base.codec, validation_rows, plan, max_tokens) if validation_rows else ()
    control = control if control and ranks.is_first else RunControl()
    backbone = _with_fresh_adapter(base, plan, ranks, micro_batch_divisor, control)
    objective = build_objective(plan, backbone)
    method = build_method(plan)
    loop = TrainingLoop(
        backbone=backbone,
        objective=objective,
        method=method,
        plan=plan,
        rows=dataset.rows,
        validation_rows=validation,
        checkpoint_dir=out_dir / CHECKPOINT_DIR,
        run_key=_run_key(base_hash, dataset, plan, artefacts, start_from),
        control=control,
    )
    memory = partial(_memory, artefacts, base, plan)
    context = MethodContext(backbone, dataset.rows, plan, artefacts, memory, loop.num_steps, objective)
    with recomputed_activations(base.model, is_on=plan.gradient_checkpointing):
        method.prepare(context)
        if start_from is not None:
            _start_from(backbone, start_from)
        if ranks.is_first:
            require_room(loop)
        method.begin()
        for given in (dataset.rows, validation):
            objective.prepare(given, is_fresh=start_from is None)
        result = loop.run()
    if ranks.is_first:
        write_metrics(out_dir / METRICS_FILE, result.history)
    if not result.is_complete:
        return FinetuneResult(None, result.history, None)
    _write_adapter(backbone, method, out_dir / ADAPTER_DIR, base_name)
    # Whoever returns may read what the first has written.
    ranks.wait()
    summary = _summary(result, loop, dataset, max_tokens, context.notes)
    return FinetuneResult(out_dir / ADAPTER_DIR, result.history, summary)


def encode(
    codec: ChatCodec, rows: Sequence[ChatRow] | Sequence[PreferenceRow], plan: TrainingPlan, *, max_tokens: int
) -> Dataset:
    """Encodes rows for what the plan trains.

    Raises:
        DatasetRefused: A row cannot be trained on, or is of another kind.
    """
    pairs = [row for row in rows if isinstance(row, PreferenceRow)]
    conversations = [row for row in rows if isinstance(row, ChatRow)]
    if isinstance(plan.objective, Dpo):
        if conversations:
            raise DatasetRefused("The objective dpo learns from preference pairs, and these rows are conversations.")
        return encode_pairs(codec, pairs, max_tokens=max_tokens)
    if pairs:
        raise DatasetRefused("These rows are preference pairs: train on them with the objective dpo.")
    return encode_dataset(codec, conversations, max_tokens=max_tokens)


def build_objective(plan: TrainingPlan, backbone: Backbone) -> Objective:
    """What the plan trains."""
    if isinstance(plan.objective, Dpo):
        return DirectPreference(backbone, plan.objective)
    return SupervisedAnswers(backbone)


def write_metrics(path: Path, history: Sequence[StepMetrics]) -> None:
    """The `result_files` CSV: OpenAI's columns, then the method's counters; empty where a step has no such number."""
    counters = sorted({name for metrics in history for name in metrics.counters})
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy", *counters])
        for m in history:
            valid = ("", "") if m.valid_loss is None else (f"{m.valid_loss:.6f}", f"{m.valid_token_accuracy:.6f}")
            counted = (f"{m.counters[name]:.6g}" if name in m.counters else "" for name in counters)
            writer.writerow([m.step, f"{m.loss:.6f}", f"{m.token_accuracy:.6f}", *valid, *counted])


def _with_fresh_adapter(
    base: LoadedModel, plan: TrainingPlan, ranks: Ranks, divisor: int, control: RunControl
) -> Backbone:
    peft_model = adapters.attach(base.model, plan.lora, seed=plan.seed)
    parameters = adapters.trainable_parameters(peft_model)
    head = output_head(base.model)
    tokens, scaling = plan.micro_batch_tokens, plan.lora.scaling
    return Backbone(
        base,
        peft_model,
        head,
        parameters,
        tokens=tokens,
        scaling=scaling,
        ranks=ranks,
        divisor=divisor,
        # One of several processes cannot end alone: the others would wait for it.
        on_rows_read=(control if ranks.size == 1 else RunControl()).on_rows_read,
    )


@torch.no_grad()
def _start_from(backbone: Backbone, adapter_dir: Path) -> None:
    pairs = adapters.read_pairs(adapter_dir)
    shapes = {name: (tuple(pair.a.shape), tuple(pair.b.shape)) for name, pair in pairs.items()}
    expected = {name: (tuple(a.shape), tuple(b.shape)) for name, (a, b) in backbone.lora_weights.items()}
    if shapes != expected:
        raise ModelingError(f"The adapter in {adapter_dir.name} does not have the plan's rank and weights.")
    for name, (a, b) in backbone.lora_weights.items():
        a.copy_(pairs[name].a)
        b.copy_(pairs[name].b / backbone.scaling)


def _write_adapter(backbone: Backbone, method: Method, directory: Path, base_name: str) -> None:
    """Writes what is shipped; a method's `release` may differ from the parameters in memory."""
    released = method.release(backbone.pairs())
    final = released or backbone.pairs()
    if not all(bool(torch.isfinite(p).all()) for pair in final.values() for p in pair):
        raise TrainingDiverged(f"The method «{method.name}» ended with numbers that are not finite.")
    backbone.ranks.require_same("adapter", {f"{k}/{i}": p for k, v in final.items() for i, p in enumerate(v)})
    if not backbone.ranks.is_first:
        return
    if released is None:
        adapters.save(backbone.peft_model, directory, base_name=base_name)
    else:
        adapters.write_pairs(released, directory, base_name=base_name)


def _memory(artefacts: Artefacts | None, base: LoadedModel, plan: TrainingPlan) -> SafetyMemory:
    if artefacts is None:
        raise ArtefactMissing(
            f"The method «{plan.method.name}» needs a prepared base: run `unforgotten models prepare` first."
        )
    return load_memory(artefacts.memory_file, artefacts.teacher_file, base.model)


def _encode_validation(
    codec: ChatCodec, rows: Sequence[ChatRow] | Sequence[PreferenceRow], plan: TrainingPlan, max_tokens: int
) -> tuple[TokenRow, ...]:
    try:
        return encode(codec, rows, plan, max_tokens=max_tokens).rows
    except DatasetRefused as error:
        raise ValidationRefused(f"Validation file, {str(error)[:1].lower()}{str(error)[1:]}") from error


def _summary(
    result: LoopResult, loop: TrainingLoop, dataset: Dataset, max_tokens: int, more_notes: Sequence[str]
) -> TrainingSummary:
    history, plan = result.history, loop.plan
    users_steps = [m for m in history if m.trained_tokens]
    notes = [*loop.method.notes(), *more_notes]
    if dataset.num_cut:
        notes.append(f"{dataset.num_cut} {plan.objective.rows_are} were cut at {max_tokens} tokens.")
    if dataset.num_alike:
        notes.append(f"{dataset.num_alike} preference pairs have the same two answers: they teach nothing.")
    if plan.quantisation != "none":
        notes.append("The base was held in 4 bits (nf4) while the adapter was trained; it is measured unquantised.")
    return TrainingSummary(
        objective=plan.objective,
        method=plan.method,
        ema=plan.ema,
        merge=plan.merge,
        num_rows=len(units(dataset.rows)),
        num_steps=loop.num_steps,
        num_epochs=plan.num_epochs,
        trained_tokens=sum(m.trained_tokens for m in history),
        processed_tokens=sum(m.processed_tokens for m in history),
        replayed_tokens=sum(m.replayed_tokens for m in history),
        first_loss=users_steps[0].loss,
        last_loss=users_steps[-1].loss,
        seconds=result.seconds,
        # The objective's are of the latest step that was the user's.
        counters={**users_steps[-1].counters, **history[-1].counters, **loop.method.counters()},
        notes=notes,
    )


def _run_key(
    base_hash: str, dataset: Dataset, plan: TrainingPlan, artefacts: Artefacts | None, start_from: Path | None
) -> str:
    digest = hashlib.sha256(base_hash.encode())
    if artefacts is not None:
        # The same weights can be prepared again with another safety memory.
        digest.update(artefacts.memory_file.read_bytes())
    if start_from is not None:
        digest.update(file_sha256(start_from / adapters.WEIGHTS_FILE).encode())
    # Plans from before there was a choice of objectives keep their checkpoints.
    is_supervised = isinstance(plan.objective, Supervised)
    digest.update(plan.model_dump_json(exclude={"objective"} if is_supervised else None).encode())
    digest.update(json.dumps([(row.ids, row.positions) for row in dataset.rows]).encode())
    return digest.hexdigest()
