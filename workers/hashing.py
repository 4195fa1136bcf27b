"""Hashes of files and folders: what content-addressed names, manifests and checks are made of."""

import hashlib
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
