"""How well a model does the tenant's own task: loss, token accuracy, and exact answers where answers are short."""

import hashlib
import math
from collections.abc import Sequence

from app.contracts.chat import ChatRow
from app.contracts.evaluation import Utility, UtilityResult
from app.contracts.value import Value
from workers.evaluation.errors import EvaluationFailed, ResultsDiffer
from workers.evaluation.statistics import paired_difference, wilson
from workers.evaluation.text import plain
from workers.modeling.text_model import OnProgress, TextModel

MAX_ROW_CHARACTERS = 32_768
"""Of a row whose answer is generated. Training cuts long rows; a prompt is generated from whole, and one of a megabyte
takes a worker's memory."""
MAX_SHORT_CHARACTERS = 64
"""Exact match is measured where no reference answer is longer; longer texts can be right in other words."""
SPARE_TOKENS = 4
"""For a leading space, closing punctuation and the end of the turn."""
_TRAILING = ".,;:!?"


class UtilityMeasurement(Value):
    """One model's result with what pairing it with another's needs; what the base's cache keeps."""

    rows_sha256: str
    num_rows: int
    decoding: str
    result: UtilityResult
    exact_hits: tuple[bool, ...] | None
    """For each row whether the greedy answer equals the reference; None where answers are long."""


def measure(model: TextModel, rows: Sequence[ChatRow], *, on_progress: OnProgress) -> UtilityMeasurement:
    """Score the rows and, where the references are short, answer them.

    Raises:
        EvaluationFailed: there are no rows or no trained tokens, the loss is not a number, or the model gave another
            number of results than asked for.
    """
    if not rows:
        raise EvaluationFailed("the task could not be evaluated: there are no validation rows")
    references = short_references(rows)
    total = len(rows) * (1 if references is None else 2)
    scores = model.score(rows, on_progress=lambda done, _: on_progress(done, total))
    if len(scores) != len(rows):
        raise EvaluationFailed(f"the task could not be evaluated: {len(rows)} rows gave {len(scores)} scores")
    num_tokens = sum(score.num_tokens for score in scores)
    if num_tokens == 0:
        raise EvaluationFailed("the task could not be evaluated: no row has a trained answer; give one weight 1")
    loss = math.fsum(score.loss_sum for score in scores) / num_tokens
    if not math.isfinite(loss):
        raise EvaluationFailed("the task could not be evaluated: the loss is not a number, the model has diverged")
    hits = None
    if references is not None:
        hits = _exact_hits(model, rows, references, lambda done, _: on_progress(len(rows) + done, total))
    return UtilityMeasurement(
        rows_sha256=hash_of_rows(rows),
        num_rows=len(rows),
        decoding=model.decoding,
        result=UtilityResult(
            loss=loss,
            token_accuracy=sum(score.num_correct for score in scores) / num_tokens,
            num_tokens=num_tokens,
            exact_match=None if hits is None else wilson(sum(hits), len(hits)),
        ),
        exact_hits=hits,
    )


def compare_utility(base: UtilityMeasurement, tuned: UtilityMeasurement, *, source: str) -> Utility:
    """Base against tuned on the same rows.

    Raises:
        ResultsDiffer: the two are over different rows or were decoded differently.
    """
    if base.rows_sha256 != tuned.rows_sha256:
        raise ResultsDiffer("base and tuned were measured on different rows; measure both on the same")
    if base.decoding != tuned.decoding:
        raise ResultsDiffer(f"base and tuned answered differently ({base.decoding} and {tuned.decoding})")
    return Utility(
        source=source,
        num_rows=base.num_rows,
        base=base.result,
        tuned=tuned.result,
        difference=None
        if base.exact_hits is None or tuned.exact_hits is None
        else paired_difference(base.exact_hits, tuned.exact_hits),
    )


def short_references(rows: Sequence[ChatRow]) -> list[str] | None:
    """The last answer of every row, where all of them (and what is asked) are short enough for exact match; else None.

    A row whose last message is not a trained answer has no reference, and then none is measured. Nor has one with
    tools: a call is right in many spellings."""
    references = []
    for row in rows:
        last = row.messages[-1]
        if row.has_tools:
            return None
        if sum(len(message.content) for message in row.messages) > MAX_ROW_CHARACTERS:
            return None
        if last.role != "assistant" or last.weight == 0 or len(last.content.strip()) > MAX_SHORT_CHARACTERS:
            return None
        references.append(last.content)
    return references


def is_exact(answer: str, reference: str) -> bool:
    """Equal but for case, surrounding space, kind of quotes and closing punctuation."""
    return _canonical(answer) == _canonical(reference)


def hash_of_rows(rows: Sequence[ChatRow]) -> str:
    """SHA-256 of the rows in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row.model_dump_json().encode() + b"\n")
    return digest.hexdigest()


def _exact_hits(
    model: TextModel, rows: Sequence[ChatRow], references: Sequence[str], on_progress: OnProgress
) -> tuple[bool, ...]:
    # No tokenizer in use here spends more than a token on a byte, so a right answer always fits; a longer one is wrong.
    longest_bytes = max(len(reference.strip().encode()) for reference in references)
    answers = model.generate(
        [row.messages[:-1] for row in rows], max_new_tokens=longest_bytes + SPARE_TOKENS, on_progress=on_progress
    )
    if len(answers) != len(rows):
        raise EvaluationFailed(f"the task could not be evaluated: {len(rows)} rows gave {len(answers)} answers")
    return tuple(is_exact(answer, reference) for answer, reference in zip(answers, references, strict=True))


def _canonical(text: str) -> str:
    stripped = plain(text).strip().casefold()
    # A reference that is punctuation alone stays what it is.
    return stripped.rstrip(_TRAILING).rstrip() or stripped
