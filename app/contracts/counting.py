"""What is asked of `python -m workers.counting`, and what it answers: how a file's rows become tokens."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from app.contracts.value import Value


class CountSpec(Value):
    """A file and the model whose tokens it becomes. Paths are local and ours."""

    model_dir: Path
    """Of a prepared base: tokenizer, chat template and configuration are read, the weights are not."""
    file: Path
    max_row_tokens: int = Field(ge=1)
    """Where training cuts rows, unless the model sees fewer tokens."""
    num_previews: int = Field(default=0, ge=0)
    """Rows to show, from the beginning ..."""
    is_preview_only: bool = False
    """... and no others to read."""


class TokenSpan(Value):
    """A stretch of a row's text, control tokens among it."""

    text: str
    num_tokens: int
    is_trained: bool
    """Whether the model learns to write it; all else it only reads."""


class PreviewRow(Value):
    """A row as training sees it."""

    line: int
    answer: Literal["preferred", "non_preferred"] | None
    """Which of a preference's two answers this is with; None in files of other formats."""
    num_tokens: int
    num_trained_tokens: int
    is_cut: bool
    """The row is longer than training takes, and its end is left out."""
    spans: tuple[TokenSpan, ...]
    problem: str | None
    """Why the row cannot be trained on; it then has no spans, and a job on the file would fail."""


class TokenCounts(Value):
    """Sums over the rows of a file, each counted as it is trained: once, and cut where it is too long. A preference
    counts as two rows, one with each answer."""

    num_rows: int
    """Lines with a row."""
    num_tokens: int
    num_trained_tokens: int
    """Tokens that are predicted: a report's and a job's `trained_tokens`, for one epoch."""
    num_cut_rows: int
    longest_row_tokens: int
    """After the cut."""
    row_limit: int
    """Tokens that a row may have on this model."""


class CountProblem(Value):
    """The first row that cannot be trained on."""

    line: int
    message: str


class CountResult(Value):
    """Counts, unless a row cannot be trained on or only previews were asked for."""

    counts: TokenCounts | None = None
    problem: CountProblem | None = None
    previews: tuple[PreviewRow, ...] = ()
