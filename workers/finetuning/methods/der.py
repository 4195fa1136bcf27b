"""Dark Experience Replay: hold the logits on safe answers where the aligned base had them.

Source: Buzzega, Boschini, Porrello, Abati, Calderara 2020, "Dark Experience for General Continual Learning: a
    Strong, Simple Baseline", arXiv 2004.07211, eq. 6: L = CE(user) + alpha * |z - h_theta(x)|^2 over a memory of
    inputs x with stored logits z. Best of the methods compared in arXiv 2512.10150 (Unforgotten Safety).
Idea: memory rows ride in the user's forward; at the positions that predict a safe answer, the distance between the
    student's and the teacher's logits is added to the loss. The teacher is theta_safe, whose final hidden states
    h* at those positions were computed once when the base was prepared.
Hooks: prepare, replay_rows, replay_loss, counters.
Differences: the memory is filled once from theta_safe's own answers instead of along the trajectory; the term is
    a mean over answer tokens and over the vocabulary, as `F.mse_loss` has it, so alpha does not depend on answer
    length. With a frozen linear head it is computed as (h - h*)^T W^T W (h - h*) / V without logits, the same number;
    otherwise (soft-capped or trained head) from the logits, which the report says.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch

from app.contracts.methods import Der
from app.contracts.value import Value
from workers.finetuning.errors import ArtefactMissing
from workers.finetuning.losses import squared_logit_error_exact, squared_logit_error_gram
from workers.finetuning.memory import SafetyMemory
from workers.finetuning.method import Method, MethodContext
from workers.finetuning.rows import StepTotals, TokenRow, memory_indices
from workers.modeling.heads import OutputHead


class DarkExperienceReplay(Method):
    """L = CE(user rows) + alpha * mean over replayed tokens and vocabulary of (logit - teacher logit)^2."""

    name: ClassVar[str] = "der"

    def __init__(self, config: Value) -> None:
        assert isinstance(config, Der)
        super().__init__(config)
        self._config = config
        self._memory: SafetyMemory
        self._head: OutputHead
        self._gram_HH: torch.Tensor | None = None
        self._seed = 0
        self._term = 0.0
        self._replayed = 0

    def prepare(self, context: MethodContext) -> None:
        if self._config.alpha == 0.0:
            return
        self._memory = context.load_memory().first(self._config.memory_size)
        if not self._memory.num_refusals:
            raise ArtefactMissing("The safety memory holds no refusal: prepare the base again with alignment.")
        self._head, self._seed = context.backbone.head, context.plan.seed
        if self._head.is_linear and not self._head.weight_VH.requires_grad:
            if context.artefacts is None:
                raise ArtefactMissing("DER needs the base's Gram matrix: run `unforgotten models prepare` first.")
            self._gram_HH = context.artefacts.load_gram().to(self._head.weight_VH.device, torch.float32)

    @property
    def longest_row_tokens(self) -> int:
        return max((len(row.ids) for row in self._memory.rows), default=0) if self._config.alpha else 0

    def replay_rows(self, step: int) -> Sequence[TokenRow]:
        self._term = 0.0
        if self._config.alpha == 0.0:
            return ()
        count = min(self._config.memory_rows_per_step, len(self._memory.rows))
        rows = [self._memory.rows[i] for i in memory_indices(len(self._memory.rows), count, step, self._seed)]
        self._replayed += sum(len(row.positions) for row in rows)
        return rows

    def replay_loss(self, states_NH: torch.Tensor, rows: Sequence[TokenRow], totals: StepTotals) -> torch.Tensor:
        teacher_NH = self._memory.teacher_states(rows).to(states_NH.device)
        if self._gram_HH is not None:
            error = squared_logit_error_gram(states_NH, teacher_NH, self._gram_HH)
        else:
            error = squared_logit_error_exact(states_NH, teacher_NH, self._head)
        term = error / (self._head.weight_VH.shape[0] * totals.replay_tokens)
        self._term += float(term.detach())
        return self._config.alpha * term

    def state(self) -> dict[str, torch.Tensor]:
        return {"replayed": torch.tensor(self._replayed)}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        self._replayed = int(state["replayed"])

    def counters(self) -> dict[str, float]:
        return {"der_squared_logit_error": self._term, "der_replayed_tokens": float(self._replayed)}

    def notes(self) -> list[str]:
        if self._config.alpha == 0.0:
            return ["alpha is 0: nothing was replayed, this is plain fine-tuning."]
        if self._gram_HH is None:
            return ["The output head is soft-capped or trained, so DER computed full logits instead of the Gram form."]
        return []
