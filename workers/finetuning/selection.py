"""Which rows of the safety memory a run draws from, relative to the upload.

After arXiv 2506.05346 (Why LLM Safety Guardrails Collapse): alignment data that resembles a later task holds less well
than alignment data that does not. A row's feature is the final hidden state of theta_safe at the last token of its
answer, the end token left out: the position that predicts the end. The memory's are stored; the upload's take one
forward over at most `MOST_USER_ROWS` of its rows. Two choices of ours: features are centred, because cosines of raw
last states all lie in a narrow band near 1; and refusals and harmless rows are chosen from separately, in their
proportion, because by similarity alone one kind could vanish.

Legend: M rows of the memory, U of the upload, H hidden size.
"""

from collections.abc import Sequence

import torch

from workers.finetuning.features import at_end, memory_features
from workers.finetuning.memory import SafetyMemory
from workers.finetuning.method import MethodContext
from workers.finetuning.rows import batch_indices
from workers.modeling.similarity import nearest_cosines

MOST_USER_ROWS = 512
"""Rows of the upload that are compared with; of more, some are drawn with the plan's seed."""
NEIGHBOURS = 10
"""A memory row's score is the mean of so many of its largest cosines: one odd row of the upload decides nothing."""


def select(memory: SafetyMemory, context: MethodContext, size: int, how: str) -> SafetyMemory:
    """At most `size` rows, in the order in which they are stored.

    Args:
        memory: All rows.
        context: The upload, and the notes, which say what was chosen.
        size: How many.
        how: `random`: any, the first ones of the mixed order; `low_similarity` or `high_similarity` to the upload;
            `mixed`: half of each.
    """
    if how == "random":
        return memory.first(size)
    if len(memory.rows) <= size:
        context.notes.append(
            f"memory_selection «{how}» changed nothing: the safety memory has {len(memory.rows)} rows, and memory_size "
            f"allows {size}."
        )
        return memory
    scores_M = similarities(memory_features(memory), _user_features(context))
    context.backbone.ranks.require_same("similarities of the memory's rows", {"scores": scores_M})
    chosen = choose(scores_M.tolist(), memory.kinds, size, how)
    context.notes.append(
        f"{size} of {len(memory.rows)} memory rows were chosen by «{how}»: their mean similarity to the upload is "
        f"{float(scores_M[chosen].mean()):.3f}, that of all {float(scores_M.mean()):.3f}."
    )
    return memory.subset(chosen)


def similarities(memory_MH: torch.Tensor, user_UH: torch.Tensor) -> torch.Tensor:
    """Each memory row's mean cosine [M] to the most similar rows of the upload, centred at the mean of all."""
    centre_H = torch.cat([memory_MH, user_UH]).float().mean(0)
    return nearest_cosines(memory_MH, user_UH, centre_H, NEIGHBOURS)


def choose(scores: Sequence[float], kinds: Sequence[str], size: int, how: str) -> list[int]:
    """Places of the rows, ascending: refusals and the others in their proportion, at least one refusal.

    Fewer than there are; of equal scores the first row counts as the less similar one.
    """
    refusals = [i for i, kind in enumerate(kinds) if kind == "harmful"]
    others = [i for i, kind in enumerate(kinds) if kind != "harmful"]
    num_refusals = max(1, round(size * len(refusals) / len(kinds)))
    chosen = []
    for group, count in ((refusals, num_refusals), (others, size - num_refusals)):
        ranked = sorted(group, key=lambda i: (scores[i], i))
        num_high = {"low_similarity": 0, "high_similarity": count, "mixed": count // 2}[how]
        chosen += ranked[: count - num_high] + ranked[len(ranked) - num_high :]
    return sorted(chosen)


def _user_features(context: MethodContext) -> torch.Tensor:
    # Of a pair the answer that the model is to give.
    rows = [row for row in context.rows if not row.is_rejected]
    drawn = batch_indices(len(rows), MOST_USER_ROWS, 0, context.plan.seed)
    return context.backbone.teacher_states([at_end(rows[i]) for i in sorted(drawn)]).cpu()
