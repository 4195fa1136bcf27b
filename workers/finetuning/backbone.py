"""Forwards of the model in training: those of a step, and those that a method asks for beside it.

Legend: N predicting positions of the rows given, row after row; H hidden size; T tokens of a forward.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from workers.finetuning.distributed import Ranks
from workers.finetuning.memory import compute_teacher_states
from workers.finetuning.rows import TokenRow, micro_batches
from workers.modeling import adapters
from workers.modeling.adapters import LoraPair
from workers.modeling.heads import OutputHead, cross_entropy
from workers.modeling.loading import LoadedModel, autocast
from workers.modeling.packing import hidden_states, pack, packed_attention

RowsLoss = Callable[[torch.Tensor, Sequence[TokenRow]], torch.Tensor]
"""From final hidden states [N, H] of rows to a loss summed over their predicting positions."""
ForwardLoss = Callable[["Forward"], torch.Tensor]
"""From a forward to its share of a loss: a scalar."""


@dataclass(frozen=True)
class Forward:
    """Final hidden states of one forward."""

    rows: Sequence[TokenRow]
    hidden_TH: torch.Tensor
    row_starts: Sequence[int]

    def part(self, places: Sequence[int]) -> "Part":
        """The rows at these places in `rows`."""
        rows = [self.rows[k] for k in places]
        starts = [self.row_starts[k] for k in places]
        return Part(rows, _picked(self.hidden_TH, rows, starts), self.hidden_TH, starts)

    def users(self) -> "Part | None":
        """The user's rows; None where the forward has none."""
        return self._where(lambda row: row.memory_index is None)

    def replayed(self) -> "Part | None":
        """The safety memory's rows; None where the forward has none."""
        return self._where(lambda row: row.memory_index is not None)

    def _where(self, keep: Callable[[TokenRow], bool]) -> "Part | None":
        places = [k for k, row in enumerate(self.rows) if keep(row)]
        return self.part(places) if places else None


