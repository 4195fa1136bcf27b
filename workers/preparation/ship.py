"""`python -m workers.preparation.ship PREPARED NAME`: puts a prepared base's alignment adapter among the shipped ones.

For maintainers. The base must have been prepared by `unforgotten models prepare NAME --retrain`; the record beside the
adapter says so, with the hashes of the weights, the alignment set and the adapter.
"""

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from workers.data import ADAPTERS_DIR, ALIGNMENT_FILE
from workers.finetuning.artefacts import Artefacts
from workers.hashing import file_sha256, weights_sha256
from workers.modeling.adapters import CONFIG_FILE, WEIGHTS_FILE
from workers.preparation.alignment import RECORD
from workers.preparation.run import FETCHED_DIR

MAX_BYTES = 5_000_000
"""Larger ones do not belong into a source tree."""


def main(
    prepared: Annotated[Path, typer.Argument(help="Folder of the prepared base.")],
    name: Annotated[str, typer.Argument(help="Name of the base in the catalogue.")],
) -> None:
    """Copy the alignment adapter and write its record."""
    artefacts = Artefacts(prepared)
    source = artefacts.alignment_dir
    if source is None or artefacts.record["recipe"]["shipped_adapter"] is not None:
        raise typer.BadParameter("this base was not aligned by training: prepare it with --retrain first")
    weights = source / WEIGHTS_FILE
    if weights.stat().st_size > MAX_BYTES:
        raise typer.BadParameter(
            f"the adapter has {weights.stat().st_size} bytes, more than {MAX_BYTES}: lower the rank"
        )
    target = ADAPTERS_DIR / name
    target.mkdir(parents=True, exist_ok=True)
    for file in (weights, source / CONFIG_FILE):
        shutil.copyfile(file, target / file.name)
    record = {
        "command": f"unforgotten models prepare {name} --retrain",
        "source": artefacts.record["source"],
        "weights_sha256": weights_sha256(prepared.parent / FETCHED_DIR / artefacts.record["base_hash"]),
        "alignment": artefacts.record["recipe"]["alignment"],
        "alignment_set_sha256": file_sha256(ALIGNMENT_FILE),
        "adapter_sha256": file_sha256(weights),
    }
    (target / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    typer.echo(f"{target.name}: {weights.stat().st_size} bytes")


if __name__ == "__main__":
    typer.run(main)
