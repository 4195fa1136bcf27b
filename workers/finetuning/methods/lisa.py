"""Lisa: turns on safe answers and on the user's rows, each held near where the other one ended.

Source: Huang, Hu, Ilhan, Tekin, Liu 2024, "Lisa: Lazy Safety Alignment for Large Language Models against Harmful
    Fine-tuning Attack", arXiv 2405.18641: K1 steps on alignment data, then K2 on the user's, and so on; both losses
    have rho / 2 |theta - theta_other|^2 beside it, where theta_other is what the other turn ended with. Compared in
    arXiv 2512.10150 (Unforgotten Safety).
Idea: turns alone drift to and fro, the more so the longer they are; the proximal term makes each give in to the other.
    No pass is added to a step.
Hooks: prepare, begin, memory_batch, before_gradients, parameter_penalty, state, load_state, counters, notes.
Differences: the mechanics are those of the authors' code. It begins with alignment. Theta is never swapped; theta_other
    is a snapshot at the last switch (before the first: of the start). User batches of alignment steps are passed over.
    One optimizer goes through both turns. The term is over what is trained, the adapter, and off for the first tenth
    of the steps. Settings differ: the authors' turns of 100 and 900 steps make no sense in a run of 30 to 60, so the
    default is 1 and 3. For rho the sources disagree (1 in the authors' scripts, 0.1 as their program's default, 0.01 in
    their later work); ours is 1. As a turn's first step is taken at theta_other, the term acts from its second on, by
    default in the user's turns only. Without alignment steps there is no other turn and no term, where the authors'
    code would hold theta near its start. Steps are optimizer steps, not forwards. The alignment data are theta_safe's
    own answers, all of them once before any comes again; they are trained on by their cross-entropy also where the
    user's rows are preference pairs.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch.nn import functional as F

from app.contracts.methods import Lisa
from app.contracts.value import Value
from workers.finetuning.backbone import Backbone
from workers.finetuning.errors import DatasetRefused
from workers.finetuning.method import MethodContext
from workers.finetuning.replay import MemoryMethod
from workers.finetuning.rows import TokenRow

_OTHER = "other/"


class LazySafetyAlignment(MemoryMethod):
    """CE on one of two data sets in turn, plus rho / 2 |theta - theta at the last switch|^2."""

    name: ClassVar[str] = "lisa"

    def __init__(self, config: Value) -> None:
        assert isinstance(config, Lisa)
        super().__init__(config)
        self._config = config
        self._backbone: Backbone
        self._num_steps = 0
        self._rows_per_step = 0
        self._first_proximal = 0
        self._other: dict[str, torch.Tensor] = {}
        self._counters = {"turn": 0.0, "proximal": 0.0, "alignment_steps": 0.0}

    def prepare(self, context: MethodContext) -> None:
        if self._config.alignment_steps == 0:
            return
        if context.num_steps <= self._config.alignment_steps:
            raise DatasetRefused(
                f"«lisa» begins with {self._config.alignment_steps} steps on the safety memory, and the run has "
                f"{context.num_steps}: none would be the user's. Use more rows, more epochs, a smaller batch_size or "
                "fewer alignment_steps."
            )
        self.load_memory(context, self._config)
        self._backbone = context.backbone
        self._num_steps = context.num_steps
        self._rows_per_step = context.plan.batch_size
        self._first_proximal = round(self._config.proximal_after * context.num_steps)

    def begin(self) -> None:
        if self._config.alignment_steps and self._config.rho > 0.0 and self._first_proximal < self._num_steps:
            self._other = {name: p.detach().clone() for name, p in self._backbone.parameters.items()}

    def memory_batch(self, step: int) -> Sequence[TokenRow] | None:
        if not self._is_alignment(step):
            return None
        return self.drawn(self._alignment_steps_before(step), self._rows_per_step)

    def before_gradients(self, step: int, rows: Sequence[TokenRow]) -> None:
        self._counters = {
            "turn": float(self._is_alignment(step)),
            "proximal": 0.0,
            "alignment_steps": float(self._alignment_steps_before(step + 1)),
        }
        if step > 0 and self._is_alignment(step) != self._is_alignment(step - 1):
            for name, kept in self._other.items():
                kept.copy_(self._backbone.parameters[name].detach())

    def parameter_penalty(self, step: int) -> torch.Tensor | None:
        if not self._other or step < self._first_proximal:
            return None
        # mse_loss keeps no difference of its own for the backward pass, which a square would.
        squares = [
            F.mse_loss(self._backbone.parameters[name], kept, reduction="sum") for name, kept in self._other.items()
        ]
        penalty = 0.5 * self._config.rho * torch.stack(squares).sum()
        self._counters["proximal"] = float(penalty.detach())
        return penalty

    def state(self) -> dict[str, torch.Tensor]:
        numbers = {name: torch.tensor(value, dtype=torch.float64) for name, value in self._counters.items()}
        return {**numbers, **{f"{_OTHER}{name}": kept for name, kept in self._other.items()}}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        self._counters = {name: float(state[name]) for name in self._counters}
        for name, kept in self._other.items():
            kept.copy_(state[f"{_OTHER}{name}"])

    def counters(self) -> dict[str, float]:
        return {f"lisa_{name}": value for name, value in self._counters.items()}

    def notes(self) -> list[str]:
        if self._config.alignment_steps == 0:
            return ["alignment_steps is 0: every step was the user's, this is plain fine-tuning."]
        passed = self._alignment_steps_before(self._num_steps)
        notes = [
            f"{passed} of {self._num_steps} steps were on the safety memory; the user's rows were passed over there."
        ]
        if not self._other:
            notes.append("The turns alternated without the proximal term (rho is 0 or proximal_after is 1).")
        return notes

    def _is_alignment(self, step: int) -> bool:
        return step % (self._config.alignment_steps + self._config.user_steps) < self._config.alignment_steps

    def _alignment_steps_before(self, step: int) -> int:
        """How many of the steps before this one are alignment's."""
        turns, place = divmod(step, self._config.alignment_steps + self._config.user_steps)
        return turns * self._config.alignment_steps + min(place, self._config.alignment_steps)
