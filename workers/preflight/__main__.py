"""`python -m workers.preflight`: the child process that looks at an upload, or the same by hand.

python -m workers.preflight WORK_FOLDER             # as the supervisor starts it
python -m workers.preflight --base DIR --data FILE  # prints the risk as JSON
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from app.contracts.chat_file import read_wanted_rows
from app.contracts.progress import PreflightResultMessage
from app.contracts.risk import DataRisk
from app.contracts.specs import SPEC_FILE, PreflightSpec
from workers.channel import Channel, run_child
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.errors import FinetuningError
from workers.hashing import file_sha256
from workers.modeling.errors import ModelingError
from workers.modeling.loading import load, use_threads
from workers.preflight.features import OnProgress
from workers.preflight.run import assess

console = Console(stderr=True)


def main(
    base: Annotated[Path, typer.Option(exists=True, file_okay=False, help="A prepared base.")],
    data: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Training rows: chat JSONL.")],
    threads: Annotated[int, typer.Option(help="CPU threads; 0: all.")] = 0,
) -> None:
    """Say what training on an upload would do to a base's refusals: level, reasons, flagged lines, recommendation."""
    use_threads(threads)
    try:
        artefacts = Artefacts(base)
        risk = _assessed(artefacts, data, artefacts.record["base_id"], file_sha256(data), _nothing)
    except (FinetuningError, ModelingError, ValueError) as error:
        console.print(f"[red]{type(error).__name__}[/red]: {escape(str(error))}", highlight=False)
        raise typer.Exit(1) from error
    typer.echo(risk.model_dump_json(indent=2))


def run_in(folder: Path) -> int:
    """Reads the spec in a work folder, looks at its upload and tells the supervisor."""
    spec = PreflightSpec.model_validate_json((folder / SPEC_FILE).read_text())
    use_threads(int(os.environ.get("UNFORGOTTEN_WORKER_THREADS", "0")))

    def work(channel: Channel) -> None:
        channel.say("Looking at the training file")
        progress = channel.progress("examined rows")
        artefacts = Artefacts(spec.prepared_dir)
        risk = _assessed(artefacts, spec.training_file, spec.base_id, spec.training_file_sha256, progress)
        channel.send(PreflightResultMessage(risk=risk))

    return run_child(work)


def _assessed(artefacts: Artefacts, data: Path, base_name: str, sha256: str, on_progress: OnProgress) -> DataRisk:
    return assess(
        load(artefacts.model_dir),
        artefacts,
        list(read_wanted_rows(data)),
        base_name=base_name,
        training_file_sha256=sha256,
        on_progress=on_progress,
    ).risk


def _nothing(done: int, total: int) -> None:
    """By hand it takes seconds."""


command = typer.Typer(add_completion=False)
command.command()(main)

if __name__ == "__main__":
    if len(sys.argv) == 2 and not sys.argv[1].startswith("-"):
        sys.exit(run_in(Path(sys.argv[1])))
    command(prog_name="python -m workers.preflight")
