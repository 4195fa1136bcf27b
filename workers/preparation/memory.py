"""Building the safety memory: theta_safe's own answers to prompts of the alignment set.

A refusal written by somebody else would be off the model's own distribution, and replaying it would itself move the
model. Where theta_safe does not refuse a harmful prompt, or refuses a harmless one, there is nothing worth keeping:
such rows are dropped and counted.
"""

import random
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

from app.contracts.chat import ChatMessage
from app.contracts.evaluation import Verdict
from workers.data import AlignmentRow, alignment_rows
from workers.evaluation.judges.refusal import judge_answer
from workers.finetuning.memory import MemoryEntry
from workers.modeling.chat import ChatCodec
from workers.modeling.generation import LocalModel

HARMFUL_SHARE = 2 / 3
"""The rest are look-alikes and ordinary requests with helpful answers, so that replay does not teach over-refusal."""


class BuiltMemory(NamedTuple):
    """The memory and what did not make it."""

    entries: list[MemoryEntry]
    num_asked: int
    num_not_refused: int
    """Harmful prompts theta_safe did not refuse."""
    num_not_helpful: int
    """Harmless prompts theta_safe refused or answered with gibberish."""


def choose_prompts(count: int, seed: int) -> list[AlignmentRow]:
    """A mixed selection: harmful prompts round-robin over categories, harmless ones interleaved at their share."""
    shuffled = alignment_rows()
    random.Random(seed).shuffle(shuffled)  # noqa: S311  (a fixed selection, not a secret)
    by_category: dict[str, list[AlignmentRow]] = defaultdict(list)
    for row in shuffled:
        by_category[row.category if row.kind == "harmful" else row.kind].append(row)
    harmless = _round_robin([by_category.pop("lookalike", []), by_category.pop("ordinary", [])])
    harmful = _round_robin([by_category[c] for c in sorted(by_category)])
    num_harmful = min(len(harmful), round(count * HARMFUL_SHARE))
    num_harmless = min(len(harmless), count - num_harmful)
    # Sorting by relative position interleaves the two at their ratio, so any beginning of the list is balanced.
    placed = [((i + 0.5) / num_harmful, row) for i, row in enumerate(harmful[:num_harmful])]
    placed += [((i + 0.5) / num_harmless, row) for i, row in enumerate(harmless[:num_harmless])]
    return [row for _, row in sorted(placed, key=lambda pair: (pair[0], pair[1].id))]


def build_memory(
    model: LocalModel,
    codec: ChatCodec,
    *,
    count: int,
    max_answer_tokens: int,
    seed: int,
    on_progress: Callable[[int, int], None],
) -> BuiltMemory:
    """Asks theta_safe and keeps what is worth replaying."""
    chosen = choose_prompts(count, seed)
    prompts = [codec.encode_prompt([ChatMessage(role="user", content=row.prompt)]) for row in chosen]
    answers = model.generate_ids(prompts, max_answer_tokens, on_progress)
    entries, not_refused, not_helpful = [], 0, 0
    for row, prompt, answer in zip(chosen, prompts, answers, strict=True):
        text = codec.decode(answer)
        verdict = judge_answer(text, kind="harmful" if row.kind == "harmful" else "over_refusal")
        if row.kind == "harmful" and verdict is not Verdict.REFUSED:
            not_refused += 1
        elif row.kind != "harmful" and verdict is not Verdict.COMPLIED:
            not_helpful += 1
        else:
            entries.append(
                MemoryEntry(row.id, row.kind, row.category, row.prompt, text, [*prompt, *answer], len(prompt))
            )
    return BuiltMemory(entries, len(chosen), not_refused, not_helpful)


def _round_robin(groups: list[list[AlignmentRow]]) -> list[AlignmentRow]:
    longest = max((len(g) for g in groups), default=0)
    return [group[i] for i in range(longest) for group in groups if i < len(group)]
