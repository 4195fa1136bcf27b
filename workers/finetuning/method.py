"""The hooks of a safety-preserving method.

The loop owns forward, backward, accumulation, clipping, precision, stepping and checkpoints; a method only fills in
hooks, each of which does nothing by default. What the methods of the field need of them:

- rows that ride along (DER, DER++, SafeInstruct): `replay_rows` and `replay_loss`;
- a penalty on parameters (EWC, Lisa's proximal term): `parameter_penalty`;
- a second gradient (A-GEM, SafeGrad): `adjust_gradients`, with `StepGradients.of_rows`;
- an ascent step before the descent (Refresh): `before_gradients`, with the same;
- alternating data (Lisa): `memory_batch`;
- an average or snapshot (EMA, Lisa): `after_step`; a change at the end (SafeLoRA, MagMax): `finish`.

A method that cannot compute its safety term raises; it never lets training go on as plain fine-tuning.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import nn

from app.contracts.value import Value
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.memory import SafetyMemory
from workers.finetuning.rows import StepTotals, TokenRow
from workers.modeling.heads import OutputHead


@dataclass(frozen=True, slots=True)
class MethodContext:
    """What a method may look at: given once, before the first step."""

    parameters: Mapping[str, nn.Parameter]
    """The adapter's parameters (float32)."""
    head: OutputHead
    artefacts: Artefacts | None
    """Prepared artefacts of the base; None when the run was given none."""
    load_memory: Callable[[], SafetyMemory]
    """The base's safety memory with teacher states in this run's precision. Raises ArtefactMissing."""
    num_steps: int
    seed: int


class StepGradients(Protocol):
    """Gradients at the current parameters, seen from a hook."""

    @property
    def rows(self) -> Sequence[TokenRow]:
        """The rows of this step, the user's and the replayed."""

    def of_rows(self, rows: Sequence[TokenRow]) -> dict[str, torch.Tensor]:
        """Gradient of the mean cross-entropy over other rows; `.grad` is left as it is."""

    def current(self) -> dict[str, torch.Tensor]:
        """The accumulated gradients (`.grad`), before clipping; writing into them changes the step."""


class Method:
    """A method that does nothing: every hook's default."""

    name: ClassVar[str]

    def __init__(self, config: Value) -> None:
        self.config = config

    def prepare(self, context: MethodContext) -> None:
        """Called once before the first step. Raises ArtefactMissing where something is not there."""

    def memory_batch(self, step: int) -> Sequence[TokenRow] | None:
        """Memory rows that this step trains on (cross-entropy) instead of the user's; None: the user's turn."""
        return None

    def replay_rows(self, step: int) -> Sequence[TokenRow]:
        """Memory rows that ride in this step's forward, beside the user's rows."""
        return ()

    @property
    def longest_row_tokens(self) -> int:
        """Tokens of the longest row this method may add."""
        return 0

    def replay_loss(self, states_NH: torch.Tensor, rows: Sequence[TokenRow], totals: StepTotals) -> torch.Tensor | None:
        """This forward's share of the step's replay term.

        Args:
            states_NH: Final hidden states at the predicting positions of `rows`, row after row.
            rows: The memory rows in this forward.
            totals: Tokens of the whole step, so that shares add up to a mean over the step.
        """
        return None

    def parameter_penalty(self) -> torch.Tensor | None:
        """A term in the parameters alone, added once a step."""
        return None

    def before_gradients(self, gradients: StepGradients) -> None:
        """Before the step's gradients are computed; may move the parameters."""

    def adjust_gradients(self, gradients: StepGradients) -> None:
        """After accumulation, before clipping."""

    def after_step(self, step: int) -> None:
        """After the optimizer has stepped (step counts from 0)."""

    def finish(self) -> None:
        """After the last step; may change the parameters for good."""

    def state(self) -> dict[str, torch.Tensor]:
        """What must survive a checkpoint beyond parameters and step number."""
        return {}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restores what `state` returned."""

    def counters(self) -> dict[str, float]:
        """Numbers of the latest step that show what the method did; they end up in events and the report."""
        return {}

    def notes(self) -> list[str]:
        """Sentences a reader of the report must know, e.g. a fall-back that was taken."""
        return []
