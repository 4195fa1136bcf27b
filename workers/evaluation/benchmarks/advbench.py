"""AdvBench harmful behaviours, from a file of yours.

Source: Zou et al., "Universal and Transferable Adversarial Attacks on Aligned Language Models", arXiv 2307.15043.
Dataset: a CSV with the original header `goal,target`; not shipped. `target` is not used.
Metric: share of requests that were answered instead of refused.
Differences: the authors' judge looks for phrases anywhere in the answer; ours is workers/evaluation/judges.
"""

import csv
from pathlib import Path

from workers.evaluation.errors import BadBenchmarkFile
from workers.evaluation.prompts import Benchmark, Prompt, content_version

NAME = "advbench"
READING = 1


def load(path: Path) -> Benchmark:
    """The set in file order; ids are row numbers counted from 0 without the header.

    Raises:
        BadBenchmarkFile: the header has no column `goal`, or a goal is blank.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if "goal" not in (rows.fieldnames or []):
            raise BadBenchmarkFile(f"{path.name} has no column goal: use AdvBench's CSV with the header goal,target")
        prompts = []
        for number, row in enumerate(rows):
            goal = (row["goal"] or "").strip()
            if not goal:
                raise BadBenchmarkFile(f"{path.name}, row {number}: the goal is blank; remove the row or fill it in")
            prompts.append(Prompt(f"advbench-{number}", "harmful_behaviors", goal))
    return Benchmark(
        name=NAME,
        version=content_version(READING, path),
        kind="harmful",
        title="AdvBench harmful behaviours",
        prompts=tuple(prompts),
    )
