"""The training loop: the only one, for every method.

A step takes the user's rows and whatever the method adds, cuts them into forwards of a bounded number of tokens,
and divides every sum by the step's totals, so the result does not depend on how the rows were cut.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from app.contracts.plan import TrainingPlan
from workers.finetuning.backbone import Backbone
from workers.finetuning.checkpoints import (
    TrainingState,
    load_latest,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from workers.finetuning.errors import CheckpointMismatch, TrainingDiverged
from workers.finetuning.method import Method
from workers.finetuning.objective import CORRECT, LOSS, Objective, SupervisedAnswers
from workers.finetuning.rows import (
    StepTotals,
    TokenRow,
    batch_indices,
    dropout_seed,
    steps_per_epoch,
    totals,
    units,
)
from workers.modeling.packing import packed_attention

FINAL_LEARNING_RATE = 0.1
"""The cosine ends at this share of the peak."""


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """What one optimizer step did."""

    step: int
    """Counted from 1."""
    loss: float
    """The objective's mean over the user's trained tokens (cross-entropy, in nats) or preference pairs; the mean
    cross-entropy over the memory's tokens where it had its turn."""
    token_accuracy: float
    """Share of trained tokens that the model finds the most likely ones; of preference pairs, share of those where the
    wanted answer has the higher implicit reward (in the first step both have none, up to rounding)."""
    gradient_norm: float
    """Before clipping."""
    learning_rate: float
    trained_tokens: int
    """The user's; 0 where the memory had its turn."""
    processed_tokens: int
    replayed_tokens: int
    counters: dict[str, float]
    valid_loss: float | None = None
    valid_token_accuracy: float | None = None


class RunControl:
    """How the outside watches and stops a run; every hook does nothing by default."""

    def on_rows_read(self, done: int, total: int) -> None:
        """While rows of the upload, or of its validation, go through the model before the first step (where one
        process trains). There is nothing new to keep yet: what it raises ends the run."""

    def on_damaged(self, checkpoints: Sequence[str], next_step: int) -> None:
        """Before the first step, when these checkpoints, the newest ones, are not what was written: the run goes on
        after `next_step` steps, as an earlier one has them, or begins anew with 0, and its result is the same."""

    def on_step(self, metrics: StepMetrics) -> None:
        """After each optimizer step."""

    def on_epoch(self, metrics: StepMetrics, backbone: Backbone) -> None:
        """After each epoch, with validation results in the metrics; the adapter stands where the epoch has left it."""

    def should_stop(self) -> bool:
        """Asked after each step; True: save a checkpoint and return."""
        return False


class LoopResult:
    """Where the loop ended."""

    def __init__(self, history: list[StepMetrics], seconds: float, *, is_complete: bool) -> None:
        self.history = history
        self.seconds = seconds
        self.is_complete = is_complete


