"""`python -m workers.finetuning`: train an adapter without the service."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.contracts.chat import ChatRow, PreferenceRow
from app.contracts.chat_file import read_preference_rows, read_rows
from app.contracts.methods import METHOD_CONFIGS, MethodConfig
from app.contracts.modifiers import MERGE_CONFIGS, Ema, MergeConfig
from app.contracts.objectives import SUPERVISED, Dpo, Objective, ObjectiveName
from app.contracts.plan import LoraPlan, Quantisation, TrainingPlan
from app.contracts.safety import Safety, SafetyRefused, safety_from
from workers.finetuning.artefacts import RECORD_FILE, Artefacts
from workers.finetuning.distributed import Ranks, joined
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

    def on_rows_read(self, done: int, total: int) -> None:
        self._progress.update(self._task, loss=f"reading rows before training, {done} of {total}")

    def on_step(self, metrics: StepMetrics) -> None:
        self._progress.update(self._task, completed=metrics.step, loss=f"loss {metrics.loss:.3f}")


def main(
    base: Annotated[
        Path, typer.Option(exists=True, file_okay=False, help="A prepared base; for `none` any model folder.")
    ],
    data: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="Training rows: JSONL of chats, or of preferences.")
    ],
    out: Annotated[Path, typer.Option(help="Receives adapter/, checkpoints/ and step_metrics.csv.")],
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHOD_CONFIGS)}.")] = "der",
    objective: Annotated[
        ObjectiveName,
        typer.Option(
            help="`supervised`: the answers of chats; `dpo`: preference pairs, lines of input, preferred_output and "
            "non_preferred_output. Preferences want a tenth of the learning rate."
        ),
    ] = "supervised",
    beta: Annotated[
        float | None, typer.Option(help="Of dpo: how strongly the model is held to its start, above 0 and at most 2.")
    ] = None,
    settings: Annotated[
        str,
        typer.Option(
            help='The method\'s settings as JSON, e.g. {"alpha": 4} or {"alpha": {"budget": 0.5}}; see below.'
        ),
    ] = "{}",
    ema: Annotated[
        str, typer.Option(help='Ship an average over the steps: true, or its settings as JSON, e.g. {"decay": 0.9}.')
    ] = "null",
    merge: Annotated[
        str,
        typer.Option(
            help=f"Merge after training, {', '.join(MERGE_CONFIGS)}: its name and settings as JSON, "
            'e.g. {"name": "wise_ft", "base_weight": 0.3}.'
        ),
    ] = "null",
    validation: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Validation rows, of the same kind.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Rows an optimizer step.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 5e-4,
    rank: Annotated[int, typer.Option(help="LoRA rank; alpha is twice the rank.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    quantisation: Annotated[Quantisation, typer.Option(help="`nf4`: train on the base in 4 bits (QLoRA).")] = "none",
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory for about a third more time.")
    ] = False,
    threads: Annotated[int, typer.Option(help="CPU threads of each process; 0: all.")] = 0,
) -> None:
    """Train a LoRA adapter with a safety-preserving method.

    The same base, data and settings give the same adapter; an interrupted run continues from its last checkpoint. On
    several GPUs: `torchrun --nproc-per-node N -m workers.finetuning ...`.
    """
    # Processes of one machine share its cores.
    use_threads(threads or max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    try:
        chosen = _objective(objective, beta)
        safety = _safety(method, settings, ema, merge, chosen)
        plan = TrainingPlan(
            objective=chosen,
            method=safety.method,
            ema=safety.ema,
            merge=safety.merge,
            lora=LoraPlan.model_validate({"rank": rank, "alpha": 2 * rank}),
            num_epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            quantisation=quantisation,
            gradient_checkpointing=gradient_checkpointing,
            seed=seed,
        )
        with joined() as ranks:
            result = _train(base, data, validation, plan, out, ranks)
    except ValidationError as error:
        for problem in error.errors():
            place = ".".join(str(part) for part in problem["loc"])
            console.print(f"[red]{place}[/red]: {escape(problem['msg'])}", highlight=False)
        raise typer.Exit(1) from error
    except (FinetuningError, ModelingError, ValueError) as error:
        console.print(f"[red]{type(error).__name__}[/red]: {escape(str(error))}", highlight=False)
        raise typer.Exit(1) from error
    assert result.summary is not None, "nothing asks this run to stop"
    if ranks.is_first:
        typer.echo(result.summary.model_dump_json(indent=2))


def _objective(name: ObjectiveName, beta: float | None) -> Objective:
    if name == "dpo":
        return Dpo() if beta is None else Dpo(beta=beta)
    if beta is not None:
        raise typer.BadParameter("--beta belongs to --objective dpo: leave it out.")
    return SUPERVISED


def _safety(method: str, settings: str, ema: str, merge: str, objective: Objective) -> Safety:
    values = _json("--settings", settings)
    if not isinstance(values, dict):
        raise typer.BadParameter("--settings is no JSON object; write for instance '{\"alpha\": 4}'")
    try:
        return safety_from(method, values, ema=_json("--ema", ema), merge=_json("--merge", merge), objective=objective)
    except SafetyRefused as refused:
        option, *inner = refused.path
        place = " ".join(["--settings" if option == "hyperparameters" else f"--{option}", ".".join(inner)]).strip()
        raise typer.BadParameter(f"{place}: {refused.message}") from refused


def _json(option: str, text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise typer.BadParameter(f"{option} is not JSON ({error})") from error


def _train(
    base: Path, data: Path, validation: Path | None, plan: TrainingPlan, out: Path, ranks: Ranks
) -> FinetuneResult:
    artefacts = Artefacts(base) if (base / RECORD_FILE).is_file() else None
    rows = _rows(data, plan)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not ranks.is_first) as progress:
        return finetune(
            load(artefacts.model_dir if artefacts else base, precision=plan.precision, quantisation=plan.quantisation),
            rows,
            plan,
            out_dir=out,
            base_name=artefacts.record["base_id"] if artefacts else base.name,
            base_hash=artefacts.record["theta_safe_hash"] if artefacts else content_hash(base),
            artefacts=artefacts,
            validation_rows=_rows(validation, plan) if validation else [],
            control=_Bar(progress, plan.num_epochs * steps_per_epoch(len(rows), plan.batch_size)),
            ranks=ranks,
        )


def _rows(file: Path, plan: TrainingPlan) -> list[ChatRow] | list[PreferenceRow]:
    if isinstance(plan.objective, Dpo):
        return [pair for _, pair in read_preference_rows(file)]
    return [row for _, row in read_rows(file)]


def _settings_help() -> str:
    """Every method, merge and the average, with settings and defaults."""
    parts = [*METHOD_CONFIGS.items(), ("ema", Ema), *MERGE_CONFIGS.items()]
    lines = [f"{name}: {_settings_of(config)}" for name, config in parts]
    return "\n\n".join(["Settings with their defaults (app/contracts/ says what each does):", *lines])


def _settings_of(config: type[MethodConfig | Ema | MergeConfig]) -> str:
    shown = []
    for name, field in config.model_json_schema()["properties"].items():
        choices = [value for value in field.get("enum", []) if value != field["default"]]
        others = f" (or {', '.join(map(str, choices))})" if choices else ""
        if name != "name":
            shown.append(f"{name} {json.dumps(field['default'])}{others}")
    return ", ".join(shown) or "none"


command = typer.Typer(add_completion=False)
command.command(epilog=_settings_help())(main)

if __name__ == "__main__":
    command(prog_name="python -m workers.finetuning")
