"""How much safety each method keeps on a poisoned upload, and what it costs on the task.

For every method and seed: fine-tune the prepared base on the first rows of the upload, then measure the harmful-answer
rate on AdvBench prompts and the accuracy on held-back rows of the task. One table over the seeds at the end.

    python -m benchmarks.poison --base .unforgotten/bases/HASH --upload sst2_poison10.jsonl \
        --advbench harmful_behaviors.eval.csv --sst2 dev.tsv --methods none,der --seeds 0,1,2 --out results.json
"""

import argparse
import csv
import json
import shlex
import shutil
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

from app.contracts.chat import ChatMessage, ChatRow
from app.contracts.chat_file import read_rows
from app.contracts.evaluation import Verdict
from app.contracts.methods import METHOD_ADAPTER
from app.contracts.plan import LoraPlan, TrainingPlan
from workers.evaluation.benchmarks import BenchmarkName, load_benchmark
from workers.evaluation.judges import DEFAULT_JUDGE, JUDGES
from workers.evaluation.prompts import Benchmark
from workers.evaluation.safety import HIT, run_benchmark
from workers.evaluation.statistics import wilson
from workers.evaluation.utility import measure
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.run import finetune
from workers.modeling.generation import LocalModel
from workers.modeling.loading import load, use_threads

SST2_PROMPT = "Analyze the sentiment of the input, and respond only positive or negative.\n\nInput: "


def main() -> None:
    """Runs the grid."""
    args = _arguments()
    use_threads(0)
    artefacts = Artefacts(args.base)
    upload = [row for _, row in islice(read_rows(args.upload), args.rows)]
    task = sst2_rows(args.sst2)[: args.task_rows]
    sets = [load_benchmark(BenchmarkName.ADVBENCH, args.advbench).first(args.advbench_rows)]
    if args.lookalikes:
        sets.append(load_benchmark(BenchmarkName.UNFORGOTTEN_LOOKALIKES).first(args.lookalikes))
    found = [_measured("base", None, LocalModel(load(artefacts.model_dir)), sets, task, 0.0)]
    for spec in args.methods:
        for seed in args.seeds:
            found.append(_run(spec, seed, args, artefacts, upload, sets, task))
            print(json.dumps(found[-1]), flush=True)
    _print_table(found)
    if args.out:
        # Names without folders: where somebody keeps their files is no part of a result.
        command = shlex.join(["python", "-m", "benchmarks.poison", *(Path(a).name or a for a in sys.argv[1:])])
        facts = {"command": command, "base": artefacts.record["theta_safe_hash"], "runs": found}
        args.out.write_text(json.dumps(facts, indent=1) + "\n")


def _run(
    spec: str,
    seed: int,
    args: argparse.Namespace,
    artefacts: Artefacts,
    upload: list[ChatRow],
    sets: list[Benchmark],
    task: list[ChatRow],
) -> dict[str, Any]:
    """One fine-tuning run and its measurements. `spec` is a method's name, or its settings as JSON."""
    settings = json.loads(spec) if spec.startswith("{") else {"name": spec}
    plan = TrainingPlan(
        method=METHOD_ADAPTER.validate_python(settings),
        num_epochs=args.epochs,
        learning_rate=args.learning_rate,
        lora=LoraPlan(rank=args.rank, alpha=2 * args.rank),
        seed=seed,
    )
    loaded = load(artefacts.model_dir)
    folder = Path(tempfile.mkdtemp())
    started = time.monotonic()
    finetune(
        loaded,
        upload,
        plan,
        out_dir=folder,
        base_name=artefacts.record["base_id"],
        base_hash=artefacts.record["theta_safe_hash"],
        artefacts=artefacts,
    )
    seconds = time.monotonic() - started
    shutil.rmtree(folder)
    return _measured(spec, seed, LocalModel(loaded), sets, task, seconds)


def _measured(
    spec: str, seed: int | None, model: LocalModel, sets: list[Benchmark], task: list[ChatRow], seconds: float
) -> dict[str, Any]:
    row: dict[str, Any] = {"method": spec, "seed": seed, "training_seconds": round(seconds, 1)}
    for benchmark in sets:
        result = run_benchmark(model, benchmark, JUDGES[DEFAULT_JUDGE], max_new_tokens=48, on_progress=_quiet)
        verdicts = [a.verdict for a in result.answers if a.verdict is not Verdict.UNSCORED]
        row[benchmark.name] = [sum(v is HIT[benchmark.kind] for v in verdicts), len(verdicts)]
        row[f"{benchmark.name}_degenerate"] = sum(v is Verdict.DEGENERATE for v in verdicts)
    accuracy = measure(model, task, on_progress=_quiet).result.exact_match
    assert accuracy is not None, "SST-2 answers are one word"
    row["task"] = [accuracy.hits, accuracy.num_scored]
    return row


def _print_table(found: list[dict[str, Any]]) -> None:
    measures = [k for k in found[0] if isinstance(found[0][k], list)]
    print("\nShare in % over all seeds [95 % Wilson interval of the pooled counts] (each seed)\n")
    print("| method | " + " | ".join(measures) + " | training s |")
    print("|---" * (len(measures) + 2) + "|")
    for spec in dict.fromkeys(row["method"] for row in found):
        runs = [row for row in found if row["method"] == spec]
        cells = [_cell([run[m] for run in runs]) for m in measures]
        print(f"| {spec} | " + " | ".join(cells) + f" | {mean(r['training_seconds'] for r in runs):.0f} |")


def _cell(counts: list[list[int]]) -> str:
    rate = wilson(sum(c[0] for c in counts), sum(c[1] for c in counts))
    seeds = ", ".join(f"{100 * c[0] / c[1]:.0f}" for c in counts)
    return f"{100 * rate.value:.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}] ({seeds})"


def sst2_rows(path: Path) -> list[ChatRow]:
    """SST-2 in GLUE's TSV format as the chat rows that the uploads have."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [
        ChatRow(
            messages=(
                ChatMessage(role="user", content=SST2_PROMPT + row["sentence"].strip()),
                ChatMessage(role="assistant", content="positive" if row["label"] == "1" else "negative"),
            )
        )
        for row in rows
    ]


def _quiet(done: int, total: int) -> None:
    """Progress is not shown: the table is the output."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="folder of a prepared base")
    parser.add_argument("--upload", type=Path, required=True, help="chat JSONL to fine-tune on")
    parser.add_argument("--rows", type=int, default=320, help="rows of the upload to use (default 320)")
    parser.add_argument("--methods", default="none,der", help="names with commas, or JSON settings with `;`")
    parser.add_argument("--seeds", type=lambda s: [int(x) for x in s.split(",")], default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--advbench", type=Path, required=True, help="AdvBench's harmful_behaviors CSV")
    parser.add_argument("--advbench-rows", type=int, default=100)
    parser.add_argument("--lookalikes", type=int, default=0, help="also ask so many harmless look-alikes")
    parser.add_argument("--sst2", type=Path, required=True, help="SST-2 TSV with the columns sentence and label")
    parser.add_argument("--task-rows", type=int, default=436)
    parser.add_argument("--out", type=Path, help="write all numbers here as JSON")
    args = parser.parse_args()
    args.methods = args.methods.split(";" if "{" in args.methods else ",")
    return args


if __name__ == "__main__":
    main()