@dataclass(kw_only=True)
class TrainingLoop:
    """One run over one data set."""

    backbone: Backbone
    objective: Objective
    method: Method
    plan: TrainingPlan
    rows: Sequence[TokenRow]
    """The user's; rows of a pair are drawn together."""
    validation_rows: Sequence[TokenRow]
    checkpoint_dir: Path
    run_key: str
    """Identifies base, data and plan: a checkpoint of another run is refused."""
    control: RunControl

    def __post_init__(self) -> None:
        self._units = units(self.rows)
        self._memorys_turn = SupervisedAnswers(self.backbone)
        self.steps_per_epoch = steps_per_epoch(len(self._units), self.plan.batch_size)
        self.num_steps = self.steps_per_epoch * self.plan.num_epochs
        self.parameters = self.backbone.parameters
        self.optimizer = torch.optim.AdamW(
            list(self.parameters.values()), lr=self.plan.learning_rate, weight_decay=self.plan.weight_decay
        )
        self._history: list[StepMetrics] = []
        self._seconds_before = 0.0
        self._started = time.monotonic()

    def run(self) -> LoopResult:
        """Trains from the newest checkpoint (or the start) to the end, or until asked to stop."""
        self._started = time.monotonic()
        ranks = self.backbone.ranks
        first = self._restore()
        # All have read the same before the first of them writes.
        ranks.require_same("data, plan and checkpoint", self.parameters, key=f"{self.run_key} {first}")
        longest = max(len(row.ids) for row in (*self.rows, *self.validation_rows))
        with packed_attention(self.backbone.model, max(longest, self.method.longest_row_tokens)), self._train_mode():
            for step in range(first, self.num_steps):
                torch.manual_seed(dropout_seed(step, self.plan.seed))
                metrics = self.step(step, self.rows_of(step))
                is_epoch_end = (step + 1) % self.steps_per_epoch == 0
                if is_epoch_end and self.validation_rows:
                    metrics = self._with_validation(metrics)
                self._history.append(metrics)
                self.control.on_step(metrics)
                is_last = step + 1 == self.num_steps
                is_stopping = not is_last and ranks.says_first(self.control.should_stop())
                if is_stopping or is_last or (step + 1) % self.plan.checkpoint_every_steps == 0:
                    self._save(step + 1)
                if is_epoch_end:
                    self.control.on_epoch(metrics, self.backbone)
                if is_stopping:
                    return LoopResult(self._history, self._seconds(), is_complete=False)
        self.method.finish()
        return LoopResult(self._history, self._seconds(), is_complete=True)

    def step(self, step: int, rows: Sequence[TokenRow]) -> StepMetrics:
        """One optimizer step (counted from 0) on the given rows; the model must be in `packed_attention`.

        Rows of the memory alone are its turn: they are trained on by their cross-entropy, whatever the user's are by.
        """
        is_memory_turn = all(row.memory_index is not None for row in rows)
        if is_memory_turn:
            rows = [replace(row, memory_index=None) for row in rows]
        objective = self._memorys_turn if is_memory_turn else self.objective
        step_totals = totals(rows)
        self.method.before_gradients(step, rows)
        self.optimizer.zero_grad(set_to_none=True)
        means = self._accumulate(rows, step_totals, objective)
        penalty = self.method.parameter_penalty(step)
        if penalty is not None:
            penalty.backward()  # type: ignore[no-untyped-call]
        self.method.adjust_gradients(step, {n: p.grad for n, p in self.parameters.items() if p.grad is not None})
        norm = float(nn.utils.clip_grad_norm_(list(self.parameters.values()), self.plan.max_gradient_norm))
        if not (math.isfinite(means[LOSS]) and math.isfinite(norm)):
            raise TrainingDiverged(
                f"Step {step + 1}: the loss is {means[LOSS]} and the gradient norm {norm}. Lower the learning rate."
            )
        rate = self._learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.method.after_step(step)
        return StepMetrics(
            step=step + 1,
            loss=means[LOSS],
            token_accuracy=means[CORRECT],
            gradient_norm=norm,
            learning_rate=rate,
            trained_tokens=0 if is_memory_turn else step_totals.user_tokens,
            processed_tokens=sum(len(r.ids) for r in rows),
            replayed_tokens=step_totals.user_tokens if is_memory_turn else step_totals.replay_tokens,
            counters={**{name: means[name] for name in objective.counters}, **self.method.counters()},
        )

    def rows_of(self, step: int) -> list[TokenRow]:
        """The rows of a step: the user's and the method's."""
        memory = self.method.memory_batch(step)
        if memory is not None:
            return list(memory)
        picked = batch_indices(len(self._units), self.plan.batch_size, step, self.plan.seed)
        return [*(row for i in picked for row in self._units[i]), *self.method.replay_rows(step)]

    def _accumulate(self, rows: Sequence[TokenRow], step_totals: StepTotals, objective: Objective) -> dict[str, float]:
        """Gradients of the step's rows into `.grad`; returns the objective's measures, as means over the step."""
        ranks = self.backbone.ranks
        sums = dict.fromkeys(objective.measures, 0.0)
        with ranks.own_dropout(self.backbone.device):
            for micro in self.backbone.cuts(rows):
                _add(sums, self._backward(micro, step_totals, objective))
        if ranks.size > 1:
            for parameter in self.parameters.values():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            ranks.add_up([p.grad for p in self.parameters.values() if p.grad is not None])
        return self._means(sums, objective.count(step_totals))

    def _backward(self, micro: Sequence[TokenRow], step_totals: StepTotals, objective: Objective) -> dict[str, float]:
        """Backward through one forward; returns its part of the objective's sums."""
        forward = self.backbone.forward(micro)
        user, replay = forward.users(), forward.replayed()
        loss = torch.zeros((), device=self.backbone.device)
        sums: dict[str, float] = {}
        if user is not None:
            task = objective.share(user, step_totals)
            loss = loss + self.method.user_loss(user, task, step_totals)
            sums = task.sums
        if replay is not None:
            loss = loss + self.method.replay_loss(replay, step_totals)
        loss.backward()  # type: ignore[no-untyped-call]
        return sums

    @torch.no_grad()
    def _with_validation(self, metrics: StepMetrics) -> StepMetrics:
        sums, of_all = dict.fromkeys(self.objective.measures, 0.0), totals(self.validation_rows)
        self.backbone.model.eval()
        for micro in self.backbone.cuts(self.validation_rows):
            _add(sums, self.objective.share(self.backbone.forward(micro).part(range(len(micro))), of_all).sums)
        self.backbone.model.train()
        means = self._means(sums, self.objective.count(of_all))
        values = {"valid_loss": means[LOSS], "valid_token_accuracy": means[CORRECT]}
        return StepMetrics(**(asdict(metrics) | values))

    def _means(self, sums: dict[str, float], count: int) -> dict[str, float]:
        """Over all processes."""
        return {name: self.backbone.total(value) / count for name, value in sums.items()}

    def _learning_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine from the peak to `FINAL_LEARNING_RATE` of it."""
        warmup = max(1, round(self.plan.warmup_ratio * self.num_steps))
        if step < warmup:
            return self.plan.learning_rate * (step + 1) / warmup
        progress = (step - warmup) / max(1, self.num_steps - warmup)
        cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.plan.learning_rate * (FINAL_LEARNING_RATE + (1.0 - FINAL_LEARNING_RATE) * cosine)

    @contextmanager
    def _train_mode(self) -> Iterator[None]:
        """Dropout on, and drawn from a random state of the run's own."""
        device = self.backbone.device
        self.backbone.model.train()
        try:
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                yield
        finally:
            self.backbone.model.eval()

    def _seconds(self) -> float:
        """Spent on this run so far, in earlier attempts too."""
        return self._seconds_before + time.monotonic() - self._started

    def _restore(self) -> int:
        state, damaged = load_latest(self.checkpoint_dir)
        if damaged:
            self.control.on_damaged(damaged, state.next_step if state else 0)
        if state is None:
            return 0
        if state.facts["run_key"] != self.run_key:
            raise CheckpointMismatch(
                "The checkpoint belongs to a run with another base, data set or plan: choose another output folder."
            )
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state.parameters[name])
        restore_optimizer(self.optimizer, self.parameters, state.optimizer)
        self.method.load_state(state.method)
        self._history = [StepMetrics(**m) for m in state.facts["history"]]
        self._seconds_before = state.facts["seconds"]
        return state.next_step

    def _save(self, next_step: int) -> None:
        self.backbone.ranks.require_same(f"parameters after step {next_step}", self.parameters)
        if not self.backbone.ranks.is_first:
            return
        facts = {"run_key": self.run_key, "history": [asdict(m) for m in self._history], "seconds": self._seconds()}
        save_checkpoint(
            self.checkpoint_dir,
            TrainingState(
                next_step,
                {name: p.detach() for name, p in self.parameters.items()},
                optimizer_tensors(self.optimizer, self.parameters),
                self.method.state(),
                facts,
            ),
        )


def _add(sums: dict[str, float], more: dict[str, float]) -> None:
    for name, value in more.items():
        sums[name] += value
