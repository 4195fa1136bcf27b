"""Checkpoints that the tenant may see: the adapter as each epoch has left it, packed like a finished one.

It is what was trained, before anything that comes after training: an average over the steps, a merge, a repair. The
gate measures what comes out at the end, so that of the checkpoints it speaks for that one alone whose weights are the
same, if there is one (see app/checkpoints/repository.py for what follows from that).
"""

import re
import tempfile
from pathlib import Path
from typing import NamedTuple

from app.contracts.progress import KEPT_CHECKPOINTS
from workers.finetuning.backbone import Backbone
from workers.hashing import file_sha256
from workers.modeling import adapters
from workers.modeling.archive import MAX_UNPACKED_BYTES, AdapterArchive
from workers.stages.archives import add_adapter, write_archive
from workers.stages.context import StageContext

_NAME = re.compile(r"step-(\d+)\.tar\.gz")
_CARD = """# {model}:ckpt-step-{step}

The LoRA adapter for `{base}` after {step} steps of the job {job}, as training has left it: no average, merge or repair,
and no measurement of its safety. The job's own adapter is what its report is about.
"""


class PackedCheckpoint(NamedTuple):
    """A checkpoint's archive."""

    path: Path
    sha256: str


def pack_checkpoint(context: StageContext, backbone: Backbone, step: int) -> PackedCheckpoint:
    """Packs the adapter as it is now, and drops the archives of all but the latest epochs.

    Archives of this step and of later ones are those of an attempt that has come further: they are made again.
    """
    context.epochs_dir.mkdir(parents=True, exist_ok=True)
    for passed in _archives(context.epochs_dir):
        if _step(passed) >= step:
            passed.unlink()
    target = context.epochs_dir / f"step-{step}.tar.gz"
    spec = context.spec
    with tempfile.TemporaryDirectory(dir=context.epochs_dir) as scratch:
        adapter_dir, folder = Path(scratch) / "adapter", Path(scratch) / "package"
        adapters.save(backbone.peft_model, adapter_dir, base_name=spec.base_id)
        folder.mkdir()
        add_adapter(context.artefacts, adapter_dir, folder)
        card = _CARD.format(model=spec.model_name, step=step, base=spec.base_id, job=spec.job_id)
        (folder / "README.md").write_text(card)
        write_archive(folder, target)
    for old in _archives(context.epochs_dir)[:-KEPT_CHECKPOINTS]:
        old.unlink()
    return PackedCheckpoint(target, file_sha256(target))


def measured_checkpoint(context: StageContext, shipped_dir: Path) -> int | None:
    """Step of the last checkpoint if it is the shipped adapter, bit for bit.

    Both files have to be the same: equal matrices with another scaling are another model, as a merge with a weight of a
    half may leave them.
    """
    archives = _archives(context.epochs_dir) if context.epochs_dir.is_dir() else []
    if not archives:
        return None
    with tempfile.TemporaryDirectory(dir=context.epochs_dir) as scratch:
        weights = Path(scratch) / adapters.WEIGHTS_FILE
        archive = AdapterArchive(archives[-1])
        archive.copy_weights(weights, max_bytes=MAX_UNPACKED_BYTES)
        config = (shipped_dir / adapters.CONFIG_FILE).read_bytes()
        is_same = (
            file_sha256(weights) == file_sha256(shipped_dir / adapters.WEIGHTS_FILE)
            and archive.config(max_bytes=MAX_UNPACKED_BYTES) == config
        )
    return _step(archives[-1]) if is_same else None


def _archives(folder: Path) -> list[Path]:
    """From the earliest to the latest step."""
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name)), key=_step)


def _step(archive: Path) -> int:
    match = _NAME.fullmatch(archive.name)
    assert match is not None, "picked by its name"
    return int(match.group(1))
