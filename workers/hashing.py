"""Hashes of files and folders: what content-addressed names, manifests and checks are made of."""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(folder: Path, *, leave_out: Collection[str] = ()) -> str:
    """sha256 (hex) over the sorted (name, sha256 of content) of the files right in a folder."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file() and p.name not in leave_out):
        total.update(f"{path.name}:{file_sha256(path)}\n".encode())
    return total.hexdigest()


def weights_sha256(folder: Path) -> str:
    """sha256 (hex) over the weights in a model folder: each tensor's name, type, shape and bytes, sorted by name.

    The same for equal weights, however they lie in files and whatever else a library's version writes beside them.
    """
    tensors: dict[str, tuple[Path, int, int, str]] = {}
    for path in folder.glob("*.safetensors"):
        # The format: eight bytes with the length of a JSON header, the header, the tensors' bytes.
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        for name, facts in header.items():
            if name != "__metadata__":
                first, last = facts["data_offsets"]
                tensors[name] = (path, 8 + length + first, last - first, f"{facts['dtype']} {facts['shape']}")
    total = hashlib.sha256()
    for name, (path, start, size, kind) in sorted(tensors.items()):
        total.update(f"{name}: {kind}\n".encode())
        with path.open("rb") as file:
            file.seek(start)
            left = size
            while left:
                piece = file.read(min(left, 1 << 20))
                if not piece:
                    raise ValueError(f"{path.name} ends in the middle of {name}")
                total.update(piece)
                left -= len(piece)
    return total.hexdigest()
