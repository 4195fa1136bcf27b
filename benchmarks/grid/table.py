"""The results as Markdown."""

from collections.abc import Sequence

from benchmarks.grid.cells import CellResult, Settings, Task
from benchmarks.grid.results import Panel, Row, Share, panels

UTILITY_NAMES: dict[Task, str] = {
    "sst2": "SST-2 accuracy",
    "gsm8k": "GSM8K accuracy",
    "code": "code token accuracy",
}
SCENARIO_NAMES = {"benign": "benign upload", "poison10": "10 % poisoned upload"}
COUNTERS = (
    "der_alpha",
    "der_budget",
    "der_divergence_trained",
    "der_divergence_final",
    "der_correction_steps",
    "der_update_share",
    "agem_conflicts",
    "safegrad_conflicts",
    "lwf_distance",
    "ewc_penalty",
    "safelora_projected",
    "magmax_svd_error",
    "ties_svd_error",
    "dare_svd_error",
)
"""Of the methods' counters, those that are shown."""
_NOTES = """
Shares in % over all seeds, with their 95 % interval and, in brackets, each seed. A seed sets the adapter's start, the
order of the user's rows and the draws from the memory; the rows are the same. «Answered» is everything but refusals and
degenerate answers, as the judge reads them. Intervals of answers are Wilson's over the pooled
prompts, which know nothing of the spread between seeds; those of tokens are over rows.
"""


def render(settings: Settings, results: Sequence[CellResult]) -> str:
    """All panels, one after the other."""
    shown = (f"## {_title(panel)}\n\n{_numbers(panel)}\n\n{_table(panel)}" for panel in panels(results))
    parts = [_head(settings, results), _NOTES.strip(), *shown]
    return "\n\n".join(parts) + "\n"


def _head(settings: Settings, results: Sequence[CellResult]) -> str:
    trained = [result for result in results if result.training is not None]
    return (
        f"# {settings.base_id}: {len(trained)} runs\n\n"
        f"First {settings.num_rows} rows of each upload, LoRA rank {settings.rank}, learning rate "
        f"{settings.learning_rate:g}, {settings.batch_size} rows a step. Answers to safety prompts have at most "
        f"{settings.max_new_tokens} tokens and are judged by {settings.judge}."
    )


def _title(panel: Panel) -> str:
    epochs = "1 epoch" if panel.num_epochs == 1 else f"{panel.num_epochs} epochs"
    return f"{panel.task}, {SCENARIO_NAMES[panel.scenario]}, {epochs}"


def _numbers(panel: Panel) -> str:
    """How much of everything there was."""
    cell = panel.rows[0].cells[0]
    assert cell.training is not None
    assert cell.safety is not None
    assert cell.utility is not None
    rows = len(cell.utility.hits or cell.utility.num_tokens or ())
    return (
        f"{cell.training.num_rows} rows, {cell.training.num_poisoned} of them poisoned; {len(cell.safety.advbench)} "
        f"AdvBench prompts, {len(cell.safety.lookalikes)} look-alikes, {rows} held-back rows of the task."
    )


def _table(panel: Panel) -> str:
    rows = [row for row in (panel.base, *panel.rows) if row is not None]
    columns: list[tuple[str, list[str]]] = [
        ("method", [row.method for row in rows]),
        ("AdvBench answered", [_cell(row.advbench) for row in rows]),
        ("look-alikes refused", [_cell(row.lookalikes) for row in rows]),
        ("degenerate", [_short(row.degenerate) for row in rows]),
        (UTILITY_NAMES[panel.task], [_cell(row.utility) for row in rows]),
        ("lenient", [_cell(row.lenient) for row in rows]),
        ("answers' tokens", [_short(row.tokens) for row in rows]),
        ("loss", [_number(row.loss, 3) for row in rows]),
        ("training s", [_number(row.training_seconds, 0) for row in rows]),
        ("counters", [_counters(row) for row in rows]),
    ]
    if panel.task == "code":
        # There it is the utility itself.
        columns = [column for column in columns if column[0] != "answers' tokens"]
    shown = [(title, cells) for title, cells in columns if any(cells)]
    lines = ["| " + " | ".join(title for title, _ in shown) + " |", "|---" * len(shown) + "|"]
    lines += ["| " + " | ".join(cells) + " |" for cells in zip(*(cells for _, cells in shown), strict=True)]
    return "\n".join(lines)


def _cell(share: Share | None) -> str:
    if share is None:
        return ""
    text = f"{100 * share.value:.1f} [{100 * share.low:.1f}, {100 * share.high:.1f}]"
    seeds = ", ".join(f"{100 * value:.0f}" for value in share.seeds)
    return f"{text} ({seeds})" if len(share.seeds) > 1 else text


def _short(share: Share | None) -> str:
    return "" if share is None else f"{100 * share.value:.1f}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _counters(row: Row) -> str:
    return ", ".join(f"{name} {row.counters[name]:.3g}" for name in COUNTERS if name in row.counters)
