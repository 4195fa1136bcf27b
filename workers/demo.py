"""`unforgotten demo`: the whole service on this machine, from an empty folder to an adapter that answers.

Everything a tenant does goes through the public HTTP API; only preparing the base and making a key are the
provider's part, done with the same commands a provider would type.
"""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from app.contracts.evaluation import Report
from app.contracts.report_table import main_table
from app.rendering.answers import verdict
from app.settings import Settings
from workers.data import DEMO_TRAINING_FILE, DEMO_VALIDATION_FILE
from workers.hashing import file_sha256

BASE = "smollm2-135m-instruct"
EVAL_HARMFUL, EVAL_LOOKALIKES = 72, 50
"""A part of the evaluation sets, four and five prompts of each category, so that the demo ends within minutes."""
START_SECONDS = 60.0
NUM_QUESTIONS = 4
POLL_SECONDS = 1.0
console = Console()


class DemoFailed(Exception):
    """The demo cannot go on; the message says why."""


def main(
    *,
    retrain: Annotated[bool, typer.Option("--retrain", help="Train the alignment, take no shipped adapter.")] = False,
    keep_running: Annotated[bool, typer.Option("--keep-running", help="Leave the service up until Ctrl-C.")] = False,
) -> None:
    """Run the demo."""
    started = time.monotonic()
    settings = Settings()
    try:
        prepare_base(retrain=retrain)
        with service(settings) as (url, log):
            console.print(f"[bold]1. Service[/bold]  {url}  (log: {log})")
            run(url, settings, started)
            if keep_running:
                console.print("The service stays up; Ctrl-C ends it.")
                signal.pause()
    except (DemoFailed, httpx.HTTPError) as error:
        console.print(f"[red]The demo failed:[/red] {escape(str(error))}")
        raise typer.Exit(1) from error


def prepare_base(*, retrain: bool) -> None:
    """The provider's part: register the base, align and prepare it (or find it prepared)."""
    console.print(f"[bold]0. Base model[/bold]  preparing {BASE} (once; a second run reuses it)")
    options = ["--eval-harmful", str(EVAL_HARMFUL), "--eval-lookalikes", str(EVAL_LOOKALIKES)]
    command("models", "prepare", BASE, *options, *(["--retrain"] if retrain else []))


def run(url: str, settings: Settings, started: float) -> None:
    """The tenant's part, over HTTP."""
    key = command("keys", "create", "--project", "demo", "--quiet", capture=True).strip()
    headers = {"Authorization": f"Bearer {key}"}
    # Not through a proxy that the environment names for pip: the service is on this machine.
    with httpx.Client(base_url=f"{url}/v1", headers=headers, timeout=120, trust_env=False) as client:
        console.print("[bold]2. Upload[/bold]")
        training, validation = upload(client, DEMO_TRAINING_FILE), upload(client, DEMO_VALIDATION_FILE)
        console.print(f"[bold]3. Fine-tuning job[/bold]  method der on {BASE}")
        job = follow(client, create_job(client, training, validation))
        report = Report.model_validate(call(client, "GET", f"/fine_tuning/jobs/{job['id']}/report"))
        console.print("[bold]4. Report[/bold]")
        show(report)
        write_page(client, job, settings.data_dir / "demo" / f"{job['id']}.html")
        console.print("[bold]5. Adapter[/bold]")
        folder = download(client, job, settings.data_dir / "demo" / job["id"])
    check_adapter(folder, settings)
    minutes = (time.monotonic() - started) / 60
    console.print(f"[green]Done in {minutes:.1f} minutes.[/green] The adapter lies in {folder}")


@contextmanager
def service(settings: Settings) -> Iterator[tuple[str, Path]]:
    """`unforgotten up` on a free port, until the block ends."""
    port = settings.port if _is_free(settings.host, settings.port) else _free_port(settings.host)
    url = f"http://{settings.host}:{port}"
    log = settings.data_dir / "logs" / "demo.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "UNFORGOTTEN_PORT": str(port)}
    with (
        log.open("ab") as output,
        subprocess.Popen(
            [sys.executable, "-m", "app.cli", "up"],
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        ) as process,
    ):
        try:
            _wait_until_ready(url, process, log)
            yield url, log
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def command(*arguments: str, capture: bool = False) -> str:
    """Runs an `unforgotten` command as a provider would."""
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments],
        check=False,
        stdout=subprocess.PIPE if capture else None,
        text=True,
    )
    if done.returncode:
        raise DemoFailed(f"`unforgotten {' '.join(arguments)}` ended with exit status {done.returncode}")
    return done.stdout or ""


def call(client: httpx.Client, method: str, path: str, **options: Any) -> Any:
    """One API call; an error of the API becomes a sentence."""
    response = client.request(method, path, **options)
    if response.is_error:
        raise DemoFailed(f"{method} {path} answered {response.status_code}: {response.text}")
    return response.json()


def upload(client: httpx.Client, path: Path) -> str:
    """POST /v1/files; returns the file's id."""
    with path.open("rb") as file:
        parts = {"file": (path.name, file, "application/jsonl")}
        uploaded = call(client, "POST", "/files", data={"purpose": "fine-tune"}, files=parts)
    statistics = call(client, "GET", f"/files/{uploaded['id']}/validation")["statistics"]
    console.print(f"   {path.name}: {statistics['num_rows']} rows, {uploaded['bytes']} bytes -> {uploaded['id']}")
    return str(uploaded["id"])


