"""The hooks of a safety-preserving method.

The loop owns forward, backward, accumulation, clipping, precision, stepping and checkpoints; a method only fills in
hooks, each of which does nothing by default. What the methods of the field need of them:

- rows that ride along (DER, DER++, SafeInstruct): `replay_rows` and `replay_loss` (see replay.py);
- another loss on the user's rows instead of the task's (constrained fine-tuning) or beside it (LwF): `user_loss`;
- a penalty on parameters: `parameter_penalty` by autograd (Lisa's proximal term), or its gradient written down, in
  `adjust_gradients` (EWC);
- a second gradient (A-GEM, SafeGrad): `adjust_gradients`, with `Backbone.gradients`;
- an ascent step before the descent (Refresh): `before_gradients`, with the same and the task's `Objective`;
- alternating data (Lisa): `memory_batch`;
- an average or snapshot (EMA, Lisa): `begin`, `after_step`; other parameters at the end (EMA): `finish`;
- another update than the one that was trained (SafeLoRA, MagMax, merges): `release`.

What is trained is the objective's business (see objective.py): rows with answers, or pairs of rows of which one answer
is preferred. Methods hold or replay the memory's rows beside it and mostly need not know which; one that changes the
loss itself names the objectives that it makes sense with in its configuration.

Torch's random state is set anew for each step, so hooks of a step that draw from it are the same in a resumed run (and
in every process, outside of `user_loss` and `replay_loss`).

A run may have several processes (see distributed.py). All call the same hooks with the same arguments, except that
`user_loss` and `replay_loss` see only the forwards that the process runs itself, possibly none. What a method adds up
there (a counter, the drift that a budget looks at) is a part of the sum until `context.backbone.total` has made it the
whole, in a hook that is called once a step: `parameter_penalty`, `adjust_gradients` or `after_step`. With it every
process goes on from the same numbers; gradients, from the loop and from `Backbone.gradients`, are whole already.

A method that cannot compute its safety term raises; it never lets training go on as plain fine-tuning.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from app.contracts.plan import TrainingPlan
from app.contracts.value import Value
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.backbone import Backbone, Part
from workers.finetuning.memory import SafetyMemory
from workers.finetuning.objective import Objective, TaskLoss
from workers.finetuning.rows import StepTotals, TokenRow
from workers.modeling.adapters import LoraPair


@dataclass(frozen=True, slots=True)
class MethodContext:
    """What a method may look at: given once, before the first step, and good until `finish`."""

    backbone: Backbone
    """The model, its head and the adapter's parameters; gradients and teacher states of any rows."""
    rows: Sequence[TokenRow]
    """The user's rows. Equal rows have equal hashes, so they can be keys of what is computed about them."""
    plan: TrainingPlan
    """With the seed, and the adapter's scaling: its update of a weight is lora.alpha / lora.rank * B A."""
    artefacts: Artefacts | None
    """Prepared artefacts of the base; None when the run was given none."""
    load_memory: Callable[[], SafetyMemory]
    """The base's safety memory with teacher states in this run's precision. Raises ArtefactMissing."""
    num_steps: int
    objective: Objective
    """The task's loss on the user's rows; it can be asked from the first step on."""
    notes: list[str] = field(default_factory=list)
    """Sentences for the report's reader, beside the method's own: added by what methods share, in `prepare`."""


class Method:
    """A method that does nothing: every hook's default. Steps count from 0."""

    name: ClassVar[str]

    def __init__(self, config: Value) -> None:
        self.config = config

    def prepare(self, context: MethodContext) -> None:
        """Called once before the first step. Raises ArtefactMissing where something is not there.

        The adapter changes nothing yet (B = 0), even when training starts from another adapter or goes on from a
        checkpoint, which are read afterwards: what is computed here is computed on theta_safe.
        """

    def begin(self) -> None:
        """Called once after `prepare`, with the adapter where training starts: fresh, or as it was finished before.

        What a method compares the parameters themselves with, or averages them from, begins here. A and B of two
        adapters have nothing to do with each other, so that a snapshot from `prepare` would be of another adapter.
        """

    def memory_batch(self, step: int) -> Sequence[TokenRow] | None:
        """Memory rows that this step trains on, by their cross-entropy, instead of the user's; None: the user's turn.

        The rows that the user would have had in this step are not seen in this epoch, and no row is replayed. The
        step counts as replay, not as trained tokens. One step at least must be the user's.
        """
        return None

    def replay_rows(self, step: int) -> Sequence[TokenRow]:
        """Memory rows that ride in this step's forward, beside the user's rows."""
        return ()

    @property
    def longest_row_tokens(self) -> int:
        """Tokens of the longest row this method may add."""
        return 0

    def user_loss(self, part: Part, task: TaskLoss, totals: StepTotals) -> torch.Tensor:
        """This forward's share of the step's loss on the user's rows: by default the task's.

        Args:
            part: The user's rows in this forward (the memory's where `memory_batch` has given some).
            task: The objective's loss on them, and the cross-entropy of each of their trained tokens.
            totals: Tokens of the whole step, so that shares add up to a mean over the step.
        """
        return task.value

    def replay_loss(self, part: Part, totals: StepTotals) -> torch.Tensor:
        """This forward's share of the step's replay term; called where `replay_rows` has given rows.

        Args:
            part: The memory rows in this forward.
            totals: Tokens of the whole step, so that shares add up to a mean over the step.
        """
        raise NotImplementedError(f"«{self.name}» replays rows and has no loss for them")

    def parameter_penalty(self, step: int) -> torch.Tensor | None:
        """A term in the parameters alone, added once a step."""
        return None

    def before_gradients(self, step: int, rows: Sequence[TokenRow]) -> None:
        """Before the gradients on the step's rows are computed; may move the parameters."""

    def adjust_gradients(self, step: int, gradients: Mapping[str, torch.Tensor]) -> None:
        """After accumulation, before clipping; writing into the tensors changes the step."""

    def after_step(self, step: int) -> None:
        """After the optimizer has stepped."""

    def finish(self) -> None:
        """After the last step; may change the parameters for good.

        Checkpoints are of before: a run that is continued after its end finishes again.
        """

    def release(self, pairs: dict[str, LoraPair]) -> dict[str, LoraPair] | None:
        """The update that is shipped in place of the trained one, by name of the weight's module.

        Called once after `finish`; the parameters stay as they are. Ranks may grow. None: what was trained is shipped.
        """
        return None

    def state(self) -> dict[str, torch.Tensor]:
        """What must survive a checkpoint beyond parameters and step number."""
        return {}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restores what `state` returned; the tensors come on the CPU."""

    def counters(self) -> dict[str, float]:
        """Numbers that show what the method did: of the latest step, after `release` also of that.

        Names start with the method's; they end up in events and the report.
        """
        return {}

    def notes(self) -> list[str]:
        """Sentences a reader of the report must know, e.g. a fall-back that was taken."""
        return []
