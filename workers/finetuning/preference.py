"""Direct Preference Optimization: of two answers to a conversation, the wanted one gains on the other.

Source: Rafailov, Sharma, Mitchell, Ermon, Manning, Finn 2023, "Direct Preference Optimization: Your Language Model is
    Secretly a Reward Model", arXiv 2305.18290, eq. 7: L = -log sigmoid(r_w - r_l), where an answer's implicit reward is
    r = beta * log(p_theta / p_ref), p being the probability of the whole answer.
Differences: none in the loss; a step's is the mean over its pairs. The reference is the model that training begins
    with: theta_safe, the adapter switched off (or the adapter that a run starts from). What it gives the answers does
    not change in a run, so it is computed once beforehand and a step costs one forward over both answers, with the
    output head where an answer's tokens are predicted and nowhere else. It is computed again when a run goes on from a
    checkpoint, in forwards that depend on nothing but the rows, and so to the same bits. Both answers see the prompt in
    a row of their own: they lie packed in one forward, but share no computation.
    An answer's log-probability is a sum over its tokens up to the one that ends the turn, as in the paper; it is not
    divided by the answer's length. Sums are in float64: they are hundreds of nats, and their differences are not.

Legend: N predicting positions of the rows given, R rows, P pairs.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch.nn import functional as F

from app.contracts.chat import ChatRow, PreferenceRow
from app.contracts.objectives import Dpo
from workers.finetuning.backbone import Backbone, Part
from workers.finetuning.errors import DatasetRefused
from workers.finetuning.objective import CORRECT, LOSS, Objective, TaskLoss
from workers.finetuning.rows import Dataset, StepTotals, TokenRow
from workers.modeling.chat import ChatCodec, EncodedRow
from workers.modeling.errors import ModelingError
from workers.modeling.heads import cross_entropy

MARGIN, PREFERRED, REJECTED = "dpo_reward_margin", "dpo_preferred_reward", "dpo_rejected_reward"


class DirectPreference(Objective):
    """L = mean over pairs of -log sigmoid(beta * ((log p_w - log ref_w) - (log p_l - log ref_l)))."""

    counters: ClassVar[tuple[str, ...]] = (MARGIN, PREFERRED, REJECTED)

    def __init__(self, backbone: Backbone, config: Dpo) -> None:
        super().__init__(backbone)
        self._beta = config.beta
        self._references: dict[TokenRow, float] = {}
        """Log-probability of each row's answer under the model that training begins with."""

    @torch.no_grad()
    def prepare(self, rows: Sequence[TokenRow], *, is_fresh: bool) -> None:
        for cut, states_NH in self._backbone.teacher_passes(rows, adapted=not is_fresh):
            losses_N = cross_entropy(self._backbone.head, states_NH, self._backbone.targets(cut)).losses_N
            self._references.update(zip(cut, _log_probabilities(losses_N, cut).tolist(), strict=True))

    def count(self, totals: StepTotals) -> int:
        return totals.user_pairs

    def share(self, part: Part, totals: StepTotals) -> TaskLoss:
        losses_N = cross_entropy(self._backbone.head, part.states_NH, self._backbone.targets(part.rows)).losses_N
        log_p_R = _log_probabilities(losses_N, part.rows)
        reference_R = torch.tensor([self._references[row] for row in part.rows], dtype=log_p_R.dtype)
        rewards_R = self._beta * (log_p_R - reference_R.to(log_p_R.device))
        wanted, others = _places(part.rows)
        wanted_P, others_P = rewards_R[wanted], rewards_R[others]
        losses_P = -F.logsigmoid(wanted_P - others_P)
        margins_P = (wanted_P - others_P).detach()
        found = {
            LOSS: losses_P.detach().sum(),
            CORRECT: (margins_P > 0.0).double().sum(),
            MARGIN: margins_P.sum(),
            PREFERRED: wanted_P.detach().sum(),
            REJECTED: others_P.detach().sum(),
        }
        sums: list[float] = torch.stack(list(found.values())).tolist()
        value = (losses_P.sum() / totals.user_pairs).float()
        return TaskLoss(value, losses_N, dict(zip(found, sums, strict=True)))


def encode_pairs(codec: ChatCodec, rows: Sequence[PreferenceRow], *, max_tokens: int) -> Dataset:
    """Encodes preference rows for training: two rows a pair, the wanted one first.

    Raises:
        DatasetRefused: A row cannot be trained on; the message counts rows from 1.
    """
    if not rows:
        raise DatasetRefused("The training file has no rows.")
    pairs = [_encoded(codec, number, row, max_tokens) for number, row in enumerate(rows, start=1)]
    encoded = [
        TokenRow(answer.ids, answer.positions, answer.targets, pair=number, is_rejected=is_rejected)
        for number, pair in enumerate(pairs)
        for answer, is_rejected in zip(pair, (False, True), strict=True)
    ]
    return Dataset(
        tuple(encoded),
        num_cut=sum(wanted.is_cut or other.is_cut for wanted, other in pairs),
        num_alike=sum(wanted.ids == other.ids for wanted, other in pairs),
    )


def _encoded(codec: ChatCodec, number: int, row: PreferenceRow, max_tokens: int) -> tuple[EncodedRow, EncodedRow]:
    def one(which: str, conversation: ChatRow) -> EncodedRow:
        try:
            return codec.encode_row(conversation, max_tokens=max_tokens)
        except ModelingError as error:
            raise DatasetRefused(f"Row {number}, {which} answer: {error}") from error

    return one("preferred", row.preferred_row), one("rejected", row.rejected_row)


def _log_probabilities(losses_N: torch.Tensor, rows: Sequence[TokenRow]) -> torch.Tensor:
    """Of each row's answer as a whole: float64 [R]."""
    parts = torch.split(losses_N.double(), [len(row.positions) for row in rows])
    return -torch.stack([part.sum() for part in parts])


def _places(rows: Sequence[TokenRow]) -> tuple[list[int], list[int]]:
    """Where among the rows each pair's wanted answer is, and where its other one."""
    wanted = [place for place, row in enumerate(rows) if not row.is_rejected]
    others = {row.pair: place for place, row in enumerate(rows) if row.is_rejected}
    return wanted, [others[rows[place].pair] for place in wanted]
