"""Two processes on the CPU (gloo) against one: the same adapter, metrics and counters up to the rounding of sums."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from app.contracts.plan import TrainingPlan
from tests.workers.conversations import short_rows
from tests.workers.finetuning import golden
from tests.workers.finetuning.proof import assert_same
from tests.workers.finetuning.runs import DER, DPO, NONE, StopAfter, plan, rows_for, train
from tests.workers.finetuning.together import ROOT, SECONDS, Run, train_together
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.distributed import Ranks
from workers.finetuning.rows import TokenRow
from workers.finetuning.run import ADAPTER_DIR, FinetuneResult
from workers.modeling import adapters
from workers.modeling.adapters import WEIGHTS_FILE

METHODS: dict[str, dict[str, Any]] = {
    "derpp": {"name": "derpp", "memory_rows_per_step": 3},
    # Draws noise: the same in both processes.
    "refresh": {"name": "refresh", "memory_rows_per_step": 3, "step_size": 1e-3},
    **golden.METHODS,
    "der with a budget": {"name": "der", "alpha": {"budget": 1e-3}, "memory_rows_per_step": 3},
}
RELATIVE = 3e-5
"""AdamW's first steps divide every entry of a gradient by its own size: rounding grows with them."""
DROPOUT = {"rank": 4, "alpha": 8, "dropout": 0.3}


def settings(method: dict[str, Any], **more: Any) -> TrainingPlan:
    return plan(method, **{"num_epochs": 2, "learning_rate": 1e-3, **more})


PLANS = {
    **{name: settings(method, **golden.settings(name)) for name, method in METHODS.items()},
    "every pair alone": settings(NONE, objective=DPO, micro_batch_tokens=8),
    "pairs with refresh": settings(METHODS["refresh"], objective=DPO),
    "every row alone": settings(DER, micro_batch_tokens=8),
    "with modifiers": settings(NONE, ema={"decay": 0.5}, merge={"name": "wise_ft", "base_weight": 0.2}),
    # The other process has nothing to do.
    "one row a step": settings(NONE, batch_size=1),
}
RESUMED = settings(DER)


class Together:
    """All runs of this module, made once in two processes."""

    def __init__(self, folder: Path, base: Artefacts) -> None:
        self._folder = folder
        self._base = base
        self.alone("one, then two", RESUMED, StopAfter(2))
        self.outcomes = train_together(
            folder,
            base,
            [
                *(Run(name, chosen) for name, chosen in PLANS.items()),
                Run("dropout", settings(DER, lora=DROPOUT)),
                Run("dropout, stopped", settings(DER, lora=DROPOUT), stop_after=3),
                Run("dropout, stopped", settings(DER, lora=DROPOUT)),
                Run("dropout, recomputed", settings(DER, lora=DROPOUT, gradient_checkpointing=True)),
                Run("one, then two", RESUMED),
                Run("two, then one", RESUMED, stop_after=4),
                Run("different rows", settings(NONE), rows_missing=1),
            ],
        )

    def alone(self, name: str, chosen: TrainingPlan, control: StopAfter | None = None) -> FinetuneResult:
        """The same in this process."""
        folder, rows = self._folder / name, rows_for(chosen, 4)
        return train(self._base.model_dir, chosen, folder, artefacts=self._base, validation_rows=rows, control=control)

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self._folder / name / ADAPTER_DIR / WEIGHTS_FILE)


