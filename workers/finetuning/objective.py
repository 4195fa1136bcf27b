"""What training makes better on the user's rows: the part of a step's loss that is the task's.

An objective turns a forward's rows into their share of the loss, and says what the loss is a mean over. The loop adds
shares up, so that the result does not depend on how rows fall into forwards; methods add their terms beside it.
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch

from workers.finetuning.backbone import Backbone, Part
from workers.finetuning.rows import StepTotals, TokenRow
from workers.modeling.heads import cross_entropy

LOSS, CORRECT = "loss", "correct"
"""Sums that every objective has: of the loss, and of how often the model was right."""


class TaskLoss(NamedTuple):
    """The task's loss on the user's rows of one forward."""

    value: torch.Tensor
    """Their share of the step's mean: a scalar, differentiable."""
    losses_N: torch.Tensor
    """Cross-entropy (minus log-probability) of each of their trained tokens, row after row; differentiable."""
    sums: dict[str, float]
    """By name (see `Objective.measures`): added up over a step and divided by `Objective.count`, they are its metrics.
    """


class Objective:
    """A loss on the user's rows."""

    counters: ClassVar[tuple[str, ...]] = ()
    """Names of means over the step that are reported beside loss and accuracy."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the sums that `share` gives."""
        return (LOSS, CORRECT, *self.counters)

    def prepare(self, rows: Sequence[TokenRow], *, is_fresh: bool) -> None:
        """Called before the first step for the user's rows, and for those of the validation.

        The adapter is where training begins, even when the run goes on from a checkpoint, which is read afterwards.

        Args:
            rows: What `share` will be asked about.
            is_fresh: The adapter changes nothing yet: training begins at theta_safe.
        """

    def count(self, totals: StepTotals) -> int:
        """What the step's loss is a mean over."""
        raise NotImplementedError

    def share(self, part: Part, totals: StepTotals) -> TaskLoss:
        """The loss on the user's rows of one forward.

        Args:
            part: These rows. Rows of a pair are both there.
            totals: Of the whole step, so that shares add up to a mean over the step.
        """
        raise NotImplementedError


class SupervisedAnswers(Objective):
    """The mean cross-entropy of the answers' tokens."""

    def count(self, totals: StepTotals) -> int:
        return totals.user_tokens

    def share(self, part: Part, totals: StepTotals) -> TaskLoss:
        result = cross_entropy(self._backbone.head, part.states_NH, self._backbone.targets(part.rows))
        sums = {LOSS: float(result.loss_sum.detach()), CORRECT: float(result.num_correct)}
        return TaskLoss(result.losses_N.sum() / totals.user_tokens, result.losses_N, sums)
