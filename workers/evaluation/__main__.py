"""`python -m workers.evaluation`: judge answers in a file, without a model and without the service."""

import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.contracts.evaluation import Verdict
from app.contracts.report_table import rate_text
from app.contracts.value import Value
from workers.evaluation.benchmarks import FROM_FILE, SHIPPED
from workers.evaluation.judges import DEFAULT_JUDGE, JUDGES, JudgeName
from workers.evaluation.judges.judge import JudgedItem
from workers.evaluation.prompts import Kind
from workers.evaluation.safety import HIT
from workers.evaluation.statistics import rate_or_none
from workers.evaluation.text import first_words

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Judge answers and list benchmarks.")


class AnswerLine(Value):
    """One line of a file of answers."""

    answer: str | None
    prompt: str = ""
    kind: Kind = "harmful"
    """Of the request: `harmful`, or `over_refusal` for a harmless one."""
    verdict: Verdict | None = None
    """What a person says; compared with the judge's verdict."""


@app.command()
def judge(
    file: Annotated[
        Path,
        typer.Argument(
            exists=True, dir_okay=False, help='JSONL: {"answer", and optionally "prompt", "kind", "verdict"} a line.'
        ),
    ],
    judge_name: Annotated[JudgeName, typer.Option("--judge", help="Which judge.")] = DEFAULT_JUDGE,
    show: Annotated[int, typer.Option(min=0, help="Also list the first answers with their verdicts.")] = 0,
) -> None:
    """Judge the answers in FILE and print a table; where lines have a verdict, also how often the judge agrees."""
    console = Console()
    lines = _read(file)
    chosen = JUDGES[judge_name]
    verdicts = chosen.judge([JudgedItem(line.prompt, line.answer, line.kind) for line in lines])
    judged = list(zip(lines, verdicts, strict=True))
    console.print(_summary(judged, chosen.label))
    if show:
        console.print(_listing(judged[:show]))
    labelled = [(line, verdict) for line, verdict in judged if line.verdict is not None]
    agreement = rate_or_none(sum(line.verdict is verdict for line, verdict in labelled), len(labelled))
    if agreement is not None:
        console.print(f"Agreement with the file's verdicts: {rate_text(agreement)}", markup=False)
        differing = [(line, verdict) for line, verdict in labelled if line.verdict is not verdict]
        if differing:
            console.print(_listing(differing))


@app.command()
def benchmarks() -> None:
    """List the benchmarks."""
    table = Table("Name", "Kind", "Prompts", "Version")
    for name, load in SHIPPED.items():
        benchmark = load()
        table.add_row(name.value, benchmark.kind, str(len(benchmark.prompts)), benchmark.version)
    for name in FROM_FILE:
        table.add_row(name.value, "", "", "from a CSV of yours")
    Console().print(table)


def _read(file: Path) -> list[AnswerLine]:
    lines = []
    for number, text in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
        if not text.strip():
            continue
        try:
            lines.append(AnswerLine.model_validate(json.loads(text)))
        except (json.JSONDecodeError, ValidationError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise typer.BadParameter(
                f'{file.name}, line {number}: write an object with at least "answer" ({reason})'
            ) from error
    if not lines:
        raise typer.BadParameter(f"{file.name} has no answers; write one JSON object a line")
    return lines


def _summary(judged: list[tuple[AnswerLine, Verdict]], label: str) -> Table:
    table = Table("Kind", *(verdict.value for verdict in Verdict), "Rate", title=f"Judged by {label}")
    kinds: tuple[Kind, ...] = ("harmful", "over_refusal")
    for kind in kinds:
        counts = Counter(verdict for line, verdict in judged if line.kind == kind)
        num_scored = counts.total() - counts[Verdict.UNSCORED]
        if counts:
            rate = rate_or_none(counts[HIT[kind]], num_scored)
            table.add_row(kind, *(str(counts[verdict]) for verdict in Verdict), f"{HIT[kind].value}: {rate_text(rate)}")
    return table


def _listing(judged: list[tuple[AnswerLine, Verdict]]) -> Table:
    table = Table("Kind", "Judge", "File", "Answer")
    for line, verdict in judged:
        shown = escape(first_words(line.answer or "", 12, 120))
        table.add_row(line.kind, verdict.value, line.verdict.value if line.verdict else "", shown)
    return table


if __name__ == "__main__":
    app(prog_name="python -m workers.evaluation")
