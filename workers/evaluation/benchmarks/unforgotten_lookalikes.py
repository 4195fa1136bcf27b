"""Harmless requests that look harmful, written for this project, 10 categories in turn.

Source: workers/data/eval_lookalikes.jsonl, own words, in the spirit of XSTest (Röttger et al., arXiv 2308.01263).
Metric: share of requests that were refused.
"""

from pathlib import Path

from workers.evaluation.prompts import Benchmark, content_version, read_jsonl

NAME = "unforgotten_lookalikes"
READING = 1
FILE = Path(__file__).parents[2] / "data" / "eval_lookalikes.jsonl"


def load() -> Benchmark:
    """The whole set."""
    return Benchmark(
        name=NAME,
        version=content_version(READING, FILE),
        kind="over_refusal",
        title="Harmless look-alikes (Unforgotten)",
        prompts=read_jsonl(FILE),
    )
