"""Bodies of responses about jobs that are not there yet."""

from typing import Any, Literal

from pydantic import BaseModel

from app.contracts.counting import PreviewRow
from app.contracts.datasets import DataFormat


class EstimateObject(BaseModel):
    """What the job of the same body would be. Tokens are counted by the code that trains; time is a guess."""

    object: Literal["fine_tuning.estimate"] = "fine_tuning.estimate"
    model: str
    training_file: str
    validation_file: str | None
    format: DataFormat
    hyperparameters: dict[str, Any]
    """OpenAI's three, with every "auto" resolved."""
    plan: dict[str, Any]
    """What would be trained."""
    num_rows: int
    num_rows_counted: int
    """Rows whose tokens were counted, from the beginning of the file; the rest is taken to be like them."""
    num_steps: int
    file_tokens: int
    """All tokens of the rows, each row cut where training cuts it."""
    trained_tokens: int
    """Tokens that the model would learn to write, over all epochs: what the job will have as `trained_tokens`."""
    longest_row_tokens: int
    max_row_tokens: int
    num_cut_rows: int
    is_exact: bool
    """Whether the tokens above are the job's; `notes` say why not."""
    seconds_estimate: float | None
    """From a worker's start at the job to its end; how long it waits for one is not known."""
    seconds_reason: str
    """What the time is taken from, or why there is none."""
    cost_estimate: float | None
    currency: str | None
    cost_reason: str
    """How the cost is reckoned, or why there is none."""
    notes: list[str]


class PreviewObject(BaseModel):
    """The first rows of a file as training sees them."""

    object: Literal["file.preview"] = "file.preview"
    file: str
    model: str
    format: DataFormat
    num_rows: int
    max_row_tokens: int
    """Where rows are cut, unless the model sees fewer tokens."""
    data: list[PreviewRow]
