"""Training that goes on from a finished adapter: theta_safe stays what safety is measured from, for every method.

At the first step the adapter stands where it was. Whoever took that for the safe model would find no drift there.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workers.conftest import TinyModels
from tests.workers.finetuning.proof import ProofRun
from tests.workers.finetuning.runs import NONE, StopAfter, adapter_bytes, plan, train
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.errors import CheckpointMismatch
from workers.finetuning.fisher import load_fisher
from workers.finetuning.methods import build_method
from workers.finetuning.run import FinetuneResult
from workers.modeling.adapters import LoraPair, read_pairs

STILL = 1e-12
"""A learning rate at which nothing moves."""
RATE, RHO = 1e-2, 2.0
ROOM = 2**30
"""For the states that LwF records; without any the teacher runs beside the step."""


@pytest.fixture
def model_dir(tiny_models: TinyModels) -> Path:
    return tiny_models.folder("llama")


@pytest.fixture
def tuned(model_dir: Path, tmp_path: Path) -> Path:
    """A plain fine-tuning on the very rows of `train`, which has moved far."""
    found = train(model_dir, plan(NONE, num_epochs=6), tmp_path / "tuned").adapter_dir
    assert found is not None
    return found


def deltas(pairs: dict[str, LoraPair]) -> dict[str, torch.Tensor]:
    return {name: pair.b @ pair.a for name, pair in pairs.items()}


def assert_same_update(result: FinetuneResult, expected: dict[str, LoraPair]) -> None:
    assert result.adapter_dir is not None
    found = deltas(read_pairs(result.adapter_dir))
    for name, delta in deltas(expected).items():
        torch.testing.assert_close(found[name], delta, rtol=1e-3, atol=1e-5)


class TestDriftAtTheFirstStep:
    @pytest.mark.parametrize(
        ("method", "counter", "cache_bytes"),
        [
            ({"name": "der"}, "der_divergence", ROOM),
            ({"name": "der", "alpha": {"budget": 0.05}}, "der_divergence", ROOM),
            ({"name": "derpp"}, "derpp_divergence", ROOM),
            ({"name": "refresh"}, "refresh_divergence", ROOM),
            ({"name": "safegrad"}, "safegrad_divergence", ROOM),
            ({"name": "lwf"}, "lwf_distance", ROOM),
            ({"name": "lwf"}, "lwf_distance", 0),
            ({"name": "lwf", "divergence": "kl"}, "lwf_distance", ROOM),
            ({"name": "lwf", "divergence": "kl"}, "lwf_distance", 0),
            ({"name": "ewc"}, "ewc_penalty", ROOM),
        ],
        ids=str,
    )
    def test_is_that_from_the_safe_base(
        self,
        method: dict[str, Any],
        counter: str,
        cache_bytes: int,
        model_dir: Path,
        prepared: Artefacts,
        tuned: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("workers.finetuning.methods.lwf.CACHE_BYTES", cache_bytes)
        chosen = plan(method, learning_rate=STILL)
        fresh = train(model_dir, chosen, tmp_path / "fresh", artefacts=prepared)
        continued = train(model_dir, chosen, tmp_path / "on", artefacts=prepared, start_from=tuned)
        # Refresh moves the parameters a little before it looks.
        assert fresh.history[0].counters[counter] == pytest.approx(0.0, abs=1e-4)
        assert continued.history[0].counters[counter] > 0.01

    def test_of_ewc_is_that_of_the_whole_update(
        self, model_dir: Path, prepared: Artefacts, tuned: Path, tmp_path: Path
    ) -> None:
        chosen = plan({"name": "ewc", "strength": 3.0}, learning_rate=STILL)
        result = train(model_dir, chosen, tmp_path / "on", artefacts=prepared, start_from=tuned)
        updates = deltas(read_pairs(tuned))
        shapes = {name: (update.shape[0], update.shape[1]) for name, update in updates.items()}
        fisher = load_fisher(prepared.fisher_file, shapes, torch.device("cpu"))
        springs = sum(float((fisher.weights[name].float() * u.square()).sum()) for name, u in updates.items())
        assert result.history[0].counters["ewc_penalty"] == pytest.approx(1.5 * springs / fisher.mean, rel=1e-3)

    def test_makes_constrained_tokens_light_where_the_adapter_prefers_them_already(
        self, model_dir: Path, prepared: Artefacts, tuned: Path, tmp_path: Path
    ) -> None:
        chosen = plan({"name": "constrained_sft"}, learning_rate=STILL)
        fresh = train(model_dir, chosen, tmp_path / "fresh", artefacts=prepared)
        continued = train(model_dir, chosen, tmp_path / "on", artefacts=prepared, start_from=tuned)
        weight = "constrained_sft_mean_weight"
        assert fresh.history[0].counters[weight] == pytest.approx(1.0, abs=1e-4)
        assert continued.history[0].counters[weight] < 0.9

    def test_is_looked_for_by_safegrad_at_once(
        self, model_dir: Path, prepared: Artefacts, tuned: Path, tmp_path: Path
    ) -> None:
        """A fresh adapter is theta_safe, and the first step's pass is left out."""
        chosen = plan({"name": "safegrad"})
        fresh = train(model_dir, chosen, tmp_path / "fresh", artefacts=prepared)
        continued = train(model_dir, chosen, tmp_path / "on", artefacts=prepared, start_from=tuned)
        assert fresh.history[0].counters["safegrad_memory_tokens"] == 0.0
        assert continued.history[0].counters["safegrad_memory_tokens"] > 0.0


