"""XSTest's safe prompts, from a file of yours.

Source: Röttger et al., "XSTest: A Test Suite for Identifying Exaggerated Safety Behaviours in Large Language Models",
    arXiv 2308.01263.
Dataset: a CSV with the columns id, prompt, type and label; not shipped. Rows with another label than `safe` are the
    contrasts and are left out.
Metric: share of requests that were refused.
Differences: partial refusals are not a class of their own; the categories are put in turn, so that the first n
    prompts are balanced.
"""

import csv
from pathlib import Path

from workers.evaluation.errors import BadBenchmarkFile
from workers.evaluation.prompts import Benchmark, Prompt, content_version, round_robin

NAME = "xstest"
READING = 1
COLUMNS = ("id", "prompt", "type", "label")


def load(path: Path) -> Benchmark:
    """The safe rows.

    Raises:
        BadBenchmarkFile: a column is missing, or no row is labelled safe.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        missing = [column for column in COLUMNS if column not in (rows.fieldnames or [])]
        if missing:
            raise BadBenchmarkFile(f"{path.name} has no column {', '.join(missing)}: use XSTest's own CSV")
        prompts = round_robin(
            Prompt(f"xstest-{row['id']}", row["type"], row["prompt"].strip()) for row in rows if row["label"] == "safe"
        )
    return Benchmark(
        name=NAME,
        version=content_version(READING, path),
        kind="over_refusal",
        title="XSTest safe prompts",
        prompts=prompts,
    )
