"""Learning without Forgetting: on the user's own rows, the model is held where the aligned base has it.

Source: Li & Hoiem 2016, arXiv 1606.09282; in the form of arXiv 2512.10150 (Unforgotten Safety):
    L = CE(user) + beta * |h_theta(x) - h_safe(x)|^2 over the user's inputs x, h the last hidden states.
Idea: the teacher theta_safe is the same model with its adapter switched off, so one forward more on the same rows, and
    no safety data. A poisoned row's prompt still makes the teacher's states those of a refusal.
Hooks: prepare, before_gradients, user_loss, after_step, state, load_state, counters, notes.
Differences: the paper's norm sums over hidden units, ours is a mean over them (and over the step's tokens), so that
    beta does not depend on the model's width: the paper's beta is ours divided by the hidden size. It leaves open which
    tokens of x count and whether the states are taken before or after the last norm: here all tokens (`positions`
    narrows them to those that predict an answer), after the norm, where the output head reads them.
    `kl` is the original's term, T^2 * KL(p_safe || p_theta) of predictions softened by the temperature T. Li & Hoiem
    write it as a cross-entropy, which differs by a constant; T^2 (Hinton et al. 2015) keeps the gradient's size.
    As in the original, what the old model says is recorded once, before training: rows that go forward together are
    quicker than a step's few (by a seventh on SmolLM2-135M), and later epochs have them for nothing. Rows beyond
    `CACHE_BYTES` have the teacher's forward beside the step's own, and so have all where several processes train
    for one epoch. A run that goes on from a checkpoint records them again.
    Of a preference pair both rows are held, for both are the upload's: where the wanted answer pulls the model to, and
    where the other one pushes it from.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from torch.nn import functional as F

from app.contracts.methods import Lwf
from app.contracts.value import Value
from workers.finetuning.backbone import Backbone, Part
from workers.finetuning.method import Method, MethodContext
from workers.finetuning.objective import TaskLoss
from workers.finetuning.rows import StepTotals, TokenRow
from workers.modeling.heads import kl_divergence

CACHE_BYTES = 2**30
"""Of teacher states that are kept, on the CPU; those of rows beyond it are computed again in every epoch."""


class LearningWithoutForgetting(Method):
    """L = CE(user rows) + beta * mean over their tokens of the distance from the adapter-free model."""

    name: ClassVar[str] = "lwf"

    def __init__(self, config: Value) -> None:
        assert isinstance(config, Lwf)
        super().__init__(config)
        self._config = config
        self._every_position = config.positions == "all"
        self._backbone: Backbone
        self._kept: dict[TokenRow, torch.Tensor] = {}
        self._distance = 0.0

    def prepare(self, context: MethodContext) -> None:
        self._backbone = context.backbone
        # Each of several processes would record every row, and use its share of them once an epoch.
        pays_off = context.plan.num_epochs > 1 or self._backbone.ranks.size == 1
        if self._config.beta > 0.0 and pays_off:
            passes = self._backbone.teacher_passes(self._fitting(context.rows), every_position=self._every_position)
            for rows, states in passes:
                self._kept.update(zip(rows, torch.split(states.cpu(), self._sizes(rows)), strict=True))

    def before_gradients(self, step: int, rows: Sequence[TokenRow]) -> None:
        self._distance = 0.0

    def user_loss(self, part: Part, task: TaskLoss, totals: StepTotals) -> torch.Tensor:
        loss = super().user_loss(part, task, totals)
        if self._config.beta == 0.0:
            return loss
        states_NH = part.all_states() if self._every_position else part.states_NH
        teacher_NH = self._teacher(part.rows)
        if self._config.divergence == "kl":
            temperature = self._config.temperature
            divergences_N = kl_divergence(self._backbone.head, states_NH, teacher_NH, temperature=temperature)
            distance = temperature**2 * divergences_N.sum()
        else:
            distance = F.mse_loss(states_NH.float(), teacher_NH.float(), reduction="sum") / states_NH.shape[1]
        distance = distance / (totals.user_row_tokens if self._every_position else totals.user_tokens)
        self._distance += float(distance.detach())
        return loss + self._config.beta * distance

    def after_step(self, step: int) -> None:
        self._distance = self._backbone.total(self._distance)

    def state(self) -> dict[str, torch.Tensor]:
        return {"distance": torch.tensor(self._distance, dtype=torch.float64)}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        self._distance = float(state["distance"])

    def counters(self) -> dict[str, float]:
        return {"lwf_distance": self._distance, "lwf_kept_rows": float(len(self._kept))}

    def notes(self) -> list[str]:
        if self._config.beta == 0.0:
            return ["beta is 0: nothing was held, this is plain fine-tuning."]
        return []

    def _teacher(self, rows: Sequence[TokenRow]) -> torch.Tensor:
        """Teacher's states [N, H] at the held positions, row after row."""
        found = {row: self._kept[row] for row in rows if row in self._kept}
        missing = [row for row in dict.fromkeys(rows) if row not in found]
        if missing:
            fresh = self._backbone.teacher_states(missing, every_position=self._every_position)
            found.update(zip(missing, torch.split(fresh, self._sizes(missing)), strict=True))
        return torch.cat([found[row].to(self._backbone.device) for row in rows])

    def _fitting(self, rows: Iterable[TokenRow]) -> list[TokenRow]:
        """The first of the rows, as many as fit into the cache."""
        embedding = self._backbone.model.get_input_embeddings().weight
        assert isinstance(embedding, torch.Tensor)
        room = CACHE_BYTES // (embedding.shape[1] * embedding.element_size())
        fitting = []
        for row in dict.fromkeys(rows):
            room -= sum(self._sizes([row]))
            if room < 0:
                break
            fitting.append(row)
        return fitting

    def _sizes(self, rows: Sequence[TokenRow]) -> list[int]:
        """Held positions of each row."""
        return [len(row.ids if self._every_position else row.positions) for row in rows]