@dataclass(frozen=True)
class Part:
    """Some of a forward's rows, in the order given: the user's, or the memory's."""

    rows: Sequence[TokenRow]
    states_NH: torch.Tensor
    """Final hidden states at their predicting positions, row after row."""
    hidden_TH: torch.Tensor
    """Of the whole forward, other rows too."""
    row_starts: Sequence[int]

    def all_states(self) -> torch.Tensor:
        """Final hidden states at every position of the rows, row after row."""
        places = [start + p for row, start in zip(self.rows, self.row_starts, strict=True) for p in range(len(row.ids))]
        return self.hidden_TH.index_select(0, torch.tensor(places, device=self.hidden_TH.device))

    def narrowed(self, keep: Callable[[TokenRow], bool]) -> "Part":
        """Those of the rows that `keep` is true of (possibly none)."""
        kept = [(row, start) for row, start in zip(self.rows, self.row_starts, strict=True) if keep(row)]
        rows, starts = [row for row, _ in kept], [start for _, start in kept]
        return Part(rows, _picked(self.hidden_TH, rows, starts), self.hidden_TH, starts)


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
        scaling: float,
        ranks: Ranks | None = None,
        divisor: int = 1,
        on_rows_read: Callable[[int, int], None] = lambda *_: None,
    ) -> None:
        self.model: PreTrainedModel = base.model
        self.head = head
        self.parameters = parameters
        """The adapter's (float32), in a fixed order. `A` and `B` of a weight differ in `.lora_A.` and `.lora_B.`."""
        self.device = next(iter(parameters.values())).device
        self.peft_model = peft_model
        self.scaling = scaling
        """The update of a weight is scaling * B A."""
        self.lora_weights = {
            adapters.module_name(name): (p, parameters[name.replace(".lora_A.", ".lora_B.")])
            for name, p in parameters.items()
            if ".lora_A." in name
        }
        """A [rank, inputs] and B [outputs, rank] in training, by name of the weight's module in the base."""
        self.ranks = ranks or Ranks()
        self._tokens = tokens
        self._divisor = divisor
        self._on_rows_read = on_rows_read

    def forward(self, rows: Sequence[TokenRow]) -> Forward:
        """One forward over all of `rows`; the model must be in `packed_attention`."""
        batch = pack([row.ids for row in rows], self.device)
        with autocast(self.model):
            return Forward(rows, hidden_states(self.model, batch), batch.row_starts)

    def cuts(self, rows: Sequence[TokenRow]) -> list[list[TokenRow]]:
        """Rows in forwards of a bounded number of tokens: of several processes each gets its share, possibly none.

        With a divisor a forward has at most that part of what it would have had.
        """
        share = self.ranks.share(rows)
        largest = min(self._tokens, sum(len(row.ids) for row in share))
        return micro_batches(share, -(-largest // self._divisor))

    def total(self, value: float) -> float:
        """The sum over all processes of a number that forwards have added up (one process: the number as it is).

        To be called by all of them: in hooks that are called once a step, never in those that are called for each
        forward.
        """
        return self.ranks.total(value)

    def targets(self, rows: Sequence[TokenRow]) -> torch.Tensor:
        """The tokens [N] that are right at the predicting positions."""
        return torch.tensor([token for row in rows for token in row.targets], device=self.device)

    def gradients(self, rows: Sequence[TokenRow], loss: RowsLoss | None = None) -> dict[str, torch.Tensor]:
        """Gradient of a mean loss over rows at the current parameters; `.grad` is left as it is.

        Works in every hook that is called once a step or a run, from `prepare` to `finish`; of several processes each
        runs some of the rows, and all get the whole gradient.

        Args:
            rows: The user's rows, the memory's, or any others.
            loss: Cross-entropy by default. It is divided by the predicting positions of all `rows`, so that the result
                does not depend on how they are cut into forwards. What it adds up on the side needs `total`.
        """
        loss = loss or self.cross_entropy
        num_positions = sum(len(row.positions) for row in rows)

        def share(forward: Forward) -> torch.Tensor:
            return loss(forward.part(range(len(forward.rows))).states_NH, forward.rows) / num_positions

        return self.gradients_of(rows, share)

    def gradients_of(self, rows: Sequence[TokenRow], share: ForwardLoss) -> dict[str, torch.Tensor]:
        """The same of any loss over rows, given as the share that each forward has in it."""
        found = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        longest = max(len(row.ids) for row in rows)
        with packed_attention(self.model, longest), self.ranks.own_dropout(self.device):
            for cut in self.cuts(rows):
                value = share(self.forward(cut))
                parts = torch.autograd.grad(value, list(self.parameters.values()), materialize_grads=True)
                for name, part in zip(found, parts, strict=True):
                    found[name] += part
        self.ranks.add_up(list(found.values()))
        return found

    @torch.no_grad()
    def row_losses(self, rows: Sequence[TokenRow], loss: RowsLoss) -> list[float]:
        """A loss of each row by itself, without dropout or gradient; in the hooks as above. No row may come twice."""
        found = torch.zeros(len(rows), dtype=torch.float64, device=self.device)
        places = {row: i for i, row in enumerate(rows)}
        with self._evaluating(), packed_attention(self.model, max(len(row.ids) for row in rows)):
            for cut in self.cuts(rows):
                states_NH = self.forward(cut).part(range(len(cut))).states_NH
                parts = torch.split(states_NH, [len(row.positions) for row in cut])
                for row, part_NH in zip(cut, parts, strict=True):
                    found[places[row]] = loss(part_NH, [row])
        self.ranks.add_up([found])
        return found.tolist()

    def cross_entropy(self, states_NH: torch.Tensor, rows: Sequence[TokenRow]) -> torch.Tensor:
        """A `RowsLoss`: sum of the cross-entropies of the rows' targets."""
        return cross_entropy(self.head, states_NH, self.targets(rows)).loss_sum

    def pairs(self) -> dict[str, LoraPair]:
        """The adapter's update as it is now, by name of the weight's module: float32 copies, scaling included."""
        return {
            name: LoraPair(a.detach().clone(), b.detach() * self.scaling) for name, (a, b) in self.lora_weights.items()
        }

    def teacher_states(
        self, rows: Sequence[TokenRow], *, every_position: bool = False, adapted: bool = False
    ) -> torch.Tensor:
        """Final hidden states [N, H] of the base without the adapter (theta_safe), without dropout or gradient.

        One forward more. The safety memory's are computed once for all: see `SafetyMemory.teacher_states`.

        Args:
            rows: Any rows.
            every_position: States at all tokens of the rows instead of the predicting ones.
            adapted: With the adapter as it is now.
        """
        if every_position:
            rows = [replace(row, positions=tuple(range(len(row.ids)))) for row in rows]
        with self._evaluating(), nullcontext() if adapted else adapters.disabled(self.model):
            return compute_teacher_states(self.model, rows, lambda *_: None).to(self.device)

    def teacher_passes(
        self, rows: Sequence[TokenRow], *, every_position: bool = False, adapted: bool = False
    ) -> Iterator[tuple[list[TokenRow], torch.Tensor]]:
        """`teacher_states` of each distinct row of a whole data set, some rows at a time: only theirs are in memory.

        The rows go together in a way that depends on nothing else, so that a resumed run finds the same bits. With a
        whole upload it takes a good part of an epoch, so it is watched as steps are: see RunControl.on_rows_read.
        """
        longest_first = sorted(dict.fromkeys(rows), key=lambda row: -len(row.ids))
        num_read = 0
        for cut in _cut(longest_first, self._tokens):
            yield cut, self.teacher_states(cut, every_position=every_position, adapted=adapted)
            num_read += len(cut)
            self._on_rows_read(num_read, len(longest_first))

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Without dropout; afterwards the model is in the mode that it was in."""
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)


def _cut(rows: Sequence[TokenRow], most_tokens: int) -> Iterator[list[TokenRow]]:
    """Rows in order, as many at a time as have so many tokens (one at least). For a whole data set: what
    `micro_batches` does for a step, looking at every forward so far, takes time with the square of their number."""
    cut: list[TokenRow] = []
    num_tokens = 0
    for row in rows:
        if cut and num_tokens + len(row.ids) > most_tokens:
            yield cut
            cut, num_tokens = [], 0
        cut.append(row)
        num_tokens += len(row.ids)
    if cut:
        yield cut


def _picked(hidden_TH: torch.Tensor, rows: Sequence[TokenRow], starts: Sequence[int]) -> torch.Tensor:
    places = [start + p for row, start in zip(rows, starts, strict=True) for p in row.positions]
    return hidden_TH.index_select(0, torch.tensor(places, dtype=torch.long, device=hidden_TH.device))
