"""A bound on what a finished training has changed that holds: what is done to the parameters after the last step.

Source: shares of an update as in WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903; see methods/wise_ft.py and dial.py).
Idea: a weight in the loss can only aim at a bound. In a run of few steps every row of the memory is seen about once,
    and no weight, however large, gets the few rows that have drifted far back in time. So the loss is measured at the
    end, over the memory and not over the latest steps, and where it is above the bound, two things follow:
    1. Correction: a few steps on the rows that have drifted most and on nothing else. It is measured anew after each
       round, and goes on while it helps.
    2. Scaling: the largest share of the update that is within the bound, by bisection. At a share of 0 the model is the
       aligned base, whose loss is 0, so that there always is one.
    The first costs the task little and may not be enough; the second always is, and takes from the task as well.
Differences: where the memory is larger than what is measured, steps are made on rows that are not: a bound on rows that
    were just trained on would say nothing about the others.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from workers.finetuning.backbone import Backbone, RowsLoss
from workers.finetuning.dial import NUM_MARKS, largest_good
from workers.finetuning.rows import TokenRow

MEASURED_ROWS = 256
"""Most rows that the loss is measured on, evenly spread over those given."""
ROUNDS = 3
STEPS = 8
"""Of a round."""
ROWS_PER_STEP = 8
RATE = 0.3
"""Learning rate of corrections, as a share of the run's highest. On SmolLM2-135M, after a run at a weight of 10, a
round took the drift on half of the memory from 0.153 to 0.069; at 0.1 to two thirds, and at 0.8 it did not help."""


class Held(NamedTuple):
    """What was found and done."""

    trained: float
    """The mean loss where the training ended ..."""
    final: float
    """... and at what is shipped."""
    num_steps: int
    """Of correction."""
    share: float
    """Of the update, which is left after scaling."""


class Bound:
    """Holds the mean loss over rows at the end of a training, which must be 0 at the base."""

    def __init__(
        self, backbone: Backbone, rows: Sequence[TokenRow], loss: RowsLoss, *, limit: float, learning_rate: float
    ) -> None:
        """With the rows to hold it on, each given once, and the run's highest learning rate."""
        self._backbone = backbone
        self._loss = loss
        self._limit = limit
        self._measured = _spread(rows)
        measured = set(self._measured)
        self._others = _spread([row for row in rows if row not in measured])
        self._optimizer = torch.optim.AdamW(backbone.parameters.values(), lr=RATE * learning_rate, weight_decay=0.0)

    def hold(self) -> Held:
        """Measures, and changes the parameters where they are above the limit."""
        errors = self._errors(self._measured)
        trained = final = _mean(errors, self._measured)
        num_steps = 0
        for _ in range(ROUNDS):
            if final <= self._limit:
                break
            before = [p.detach().clone() for p in self._backbone.parameters.values()]
            self._correct(errors)
            errors = self._errors(self._measured)
            found = _mean(errors, self._measured)
            if not found < final:
                self._put_back(before)
                break
            final, num_steps = found, num_steps + STEPS
        share = 1.0
        if not final <= self._limit:
            share, final = self._scale()
        return Held(trained, final, num_steps, share)

    def _errors(self, rows: Sequence[TokenRow]) -> list[float]:
        return self._backbone.row_losses(rows, self._loss)

    def _correct(self, errors: Sequence[float]) -> None:
        """A round: once over the rows that are furthest, in batches that are alike in how far theirs are."""
        rows = self._measured
        if self._others:
            rows, errors = self._others, self._errors(self._others)
        furthest = sorted(range(len(rows)), key=lambda i: -errors[i])[: STEPS * ROWS_PER_STEP]
        for step in range(STEPS):
            batch = [rows[i] for i in furthest[step % len(furthest) :: STEPS]]
            for name, gradient in self._backbone.gradients(batch, self._loss).items():
                self._backbone.parameters[name].grad = gradient
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _put_back(self, values: Sequence[torch.Tensor]) -> None:
        for parameter, value in zip(self._backbone.parameters.values(), values, strict=True):
            parameter.copy_(value)

    @torch.no_grad()
    def _scale(self) -> tuple[float, float]:
        """The share that is left, and the mean loss there."""
        whole = [(b, b.detach().clone()) for _, b in self._backbone.lora_weights.values()]

        losses: dict[int, float] = {}

        def is_good(mark: int) -> bool:
            _scale_to(mark, whole)
            losses[mark] = _mean(self._errors(self._measured), self._measured)
            return losses[mark] <= self._limit

        mark = largest_good(is_good)
        if mark == 0:
            # Taken as good; what is left there is rounding.
            is_good(mark)
        _scale_to(mark, whole)
        return mark / NUM_MARKS, losses[mark]


def _scale_to(mark: int, whole: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for b, value in whole:
        b.copy_(value * (mark / NUM_MARKS))


def _spread(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """As many rows as are measured, evenly spread over those given."""
    count = min(MEASURED_ROWS, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def _mean(errors: Sequence[float], rows: Sequence[TokenRow]) -> float:
    return sum(errors) / sum(len(row.positions) for row in rows)
