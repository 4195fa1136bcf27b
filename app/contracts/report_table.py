"""The report's main table as text: the same rows in the command line, the dashboard and the model card."""

from typing import NamedTuple

from app.contracts.evaluation import PairedDifference, Rate, Report, SafetyBenchmark, Utility, Verdict

NOT_MEASURED = "not measured"
MEASURES = {"harmful": "Harmful requests answered", "over_refusal": "Harmless requests refused"}


class TableRow(NamedTuple):
    """One measure of the base and of the tuned model."""

    measure: str
    base: str
    """E.g. "12.0 % [6.4, 21.3] (9/75)": share, 95 % interval, hits of scored."""
    tuned: str
    change: str
    """E.g. "+4.0 points [-1.2, 9.3], p = 0.25": tuned minus base, 95 % interval, exact McNemar test."""


def main_table(report: Report) -> list[TableRow]:
    """Rows for every benchmark (and its gibberish, where there is any), then for utility."""
    rows = []
    for benchmark in report.benchmarks:
        rows += [_benchmark_row(benchmark), *_degenerate_rows(benchmark)]
    return rows + _utility_rows(report.utility)


def rate_text(rate: Rate | None) -> str:
    """A share with its interval and counts."""
    if rate is None:
        return NOT_MEASURED
    interval = f"[{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
    return f"{100 * rate.value:.1f} % {interval} ({rate.hits}/{rate.num_scored})"


def difference_text(difference: PairedDifference | None) -> str:
    """A paired difference in percentage points, with its interval and p value."""
    if difference is None:
        return NOT_MEASURED
    interval = f"[{_signed(100 * difference.low)}, {_signed(100 * difference.high)}]"
    return f"{_signed(100 * difference.value)} points {interval}, {p_text(difference.p_value)}"


def p_text(p_value: float) -> str:
    """A p value as it is printed; a tiny one is not printed as zero."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def _benchmark_row(benchmark: SafetyBenchmark) -> TableRow:
    subset = f", first {benchmark.num_prompts}" if benchmark.is_subset else ""
    return TableRow(
        f"{MEASURES[benchmark.kind]}: {benchmark.title}{subset}",
        rate_text(benchmark.base),
        rate_text(benchmark.tuned),
        difference_text(benchmark.difference),
    )


def _degenerate_rows(benchmark: SafetyBenchmark) -> list[TableRow]:
    """A collapsed model answers no harmful request and refuses no harmless one: it must not look like a safe one."""
    base, tuned = (v.get(Verdict.DEGENERATE, 0) for v in (benchmark.base_verdicts, benchmark.tuned_verdicts))
    if not base and not tuned:
        return []
    num_prompts = benchmark.num_prompts
    return [
        TableRow(
            f"Empty or gibberish: {benchmark.title}",
            f"{base}/{num_prompts}",
            f"{tuned}/{num_prompts}",
            f"{tuned - base:+d} answers" if tuned != base else "0 answers",
        )
    ]


def _utility_rows(utility: Utility) -> list[TableRow]:
    base, tuned = utility.base, utility.tuned
    rows = []
    if base.exact_match is not None or tuned.exact_match is not None:
        rows.append(
            TableRow(
                "Task: exact answers",
                rate_text(base.exact_match),
                rate_text(tuned.exact_match),
                difference_text(utility.difference),
            )
        )
    rows.append(
        TableRow(
            "Task: token accuracy",
            f"{100 * base.token_accuracy:.1f} %",
            f"{100 * tuned.token_accuracy:.1f} %",
            f"{_signed(100 * (tuned.token_accuracy - base.token_accuracy))} points",
        )
    )
    rows.append(
        TableRow("Task: loss", f"{base.loss:.3f}", f"{tuned.loss:.3f}", f"{_signed(tuned.loss - base.loss, places=3)}")
    )
    return rows


def _signed(value: float, places: int = 1) -> str:
    rounded = round(value, places)
    # Neither "+0.0" nor "-0.0": no change has no direction.
    return f"{rounded:+.{places}f}" if rounded else f"{0:.{places}f}"
