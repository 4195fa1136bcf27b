"""A checkpoint is there whole or not at all, and the one before it until then."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from workers.finetuning import checkpoints
from workers.finetuning.checkpoints import TrainingState, load_latest, save_checkpoint

KILLED = """
import os, sys
from pathlib import Path
import torch
from workers.finetuning.checkpoints import TrainingState, save_checkpoint
left = int(sys.argv[2])
def die_later(_):
    global left
    left -= 1
    if left < 0:
        os._exit(9)
os.fsync = die_later
save_checkpoint(Path(sys.argv[1]), TrainingState(6, {"a": torch.zeros(4)}, {}, {}, {}))
"""


def state(step: int) -> TrainingState:
    return TrainingState(step, {"a": torch.full((4,), float(step))}, {}, {}, {"seconds": 1.0})


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


class TestSaving:
    def test_keeps_the_newest_and_the_one_before(self, tmp_path: Path) -> None:
        for step in (2, 4, 6, 8):
            save_checkpoint(tmp_path, state(step))
        assert names(tmp_path) == ["step-00000006", "step-00000008"]

    def test_syncs_every_file_before_the_rename_and_the_folder_after_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done: list[str] = []
        rename = Path.rename

        def note_sync(descriptor: int) -> None:
            done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

        def note_rename(path: Path, target: Path) -> Path:
            done.append("rename")
            return rename(path, target)

        monkeypatch.setattr(os, "fsync", note_sync)
        monkeypatch.setattr(Path, "rename", note_rename)
        save_checkpoint(tmp_path / "checkpoints", state(2))
        staged = ["tensors.safetensors", "state.json", "manifest.json", ".step-00000002.partial"]
        assert done == [*staged, "rename", "checkpoints"]

    @pytest.mark.parametrize(("number", "next_step"), [(0, 4), (3, 4), (4, 6)])
    def test_that_is_killed_leaves_the_one_before_until_its_own_name_is_there(
        self, tmp_path: Path, number: int, next_step: int
    ) -> None:
        """Killed at its first sync, at the last one before the rename, and at the one after it."""
        save_checkpoint(tmp_path, state(2))
        save_checkpoint(tmp_path, state(4))
        killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(number)], check=False)
        assert killed.returncode == 9
        found = load_latest(tmp_path)
        assert found.state is not None
        assert (found.state.next_step, found.damaged) == (next_step, [])

    def test_clears_away_what_a_killed_process_left_half_written(self, tmp_path: Path) -> None:
        save_checkpoint(tmp_path, state(2))
        (tmp_path / ".step-00000003.partial").mkdir()
        (tmp_path / ".step-00000003.partial" / "tensors.safetensors").write_bytes(b"x")
        save_checkpoint(tmp_path, state(4))
        assert names(tmp_path) == ["step-00000002", "step-00000004"]

    def test_on_a_full_disk_leaves_nothing_half_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        save_checkpoint(tmp_path, state(2))

        def fail(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(checkpoints, "_sync", fail)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(tmp_path, state(4))
        assert names(tmp_path) == ["step-00000002"]
