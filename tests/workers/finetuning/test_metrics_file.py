"""step_metrics.csv opens in a spreadsheet: there is nothing in it that one would carry out."""

import csv
import re
from pathlib import Path

import pytest

from app.contracts.methods import METHOD_CONFIGS
from workers.finetuning.loop import StepMetrics
from workers.finetuning.run import write_metrics

NUMBER = re.compile(r"|-?[0-9.]+(e[+-][0-9]+)?|nan|-?inf")
NAME = re.compile(r"[a-z][a-z0-9_]*")


def step(number: int, *, loss: float, counters: dict[str, float]) -> StepMetrics:
    return StepMetrics(
        step=number,
        loss=loss,
        token_accuracy=0.5,
        gradient_norm=1.0,
        learning_rate=1e-4,
        trained_tokens=10,
        processed_tokens=20,
        replayed_tokens=5,
        counters=counters,
    )


def test_every_cell_is_a_number_or_empty_and_every_column_a_plain_name(tmp_path: Path) -> None:
    history = [
        step(1, loss=-0.5, counters={"conflicts": 7.0}),
        step(2, loss=float("nan"), counters={"penalty": -1e-30}),
    ]
    write_metrics(tmp_path / "step_metrics.csv", history)
    with (tmp_path / "step_metrics.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert len(rows) == 2
    assert all(NAME.fullmatch(name) for name in header)
    assert all(NUMBER.fullmatch(cell) for row in rows for cell in row)


@pytest.mark.parametrize("name", METHOD_CONFIGS)
def test_a_methods_counters_begin_with_its_plain_name(name: str) -> None:
    assert NAME.fullmatch(name)
