"""Whether the disk holds what a run will write: seen before its first step, not in the middle of the night."""

import shutil
from collections.abc import Iterable
from math import ceil

import torch

from workers.finetuning.checkpoints import KEEP
from workers.finetuning.errors import DiskTooFull
from workers.finetuning.loop import TrainingLoop

_STEP_BYTES = 1024
"""Of a step's metrics in a checkpoint's facts; they have a few hundred."""
_FILE_BYTES = 64 * 1024
"""Headers, the manifest, what a file system adds."""
_MOMENTS = 2
"""AdamW keeps two numbers beside each parameter."""


def checkpoint_bytes(loop: TrainingLoop) -> int:
    """How large one of the run's last checkpoints is, rather too much than too little."""
    adapter_bytes = _size(loop.parameters.values())
    state_bytes = _size(loop.method.state().values())
    return adapter_bytes * (1 + _MOMENTS) + state_bytes + loop.num_steps * _STEP_BYTES + _FILE_BYTES


def require_room(loop: TrainingLoop) -> None:
    """Checks the disk of the run's folder.

    Counted are the checkpoints that are kept and the one that is written beside them, without what an earlier attempt
    has left of them, and the adapter twice: its folder and its archive.

    Raises:
        DiskTooFull: Not all of it would fit.
    """
    num_checkpoints = min(KEEP + 1, ceil(loop.num_steps / loop.plan.checkpoint_every_steps))
    needed = num_checkpoints * checkpoint_bytes(loop) + 2 * (_size(loop.parameters.values()) + _FILE_BYTES)
    needed -= sum(file.stat().st_size for file in loop.checkpoint_dir.rglob("*") if file.is_file())
    # A run that is refused, here or at its first step, leaves no folder behind.
    there = next(folder for folder in loop.checkpoint_dir.parents if folder.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise DiskTooFull(
            f"The worker's disk has {_shown(free)} free, and this job needs {_shown(needed)} for its checkpoints and "
            "its adapter. The provider has to free space; the job can then be created again."
        )


def _size(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _shown(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.2f} MB"
