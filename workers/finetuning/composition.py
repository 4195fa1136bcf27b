"""A method together with modifiers: an average over the steps, a merge after them.

The method has every hook. Modifiers have those that do not touch the step itself: `prepare`, `begin`, `after_step`,
`finish`, `release`, state, counters and notes. At the end they come in the order in which the model is made: the
average of the parameters first, then what the method itself does at the end (Safe LoRA's projection, say), then the
merge.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch

from workers.finetuning.backbone import Part
from workers.finetuning.method import Method, MethodContext
from workers.finetuning.objective import TaskLoss
from workers.finetuning.rows import StepTotals, TokenRow
from workers.modeling.adapters import LoraPair


class Composition(Method):
    """One method and at least one modifier, as one method."""

    name: ClassVar[str] = "composition"

    def __init__(self, method: Method, *, ema: Method | None, merge: Method | None) -> None:
        super().__init__(method.config)
        self._method = method
        self._in_order = [m for m in (ema, method, merge) if m is not None]

    def prepare(self, context: MethodContext) -> None:
        for one in self._in_order:
            one.prepare(context)

    def begin(self) -> None:
        for one in self._in_order:
            one.begin()

    def memory_batch(self, step: int) -> Sequence[TokenRow] | None:
        return self._method.memory_batch(step)

    def replay_rows(self, step: int) -> Sequence[TokenRow]:
        return self._method.replay_rows(step)

    @property
    def longest_row_tokens(self) -> int:
        return self._method.longest_row_tokens

    def user_loss(self, part: Part, task: TaskLoss, totals: StepTotals) -> torch.Tensor:
        return self._method.user_loss(part, task, totals)

    def replay_loss(self, part: Part, totals: StepTotals) -> torch.Tensor:
        return self._method.replay_loss(part, totals)

    def parameter_penalty(self, step: int) -> torch.Tensor | None:
        return self._method.parameter_penalty(step)

    def before_gradients(self, step: int, rows: Sequence[TokenRow]) -> None:
        self._method.before_gradients(step, rows)

    def adjust_gradients(self, step: int, gradients: Mapping[str, torch.Tensor]) -> None:
        self._method.adjust_gradients(step, gradients)

    def after_step(self, step: int) -> None:
        # The method may still change the parameters; an average is taken of the step's result.
        self._method.after_step(step)
        for one in self._in_order:
            if one is not self._method:
                one.after_step(step)

    def finish(self) -> None:
        for one in self._in_order:
            one.finish()

    def release(self, pairs: dict[str, LoraPair]) -> dict[str, LoraPair] | None:
        released: dict[str, LoraPair] | None = None
        for one in self._in_order:
            changed = one.release(pairs if released is None else released)
            released = released if changed is None else changed
        return released

    def state(self) -> dict[str, torch.Tensor]:
        return {f"{one.name}/{key}": value for one in self._in_order for key, value in one.state().items()}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        for one in self._in_order:
            prefix = f"{one.name}/"
            one.load_state({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})

    def counters(self) -> dict[str, float]:
        return {key: value for one in self._in_order for key, value in one.counters().items()}

    def notes(self) -> list[str]:
        return [note for one in self._in_order for note in one.notes()]
