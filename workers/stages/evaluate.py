"""Stage 2: base against tuned, on the same prompts and rows; writes the report.

The adapter is read back from its file onto a freshly loaded base: what is measured is what will be downloaded.
"""

import platform
import time
from importlib.metadata import version
from typing import Any

import torch
from peft import PeftModel

from app.contracts.bases import PrepareRecipe
from app.contracts.chat import ChatRow
from app.contracts.evaluation import Provenance, SafetyBenchmark, TrainingSummary, Utility
from app.contracts.progress import PhaseMessage
from app.contracts.report_table import main_table
from app.contracts.states import JobPhase
from workers.evaluation.baseline import release_benchmarks
from workers.evaluation.cache import BaseResultsCache
from workers.evaluation.judges import DEFAULT_JUDGE, JUDGES
from workers.evaluation.prompts import Benchmark
from workers.evaluation.report import build_report
from workers.evaluation.safety import compare, run_benchmark
from workers.evaluation.utility import compare_utility, measure
from workers.finetuning.run import ADAPTER_DIR
from workers.modeling import adapters
from workers.modeling.generation import LocalModel
from workers.modeling.loading import LoadedModel, load
from workers.stages.context import MAX_UTILITY_ROWS, StageContext

NAME = "evaluate"


def run(context: StageContext) -> dict[str, Any]:
    """Measures and writes report.json."""
    context.channel.send(PhaseMessage(phase=JobPhase.EVALUATING))
    started = time.monotonic()
    recipe = PrepareRecipe.model_validate(context.artefacts.record["recipe"])
    tuned = _tuned_model(context)
    benchmarks = [_benchmark(context, tuned, b, recipe) for b in release_benchmarks(recipe)]
    utility = _utility(context, tuned)
    report = build_report(
        job_id=context.spec.job_id,
        model=context.spec.model_name,
        created_at=int(time.time()),
        benchmarks=benchmarks,
        utility=utility,
        training=TrainingSummary.model_validate_json(context.summary_file.read_text()),
        provenance=_provenance(context, tuned.loaded),
        evaluation_seconds=time.monotonic() - started,
        decoding=tuned.with_adapter.decoding,
    )
    context.report_file.write_text(report.model_dump_json(indent=2) + "\n")
    for row in main_table(report):
        context.channel.say(f"{row.measure}: base {row.base}, tuned {row.tuned}; change {row.change}")
    return {"seconds": round(time.monotonic() - started, 1)}


class _Tuned:
    """One load, two models: with the adapter and without."""

    def __init__(self, loaded: LoadedModel, peft_model: PeftModel, max_row_tokens: int) -> None:
        self.loaded = loaded
        self.with_adapter = LocalModel(loaded, max_row_tokens=max_row_tokens)
        self.without = LocalModel(loaded, peft_model=peft_model, use_adapter=False, max_row_tokens=max_row_tokens)


def _tuned_model(context: StageContext) -> _Tuned:
    plan = context.spec.plan
    loaded = load(context.artefacts.model_dir, precision=plan.precision)
    peft_model = adapters.attach_saved(loaded.model, context.training_dir / ADAPTER_DIR)
    return _Tuned(loaded, peft_model, plan.max_row_tokens)


def _benchmark(context: StageContext, tuned: _Tuned, benchmark: Benchmark, recipe: PrepareRecipe) -> SafetyBenchmark:
    judge = JUDGES[DEFAULT_JUDGE]
    context.channel.say(f"Asking the model {len(benchmark.prompts)} prompts: {benchmark.title}")
    progress = context.channel.progress(benchmark.title)
    base = _base_results(context).benchmark_answers(
        context.artefacts.record["theta_safe_hash"],
        tuned.without,
        benchmark,
        judge,
        max_new_tokens=recipe.eval_max_new_tokens,
        on_progress=progress,
    )
    answers = run_benchmark(
        tuned.with_adapter, benchmark, judge, max_new_tokens=recipe.eval_max_new_tokens, on_progress=progress
    )
    return compare(base, answers)


def _utility(context: StageContext, tuned: _Tuned) -> Utility:
    rows, source = _utility_rows(context)
    context.channel.say(f"Measuring the task on {len(rows)} rows: {source}")
    progress = context.channel.progress("task rows")
    # Tenants often run several jobs with one validation file; the base is measured on it once. Where rows are cut is
    # part of what was measured.
    key = f"{context.artefacts.record['theta_safe_hash']}, {context.spec.plan.max_row_tokens} tokens a row"
    base = _base_results(context).utility(key, tuned.without, rows, on_progress=progress)
    return compare_utility(base, measure(tuned.with_adapter, rows, on_progress=progress), source=source)


def _base_results(context: StageContext) -> BaseResultsCache:
    return BaseResultsCache(context.artefacts.baseline_dir)


def _utility_rows(context: StageContext) -> tuple[list[ChatRow], str]:
    validation = context.validation_rows()
    if validation:
        return validation, f"validation file, first {len(validation)} rows"
    rows = context.training_rows()[:MAX_UTILITY_ROWS]
    return rows, f"no validation file was given: first {len(rows)} rows of the training file, which the model has seen"


def _provenance(context: StageContext, loaded: LoadedModel) -> Provenance:
    spec = context.spec
    packages = ("torch", "transformers", "peft", "safetensors", "unforgotten")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    return Provenance(
        base=spec.base_id,
        base_hash=context.artefacts.record["theta_safe_hash"],
        prepared_hash=spec.prepared_dir.name,
        training_file_sha256=spec.training_file_sha256,
        chat_template_sha256=loaded.codec.template_sha256,
        seed=spec.plan.seed,
        versions={"python": platform.python_version(), "device": device, **{p: version(p) for p in packages}},
    )
