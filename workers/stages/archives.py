"""Archives of adapters: the job's own one, and those of its checkpoints."""

import gzip
import shutil
import tarfile
from pathlib import Path

from workers.finetuning.artefacts import Artefacts
from workers.modeling import adapters
from workers.stages.model_card import public_name

ORIGINAL_DIR = "for_original_base"
"""In the archive: the adapter relative to the public base instead of theta_safe."""


def add_adapter(artefacts: Artefacts, adapter_dir: Path, folder: Path) -> None:
    """Puts an adapter into an archive's folder; on a base that was aligned here also in the form for the original."""
    for name in (adapters.WEIGHTS_FILE, adapters.CONFIG_FILE):
        shutil.copyfile(adapter_dir / name, folder / name)
    if artefacts.alignment_dir is not None:
        source = public_name(artefacts.record["source"])
        adapters.write_concatenation(artefacts.alignment_dir, adapter_dir, folder / ORIGINAL_DIR, base_name=source)


def write_archive(folder: Path, target: Path) -> None:
    """A tar.gz without times and owners: the same content gives the same bytes."""
    staging = target.with_suffix(".partial")
    with (
        staging.open("wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="", compresslevel=1) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            info = tarfile.TarInfo(str(path.relative_to(folder)))
            info.size = path.stat().st_size
            info.mode = 0o644
            with path.open("rb") as file:
                tar.addfile(info, file)
    staging.rename(target)
