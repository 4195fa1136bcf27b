"""Whether the disk holds what a run writes is seen before its first step."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from app.contracts.plan import TrainingPlan
from tests.workers.conftest import TinyModels
from tests.workers.finetuning.runs import DER, NONE, StopAfter, plan, train
from workers.finetuning import disk
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.checkpoints import KEEP
from workers.finetuning.errors import DiskTooFull
from workers.finetuning.loop import TrainingLoop
from workers.finetuning.run import CHECKPOINT_DIR


class Usage(NamedTuple):
    free: int


@pytest.fixture
def model_dir(tiny_models: TinyModels) -> Path:
    return tiny_models.folder("llama")


@pytest.fixture
def set_free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return lambda free: monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(free))


@pytest.fixture
def estimates(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What was thought of the size of a checkpoint."""
    found: list[int] = []
    estimate = disk.checkpoint_bytes

    def noted(loop: TrainingLoop) -> int:
        found.append(estimate(loop))
        return found[-1]

    monkeypatch.setattr(disk, "checkpoint_bytes", noted)
    return found


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def whole(estimate: int, done: Path) -> int:
    """What a run needs, by one that was done."""
    return (KEEP + 1) * estimate + 2 * (size(done / "adapter") + 64 * 1024)


class TestEstimate:
    @pytest.mark.parametrize(
        "chosen", [plan(NONE), plan(DER), plan(NONE, ema={"decay": 0.9})], ids=["none", "der", "with an average"]
    )
    def test_is_what_a_checkpoint_takes_and_little_more(
        self, chosen: TrainingPlan, estimates: list[int], model_dir: Path, prepared: Artefacts, tmp_path: Path
    ) -> None:
        train(model_dir, chosen, tmp_path, artefacts=prepared)
        (saved,) = (tmp_path / CHECKPOINT_DIR).iterdir()
        num_steps = 3
        assert size(saved) <= estimates[0] <= size(saved) + num_steps * 1024 + 64 * 1024


class TestTooFull:
    def test_is_told_with_numbers_before_the_first_step(
        self, set_free: Callable[[int], None], model_dir: Path, tmp_path: Path
    ) -> None:
        set_free(20_000)
        watch = StopAfter(1)
        with pytest.raises(DiskTooFull, match=r"has 0\.02 MB free, and this job needs \d+\.\d\d MB for its"):
            train(model_dir, plan(NONE), tmp_path, control=watch)
        assert watch.steps == []
        assert not (tmp_path / CHECKPOINT_DIR).exists()

    def test_counts_checkpoints_that_are_kept_and_the_one_beside_them(
        self, set_free: Callable[[int], None], estimates: list[int], model_dir: Path, tmp_path: Path
    ) -> None:
        often = plan(NONE, num_epochs=3, checkpoint_every_steps=1)
        train(model_dir, often, tmp_path / "free")
        set_free((KEEP + 1) * estimates[0])
        with pytest.raises(DiskTooFull):
            train(model_dir, often, tmp_path / "full")
        set_free(whole(estimates[0], tmp_path / "free"))
        assert train(model_dir, often, tmp_path / "enough").is_complete

    def test_does_not_count_what_is_there_already(
        self, set_free: Callable[[int], None], estimates: list[int], model_dir: Path, tmp_path: Path
    ) -> None:
        often = plan(NONE, num_epochs=3, checkpoint_every_steps=1)
        train(model_dir, often, tmp_path / "whole")
        train(model_dir, often, tmp_path / "parts", control=StopAfter(3))
        already = size(tmp_path / "parts" / CHECKPOINT_DIR)
        set_free(whole(estimates[0], tmp_path / "whole") - already)
        with pytest.raises(DiskTooFull):
            train(model_dir, often, tmp_path / "fresh")
        assert train(model_dir, often, tmp_path / "parts").is_complete
