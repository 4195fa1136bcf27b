"""Forwards of the model in training: those of a step, and those that a method asks for beside it.

Legend: N predicting positions of the rows given, row after row; H hidden size; T tokens of a forward.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from workers.finetuning.memory import compute_teacher_states
from workers.finetuning.rows import TokenRow, micro_batches
from workers.modeling.heads import OutputHead, cross_entropy
from workers.modeling.loading import LoadedModel, autocast
from workers.modeling.packing import hidden_states, pack, packed_attention

RowsLoss = Callable[[torch.Tensor, Sequence[TokenRow]], torch.Tensor]
"""From final hidden states [N, H] of rows to a loss summed over their predicting positions."""


@dataclass(frozen=True)
class Forward:
    """Final hidden states of one forward."""

    rows: Sequence[TokenRow]
    hidden_TH: torch.Tensor
    row_starts: Sequence[int]

    def states(self, places: Sequence[int]) -> torch.Tensor:
        """States [N, H] at the predicting positions of the rows at these places in `rows`."""
        positions = [self.row_starts[k] + p for k in places for p in self.rows[k].positions]
        return self.hidden_TH.index_select(0, torch.tensor(positions, device=self.hidden_TH.device))


class Backbone:
    """A frozen base with the adapter in training on it."""

    def __init__(
        self,
        base: LoadedModel,
        peft_model: PeftModel,
        head: OutputHead,
        parameters: dict[str, nn.Parameter],
        *,
        tokens: int,
    ) -> None:
        self.model: PreTrainedModel = base.model
        self.head = head
        self.parameters = parameters
        """The adapter's (float32), in a fixed order. `A` and `B` of a weight differ in `.lora_A.` and `.lora_B.`."""
        self.device = next(iter(parameters.values())).device
        self.peft_model = peft_model
        self._tokens = tokens

    def forward(self, rows: Sequence[TokenRow]) -> Forward:
        """One forward over all of `rows`; the model must be in `packed_attention`."""
        batch = pack([row.ids for row in rows], self.device)
        with autocast(self.model):
            return Forward(rows, hidden_states(self.model, batch), batch.row_starts)

    def cuts(self, rows: Sequence[TokenRow]) -> list[list[TokenRow]]:
        """Rows in forwards of a bounded number of tokens."""
        return micro_batches(rows, self._tokens)

    def targets(self, rows: Sequence[TokenRow]) -> torch.Tensor:
        """The tokens [N] that are right at the predicting positions."""
        return torch.tensor([token for row in rows for token in row.targets], device=self.device)

    def gradients(self, rows: Sequence[TokenRow], loss: RowsLoss | None = None) -> dict[str, torch.Tensor]:
        """Gradient of a mean loss over rows at the current parameters; `.grad` is left as it is.

        Works in every hook, from `prepare` to `finish`.

        Args:
            rows: The user's rows, the memory's, or any others.
            loss: Cross-entropy by default. It is divided by the predicting positions of all `rows`, so that the result
                does not depend on how they are cut into forwards.
        """
        loss = loss or self.cross_entropy
        num_positions = sum(len(row.positions) for row in rows)
        found = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        with packed_attention(self.model, max(len(row.ids) for row in rows)):
            for cut in self.cuts(rows):
                value = loss(self.forward(cut).states(range(len(cut))), cut) / num_positions
                parts = torch.autograd.grad(value, list(self.parameters.values()), materialize_grads=True)
                for name, part in zip(found, parts, strict=True):
                    found[name] += part
        return found

    def cross_entropy(self, states_NH: torch.Tensor, rows: Sequence[TokenRow]) -> torch.Tensor:
        """A `RowsLoss`: sum of the cross-entropies of the rows' targets."""
        return cross_entropy(self.head, states_NH, self.targets(rows)).loss_sum

    def teacher_states(self, rows: Sequence[TokenRow]) -> torch.Tensor:
        """Final hidden states [N, H] of the base without the adapter (theta_safe), without dropout or gradient.

        One forward more. The safety memory's are computed once for all: see `SafetyMemory.teacher_states`.
        """
        was_training = self.model.training
        self.model.eval()
        try:
            with self.peft_model.disable_adapter():
                return compute_teacher_states(self.model, rows, lambda *_: None).to(self.device)
        finally:
            self.model.train(was_training)
