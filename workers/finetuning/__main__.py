"""`python -m workers.finetuning`: train an adapter without the service."""

import json
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.contracts.chat_file import read_rows
from app.contracts.methods import METHOD_CONFIGS, MethodConfig
from app.contracts.plan import LoraPlan, TrainingPlan
from workers.finetuning.artefacts import RECORD_FILE, Artefacts
from workers.finetuning.errors import FinetuningError
from workers.finetuning.loop import RunControl, StepMetrics
from workers.finetuning.rows import steps_per_epoch
from workers.finetuning.run import FinetuneResult, finetune
from workers.modeling.errors import ModelingError
from workers.modeling.loading import load, use_threads
from workers.modeling.sources import content_hash

console = Console(stderr=True)


class _Bar(RunControl):
    def __init__(self, progress: Progress, num_steps: int) -> None:
        self._progress = progress
        self._task = progress.add_task("training", total=num_steps, loss="")

    def on_step(self, metrics: StepMetrics) -> None:
        self._progress.update(self._task, completed=metrics.step, loss=f"loss {metrics.loss:.3f}")


def main(
    base: Annotated[
        Path, typer.Option(exists=True, file_okay=False, help="A prepared base; for `none` any model folder.")
    ],
    data: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Training rows: chat JSONL.")],
    out: Annotated[Path, typer.Option(help="Receives adapter/, checkpoints/ and step_metrics.csv.")],
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHOD_CONFIGS)}.")] = "der",
    settings: Annotated[str, typer.Option(help='The method\'s settings as JSON, e.g. {"alpha": 4}.')] = "{}",
    validation: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Validation rows: chat JSONL.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Rows an optimizer step.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 5e-4,
    rank: Annotated[int, typer.Option(help="LoRA rank; alpha is twice the rank.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads; 0: all.")] = 0,
) -> None:
    """Train a LoRA adapter with a safety-preserving method.

    The same base, data and settings give the same adapter; an interrupted run continues from its last checkpoint.
    """
    use_threads(threads)
    try:
        plan = TrainingPlan(
            method=_method(method, settings),
            lora=LoraPlan.model_validate({"rank": rank, "alpha": 2 * rank}),
            num_epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
        )
        result = _train(base, data, validation, plan, out)
    except ValidationError as error:
        for problem in error.errors():
            place = ".".join(str(part) for part in problem["loc"])
            console.print(f"[red]{place}[/red]: {escape(problem['msg'])}", highlight=False)
        raise typer.Exit(1) from error
    except (FinetuningError, ModelingError, ValueError) as error:
        console.print(f"[red]{type(error).__name__}[/red]: {escape(str(error))}", highlight=False)
        raise typer.Exit(1) from error
    assert result.summary is not None, "nothing asks this run to stop"
    typer.echo(result.summary.model_dump_json(indent=2))


def _method(name: str, settings: str) -> MethodConfig:
    if name not in METHOD_CONFIGS:
        raise typer.BadParameter(f"there is no method «{name}»; take one of {', '.join(METHOD_CONFIGS)}")
    try:
        values = json.loads(settings)
    except json.JSONDecodeError as error:
        raise typer.BadParameter(f"--settings is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise typer.BadParameter("--settings is no JSON object; write for instance '{\"alpha\": 4}'")
    return METHOD_CONFIGS[name].model_validate({**values, "name": name})


def _train(base: Path, data: Path, validation: Path | None, plan: TrainingPlan, out: Path) -> FinetuneResult:
    artefacts = Artefacts(base) if (base / RECORD_FILE).is_file() else None
    rows = [row for _, row in read_rows(data)]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        return finetune(
            load(artefacts.model_dir if artefacts else base, precision=plan.precision),
            rows,
            plan,
            out_dir=out,
            base_name=artefacts.record["base_id"] if artefacts else base.name,
            base_hash=artefacts.record["theta_safe_hash"] if artefacts else content_hash(base),
            artefacts=artefacts,
            validation_rows=[row for _, row in read_rows(validation)] if validation else [],
            control=_Bar(progress, plan.num_epochs * steps_per_epoch(len(rows), plan.batch_size)),
        )


command = typer.Typer(add_completion=False)
command.command()(main)

if __name__ == "__main__":
    command(prog_name="python -m workers.finetuning")