class TestParametersThemselves:
    """A and B of a fresh adapter have nothing to do with those of the one that training goes on from."""

    def test_lisas_first_turn_is_held_near_where_it_began(
        self, model_dir: Path, prepared: Artefacts, tuned: Path, tmp_path: Path
    ) -> None:
        """Two alignment steps, the term on from the first: before the second, AdamW has moved each number by about its
        rate. A fresh adapter's numbers are a hundred times as far away."""
        method = {"name": "lisa", "alignment_steps": 2, "user_steps": 1, "rho": RHO, "proximal_after": 0.0}
        chosen = plan(method, num_epochs=2, warmup_ratio=0.0, learning_rate=RATE)
        result = train(model_dir, chosen, tmp_path / "on", artefacts=prepared, start_from=tuned)
        num_numbers = sum(pair.a.numel() + pair.b.numel() for pair in read_pairs(tuned).values())
        assert result.history[0].counters["lisa_proximal"] == 0.0
        proximal = result.history[1].counters["lisa_proximal"]
        assert 0.0 < proximal <= 1.01 * RHO / 2 * num_numbers * RATE**2

    def test_an_average_begins_at_the_adapter(self, model_dir: Path, tuned: Path, tmp_path: Path) -> None:
        chosen = plan(NONE, ema={"decay": 0.7}, learning_rate=STILL)
        result = train(model_dir, chosen, tmp_path / "on", start_from=tuned)
        assert_same_update(result, read_pairs(tuned))
        assert result.history[-1].counters["ema_decay"] == 0.7


class TestWhatIsShipped:
    """The whole update since theta_safe goes through the method's end, not what this run has added."""

    @pytest.mark.parametrize(
        "parts",
        [
            {"method": {"name": "safelora"}},
            {"method": {"name": "magmax"}},
            {"method": NONE, "merge": {"name": "wise_ft", "base_weight": 0.25}},
            {"method": NONE, "merge": {"name": "slerp", "base_weight": 0.3}},
            {"method": NONE, "merge": {"name": "ties"}},
            {"method": NONE, "merge": {"name": "dare", "density": 0.5}},
        ],
        ids=str,
    )
    def test_is_made_of_the_whole_update(
        self, parts: dict[str, Any], model_dir: Path, prepared: Artefacts, tuned: Path, tmp_path: Path
    ) -> None:
        chosen = plan(learning_rate=STILL, **parts)
        reference = ProofRun(prepared, build_method(chosen), tmp_path / "proof", chosen)
        expected = reference.method.release(read_pairs(tuned))
        assert expected is not None
        result = train(model_dir, chosen, tmp_path / "on", artefacts=prepared, start_from=tuned)
        assert_same_update(result, expected)

    def test_keeps_what_was_learnt_before(self, model_dir: Path, tuned: Path, tmp_path: Path) -> None:
        result = train(model_dir, plan(NONE, learning_rate=STILL), tmp_path / "on", start_from=tuned)
        assert_same_update(result, read_pairs(tuned))


class TestInterrupted:
    @pytest.mark.parametrize("stops", [(1,), (2, 2)], ids=str)
    @pytest.mark.parametrize(
        "parts",
        [
            {"method": NONE, "ema": {"decay": 0.7}},
            {"method": {"name": "der", "memory_rows_per_step": 3}},
            {"method": {"name": "lisa", "alignment_steps": 2, "user_steps": 2, "proximal_after": 0.0}},
            {"method": {"name": "ewc"}},
            {"method": {"name": "lwf"}},
            {"method": {"name": "safegrad"}},
        ],
        ids=str,
    )
    def test_ends_with_the_bytes_of_one_that_was_never_stopped(
        self,
        parts: dict[str, Any],
        stops: tuple[int, ...],
        model_dir: Path,
        prepared: Artefacts,
        tuned: Path,
        tmp_path: Path,
    ) -> None:
        chosen = plan(num_epochs=2, **parts)
        whole = train(model_dir, chosen, tmp_path / "whole", artefacts=prepared, start_from=tuned)
        for num_steps in stops:
            stop = StopAfter(num_steps)
            train(model_dir, chosen, tmp_path / "on", artefacts=prepared, start_from=tuned, control=stop)
        continued = train(model_dir, chosen, tmp_path / "on", artefacts=prepared, start_from=tuned)
        assert adapter_bytes(continued) == adapter_bytes(whole)
        assert continued.history == whole.history

    def test_does_not_go_on_from_checkpoints_of_another_start(
        self, model_dir: Path, tuned: Path, tmp_path: Path
    ) -> None:
        other = train(model_dir, plan(NONE, seed=1), tmp_path / "other").adapter_dir
        train(model_dir, plan(NONE), tmp_path / "on", start_from=tuned, control=StopAfter(1))
        with pytest.raises(CheckpointMismatch, match="another base, data set or plan"):
            train(model_dir, plan(NONE), tmp_path / "on", start_from=other)