def create_job(client: httpx.Client, training: str, validation: str) -> dict[str, Any]:
    """POST /v1/fine_tuning/jobs with the safety object."""
    body = {
        "model": BASE,
        "training_file": training,
        "validation_file": validation,
        "suffix": "ticket-router",
        "seed": 0,
        "hyperparameters": {"n_epochs": 2},
        "safety": {"method": "der"},
    }
    job: dict[str, Any] = call(client, "POST", "/fine_tuning/jobs", json=body)
    return job


def follow(client: httpx.Client, job: dict[str, Any]) -> dict[str, Any]:
    """Polls a job to its end, printing its events and a bar over its steps."""
    seen: set[str] = set()
    columns = (TextColumn("   {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("queued", total=None)
        while True:
            job = call(client, "GET", f"/fine_tuning/jobs/{job['id']}")
            events = call(client, "GET", f"/fine_tuning/jobs/{job['id']}/events", params={"limit": 100})["data"]
            for event in reversed([e for e in events if e["id"] not in seen]):
                seen.add(event["id"])
                if event["type"] == "metrics":
                    progress.update(bar, completed=event["data"]["step"], total=event["data"]["total_steps"])
                else:
                    progress.console.print(f"   {escape(event['message'])}", highlight=False)
            progress.update(bar, description=job.get("phase") or job["status"])
            if job["status"] in ("succeeded", "failed", "cancelled"):
                break
            time.sleep(POLL_SECONDS)
    if job["status"] != "succeeded":
        raise DemoFailed(f"the job ended {job['status']}: {(job.get('error') or {}).get('message')}")
    return job


def show(report: Report) -> None:
    """The report's main table, and what the gate says."""
    table = Table("measure", "base", "tuned", "change", title=f"{report.model}", title_justify="left")
    for row in main_table(report):
        table.add_row(*(escape(cell) for cell in row))
    console.print(table)
    training = report.training
    trained = "" if training is None else f", after {training.seconds:.0f} s of training"
    replayed = "" if training is None else f" {training.replayed_tokens} tokens were replayed."
    console.print(
        f"   Shares with 95 % intervals, on a part of the evaluation sets. Evaluation took "
        f"{report.evaluation_seconds:.0f} s{trained}.{replayed}"
    )
    decision = verdict(report)
    console.print(f"   [bold]{escape(decision.headline)}.[/bold] {escape(decision.sentence)}", highlight=False)


def write_page(client: httpx.Client, job: dict[str, Any], path: Path) -> None:
    """Downloads the report as a page."""
    response = client.get(f"/fine_tuning/jobs/{job['id']}/report", params={"format": "html"})
    if response.is_error:
        raise DemoFailed(f"the report's page could not be downloaded: {response.status_code} {response.text}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(response.content)
    console.print(f"   The whole report, for a browser: {path}")


def download(client: httpx.Client, job: dict[str, Any], folder: Path) -> Path:
    """Downloads, verifies and unpacks the adapter archive."""
    response = client.get(f"/fine_tuning/jobs/{job['id']}/adapter")
    if response.is_error:
        raise DemoFailed(f"the adapter could not be downloaded: {response.status_code} {response.text}")
    digest = hashlib.sha256(response.content).hexdigest()
    if response.headers["etag"].strip('"') != digest:
        raise DemoFailed("the adapter archive does not match its ETag (sha256)")
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder.parent / f"{job['id']}.tar.gz"
    archive.write_bytes(response.content)
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    for name, facts in json.loads((folder / "manifest.json").read_text())["files"].items():
        if file_sha256(folder / name) != facts["sha256"]:
            raise DemoFailed(f"{name} in the archive does not match its manifest")
    console.print(f"   {len(response.content) / 1e6:.1f} MB, sha256 {digest}: archive and manifest verified")
    return folder


def check_adapter(folder: Path, settings: Settings) -> None:
    """Loads both adapters in PEFT and lets them answer.

    The adapter starts from theta_safe, its twin in `for_original_base` from the public weights: the same answer is due.
    """
    from app.contracts.chat import ChatRow
    from workers.finetuning.artefacts import MODEL_DIR, RECORD_FILE
    from workers.modeling.check_adapter import answers_with
    from workers.preparation.run import FETCHED_DIR
    from workers.stages.archives import ORIGINAL_DIR

    lines = DEMO_VALIDATION_FILE.read_text().splitlines()[:NUM_QUESTIONS]
    rows = [ChatRow.model_validate_json(line).messages for line in lines]
    report = Report.model_validate_json((folder / "report.json").read_text())
    prepared = settings.bases_dir / report.provenance.prepared_hash
    record = json.loads((prepared / RECORD_FILE).read_text())
    questions = [messages[:-1] for messages in rows]
    aligned = answers_with(prepared / MODEL_DIR, folder, questions)
    public = answers_with(settings.bases_dir / FETCHED_DIR / record["base_hash"], folder / ORIGINAL_DIR, questions)
    table = Table("a ticket it has not seen", "right", "PEFT on theta_safe", "PEFT on the public base")
    for messages, *answers in zip(rows, aligned, public, strict=True):
        table.add_row(*(escape(t) for t in (messages[-2].content.splitlines()[-1], messages[-1].content, *answers)))
    console.print(table)
    if not all(answer.strip() for answer in (*aligned, *public)):
        raise DemoFailed("the adapter loads but answers nothing")


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DemoFailed(f"the service ended at once (exit status {process.returncode}); see {log}")
        try:
            if httpx.get(f"{url}/health/ready", timeout=5, trust_env=False).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.3)
    raise DemoFailed(f"the service was not ready within {START_SECONDS:.0f} s; see {log}")


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) != 0


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    command_line = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    command_line.command()(main)
    command_line(prog_name="unforgotten demo")
