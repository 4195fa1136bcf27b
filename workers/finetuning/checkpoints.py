"""Checkpoints of a training run: written aside, synced, renamed, and verified by hash when read.

A checkpoint holds parameters, optimizer, method state and the metrics so far; the position in the data and the random
state are the step number, because batches and dropout are functions of it. Only safetensors and JSON: nothing in it
can run code.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from workers.finetuning.errors import CheckpointDamaged
from workers.hashing import file_sha256

KEEP = 2
"""Checkpoints kept: the newest, and the one before it."""
_NAME = re.compile(r"^step-(\d{8})$")
_TENSORS, _STATE, _MANIFEST = "tensors.safetensors", "state.json", "manifest.json"


class TrainingState(NamedTuple):
    """Everything a run continues from."""

    next_step: int
    parameters: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    method: dict[str, torch.Tensor]
    facts: dict[str, Any]
    """JSON values: metrics of the steps so far, the plan's hash, ..."""


def save_checkpoint(directory: Path, state: TrainingState) -> Path:
    """Writes a checkpoint durably and drops the ones beyond `KEEP`.

    Checkpoints of this step and of later ones are replaced: a run passes them again only if they were damaged.
    """
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"step-{state.next_step:08d}"
    # Whatever processes that were killed left half-written, at this step or another: it is of no use and takes room.
    for left in directory.glob(".*.partial"):
        shutil.rmtree(left)
    staging = directory / f".{target.name}.partial"
    staging.mkdir()
    try:
        _write(staging, state)
    except BaseException:
        # On a full disk every byte counts for the next attempt.
        shutil.rmtree(staging, ignore_errors=True)
        raise
    found = _complete(directory)
    for passed in (p for p in found if p.name >= target.name):
        shutil.rmtree(passed)
    staging.rename(target)
    _sync(directory)
    for old in [p for p in found if p.name < target.name][: 1 - KEEP]:
        shutil.rmtree(old)
    return target


class Latest(NamedTuple):
    """What a folder holds to go on from."""

    state: TrainingState | None
    """None: nothing; the run is to begin at its first step, which gives the same adapter later."""
    damaged: list[str]
    """Names of newer checkpoints, which are not intact, the newest first."""


def load_latest(directory: Path) -> Latest:
    """The newest intact checkpoint. A damaged one is passed over for the one before it."""
    damaged: list[str] = []
    for path in reversed(_complete(directory) if directory.is_dir() else []):
        try:
            return Latest(load_checkpoint(path), damaged)
        except CheckpointDamaged:
            damaged.append(path.name)
    return Latest(None, damaged)


def load_checkpoint(path: Path) -> TrainingState:
    """Reads and verifies one checkpoint."""
    try:
        hashes = json.loads((path / _MANIFEST).read_text())
        intact = all(file_sha256(path / name) == hashes[name] for name in (_TENSORS, _STATE))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointDamaged(f"{path.name}: {error}") from error
    if not intact:
        raise CheckpointDamaged(f"{path.name} does not match its manifest.")
    state = json.loads((path / _STATE).read_text())
    tensors = load_file(path / _TENSORS)
    return TrainingState(
        state["next_step"],
        _part(tensors, "parameters/"),
        _part(tensors, "optimizer/"),
        _part(tensors, "method/"),
        state["facts"],
    )


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, torch.Tensor]:
    """The optimizer's state as named tensors."""
    return {
        f"{name}/{key}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Puts named tensors back as the optimizer's state."""
    for path, tensor in tensors.items():
        name, key = path.rsplit("/", 1)
        parameter = parameters[name]
        # AdamW keeps its step count on the CPU.
        optimizer.state[parameter][key] = tensor if key == "step" else tensor.to(parameter.device)


def _write(staging: Path, state: TrainingState) -> None:
    tensors = {f"parameters/{k}": v for k, v in state.parameters.items()}
    tensors |= {f"optimizer/{k}": v for k, v in state.optimizer.items()}
    tensors |= {f"method/{k}": v for k, v in state.method.items()}
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, staging / _TENSORS)
    (staging / _STATE).write_text(json.dumps({"next_step": state.next_step, "facts": state.facts}))
    hashes = {name: file_sha256(staging / name) for name in (_TENSORS, _STATE)}
    (staging / _MANIFEST).write_text(json.dumps(hashes))
    for name in (_TENSORS, _STATE, _MANIFEST, "."):
        _sync(staging / name)


def _part(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _complete(directory: Path) -> list[Path]:
    return sorted(p for p in directory.iterdir() if _NAME.match(p.name))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