@pytest.fixture(scope="module")
def together(prepared: Artefacts, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Together:
    return Together(tmp_path_factory.mktemp("together"), prepared)


class TestTwoProcesses:
    @pytest.mark.parametrize("name", PLANS)
    def test_make_the_adapter_that_one_makes(self, name: str, together: Together) -> None:
        alone = together.alone(f"{name}, alone", PLANS[name])
        assert_same(together.weights(name), together.weights(f"{name}, alone"), relative=RELATIVE)
        outcome = together.outcomes[name]
        assert alone.summary is not None
        assert outcome.notes == alone.summary.notes
        assert len(outcome.history) == len(alone.history)
        for found, expected in zip(outcome.history, alone.history, strict=True):
            # Rewards are differences of sums of hundreds of nats.
            absolute = 1e-5 if alone.summary.objective.name == "dpo" else 1e-9
            assert found["counters"] == pytest.approx(expected.counters, rel=1e-4, abs=absolute)
            assert found["loss"] == pytest.approx(expected.loss, rel=1e-5)
            assert found["gradient_norm"] == pytest.approx(expected.gradient_norm, rel=1e-4)
            assert found["valid_loss"] == (expected.valid_loss and pytest.approx(expected.valid_loss, rel=1e-5))
            exact = ["step", "learning_rate", "valid_token_accuracy", "processed_tokens"]
            # In the first step a pair's answers are ahead of each other by nothing but rounding.
            exact += [] if expected.step == 1 and alone.summary.objective.name == "dpo" else ["token_accuracy"]
            assert [found[what] for what in exact] == [getattr(expected, what) for what in exact]

    def test_draw_dropout_of_their_own_alike_in_each_run(self, together: Together) -> None:
        whole = together.weights("dropout")
        for other in ("dropout, stopped", "dropout, recomputed"):
            assert all(torch.equal(tensor, whole[name]) for name, tensor in together.weights(other).items())
        assert not torch.equal(whole[next(iter(whole))], together.weights("der")[next(iter(whole))])

    def test_go_on_from_where_one_was_stopped(self, together: Together) -> None:
        together.alone("never stopped", RESUMED)
        assert_same(together.weights("one, then two"), together.weights("never stopped"), relative=RELATIVE)

    def test_leave_a_checkpoint_that_one_goes_on_from(self, together: Together) -> None:
        assert together.outcomes["two, then one"].notes is None
        assert len(together.outcomes["two, then one"].history) == 4
        assert len(together.alone("two, then one", RESUMED).history) == 6
        assert_same(together.weights("two, then one"), together.weights("der"), relative=RELATIVE)

    def test_that_were_given_different_rows_refuse_to_train(self, together: Together) -> None:
        expected = "ProcessesDiffer: The processes of this run do not have the same data, plan and checkpoint."
        assert together.outcomes["different rows"].error == expected


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices: pytest -m gpu")
def test_two_gpus_make_the_adapter_that_one_makes(prepared: Artefacts, tmp_path: Path) -> None:
    chosen = settings(DER)
    train_together(tmp_path, prepared, [Run("two", chosen)], on_gpus=True)
    train(prepared.model_dir, chosen, tmp_path / "one", artefacts=prepared)
    two, one = (load_file(tmp_path / name / ADAPTER_DIR / WEIGHTS_FILE) for name in ("two", "one"))
    assert_same(two, one, relative=1e-3)


def test_torchrun_starts_the_command_in_several_processes(prepared: Artefacts, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(r.model_dump_json(exclude_defaults=True) + "\n" for r in short_rows(9)))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "workers.finetuning"]
    options = {"--base": prepared.model_dir, "--data": data, "--out": tmp_path / "out", "--method": "none"}
    command = [sys.executable, *torchrun, *(str(part) for option in options.items() for part in option)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    # Printed by one of them, or it would be no JSON.
    assert json.loads(done.stdout)["num_steps"] == 2
    assert len(adapters.read_pairs(tmp_path / "out" / ADAPTER_DIR)) == 2 * 7


class TestShares:
    def test_have_about_as_many_tokens_and_every_row_once(self) -> None:
        """The longest first, to whoever has least: 9 | 7, then 5 makes 12, 4 makes 13 of the 9, and 1 makes 13 too."""
        rows = [TokenRow(tuple(range(n)), (0,), (1,)) for n in (4, 9, 1, 5, 7)]
        shares = [[len(row.ids) for row in Ranks(rank, 2).share(rows)] for rank in (0, 1)]
        assert shares == [[4, 9], [1, 5, 7]]

    def test_have_both_rows_of_a_pair(self) -> None:
        """Pairs of 3 + 1, 6 + 1 and 1 + 1 tokens and a row of 4: 7 | 4, then the other 4, and 2 for the first."""
        lengths = ((0, 3), (1, 6), (0, 1), (None, 4), (2, 1), (1, 1), (2, 1))
        rows = [TokenRow(tuple(range(n)), (0,), (1,), pair=pair) for pair, n in lengths]
        shares = [[(row.pair, len(row.ids)) for row in Ranks(rank, 2).share(rows)] for rank in (0, 1)]
        assert shares == [[(1, 6), (1, 1), (2, 1), (2, 1)], [(0, 3), (0, 1), (None, 4)]]

    def test_may_be_empty(self) -> None:
        row = TokenRow((1, 2), (0,), (2,))
        assert [Ranks(rank, 3).share([row]) for rank in range(3)] == [[row], [], []]

    def test_of_one_process_are_the_rows_as_they_are(self) -> None:
        rows = [TokenRow(tuple(range(n)), (0,), (1,)) for n in (1, 3, 2)]
        assert Ranks().share(rows) == rows
