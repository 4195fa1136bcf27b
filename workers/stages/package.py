"""Stage 5: one archive with everything a tenant needs to use the adapter and to know what it does."""

import json
import shutil
from pathlib import Path
from typing import Any

from app.contracts.evaluation import Report
from app.contracts.progress import PhaseMessage
from app.contracts.states import JobPhase
from workers.hashing import file_sha256
from workers.preparation.alignment import copy_companions
from workers.stages.archives import add_adapter, write_archive
from workers.stages.context import StageContext
from workers.stages.gate import shipped_adapter
from workers.stages.model_card import model_card

NAME = "package"


def run(context: StageContext) -> dict[str, Any]:
    """Writes the archive and returns its hash."""
    context.channel.send(PhaseMessage(phase=JobPhase.PACKAGING))
    folder = context.folder / "package"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    record = context.artefacts.record
    add_adapter(context.artefacts, shipped_adapter(context), folder)
    _copy_tokenizer(context.artefacts.model_dir, folder)
    report = Report.model_validate_json(context.report_file.read_text())
    (folder / "report.json").write_text(report.model_dump_json(indent=2) + "\n")
    (folder / "README.md").write_text(model_card(report, record))
    _write_manifest(folder)
    write_archive(folder, context.archive_file)
    digest = file_sha256(context.archive_file)
    size = context.archive_file.stat().st_size
    context.channel.say(f"Packaged the adapter ({size / 1e6:.1f} MB, sha256 {digest[:12]})")
    return {"adapter_sha256": digest}


def _copy_tokenizer(model_dir: Path, folder: Path) -> None:
    copy_companions(model_dir, folder)
    # The base's own configuration is no part of an adapter.
    (folder / "config.json").unlink(missing_ok=True)


def _write_manifest(folder: Path) -> None:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    manifest = {str(p.relative_to(folder)): {"sha256": file_sha256(p), "bytes": p.stat().st_size} for p in files}
    (folder / "manifest.json").write_text(json.dumps({"files": manifest}, indent=2) + "\n")
