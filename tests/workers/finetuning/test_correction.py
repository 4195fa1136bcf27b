"""Training that starts from a finished adapter, and corrective replay, which is such a training."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workers.conftest import TinyModels
from tests.workers.finetuning.prepared import memory_entries
from tests.workers.finetuning.runs import DER, NONE, StopAfter, plan, train
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.correction import correct
from workers.finetuning.errors import ArtefactMissing, CheckpointMismatch
from workers.finetuning.memory import write_entries
from workers.finetuning.run import FinetuneResult
from workers.modeling.adapters import read_pairs
from workers.modeling.errors import ModelingError
from workers.modeling.loading import load


@pytest.fixture
def model_dir(tiny_models: TinyModels) -> Path:
    return tiny_models.folder("llama")


@pytest.fixture
def tuned(model_dir: Path, tmp_path: Path) -> Path:
    """A plain fine-tuning that has moved far."""
    found = train(model_dir, plan(NONE, num_epochs=6), tmp_path / "tuned").adapter_dir
    assert found is not None
    return found


class TestStartFrom:
    def test_begins_where_the_adapter_is(self, model_dir: Path, tuned: Path, tmp_path: Path) -> None:
        still = plan(NONE, learning_rate=1e-12)
        result = train(model_dir, still, tmp_path / "on", start_from=tuned)
        assert result.adapter_dir is not None
        for name, pair in read_pairs(result.adapter_dir).items():
            before = read_pairs(tuned)[name]
            torch.testing.assert_close(pair.a, before.a, rtol=0, atol=1e-8)
            torch.testing.assert_close(pair.b, before.b, rtol=0, atol=1e-8)
        fresh = train(model_dir, still, tmp_path / "fresh")
        assert result.history[0].loss < 0.9 * fresh.history[0].loss

    def test_holds_to_the_base_and_not_to_where_it_begins(
        self, model_dir: Path, prepared: Artefacts, tuned: Path, tmp_path: Path
    ) -> None:
        """Teacher states are those of the base: at the first step the tuned adapter is away from them."""
        result = train(model_dir, plan(DER), tmp_path / "on", artefacts=prepared, start_from=tuned)
        fresh = train(model_dir, plan(DER), tmp_path / "fresh", artefacts=prepared)
        assert fresh.history[0].counters["der_divergence"] == pytest.approx(0.0, abs=1e-6)
        assert result.history[0].counters["der_divergence"] > 0.01

    def test_is_another_run_than_one_from_the_start(self, model_dir: Path, tuned: Path, tmp_path: Path) -> None:
        train(model_dir, plan(NONE), tmp_path / "run", control=StopAfter(1))
        with pytest.raises(CheckpointMismatch, match="another base, data set or plan"):
            train(model_dir, plan(NONE), tmp_path / "run", start_from=tuned)

    def test_wants_the_same_shape(self, model_dir: Path, tuned: Path, tmp_path: Path) -> None:
        with pytest.raises(ModelingError, match="rank and weights"):
            train(model_dir, plan(NONE, lora={"rank": 8, "alpha": 16}), tmp_path / "on", start_from=tuned)


def corrected(model_dir: Path, artefacts: Artefacts, adapter: Path, out_dir: Path, **settings: Any) -> FinetuneResult:
    return correct(
        load(model_dir, precision="fp32"),
        adapter,
        plan(NONE, **settings),
        artefacts,
        num_steps=8,
        out_dir=out_dir,
        base_name="tiny",
    )


class TestCorrection:
    def test_brings_safe_answers_back(self, model_dir: Path, prepared: Artefacts, tuned: Path, tmp_path: Path) -> None:
        before = {name: pair.b.clone() for name, pair in read_pairs(tuned).items()}
        first, *_, last = corrected(model_dir, prepared, tuned, tmp_path / "out").history
        assert last.loss < 0.95 * first.loss
        assert last.counters["der_divergence"] < 0.7 * first.counters["der_divergence"]
        assert all(torch.equal(pair.b, before[name]) for name, pair in read_pairs(tuned).items())

    def test_counts_its_steps_and_names_what_it_did(
        self, model_dir: Path, prepared: Artefacts, tuned: Path, tmp_path: Path
    ) -> None:
        """Six rows are a step an epoch."""
        summary = corrected(model_dir, prepared, tuned, tmp_path / "out").summary
        assert summary is not None
        assert (summary.num_steps, summary.num_rows, summary.method.name) == (8, 6, "der")
        assert (summary.ema, summary.merge) == (None, None)

    def test_takes_an_adapter_whose_rank_a_merge_has_changed(
        self, model_dir: Path, prepared: Artefacts, tmp_path: Path
    ) -> None:
        merge = {"name": "dare", "density": 0.5, "output_rank": 8}
        merged = train(model_dir, plan(NONE, merge=merge), tmp_path / "merged").adapter_dir
        assert merged is not None
        result = corrected(model_dir, prepared, merged, tmp_path / "out", merge=merge)
        assert result.adapter_dir is not None
        config = json.loads((result.adapter_dir / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"]) == (8, 8)

    def test_does_not_cut_the_memorys_rows_where_the_users_are(
        self, model_dir: Path, prepared: Artefacts, tuned: Path, tmp_path: Path
    ) -> None:
        summary = corrected(model_dir, prepared, tuned, tmp_path / "out", max_row_tokens=8).summary
        assert summary is not None
        assert not any("were cut" in note for note in summary.notes)

    def test_can_be_stopped(self, model_dir: Path, prepared: Artefacts, tuned: Path, tmp_path: Path) -> None:
        result = correct(
            load(model_dir, precision="fp32"),
            tuned,
            plan(NONE),
            prepared,
            num_steps=8,
            out_dir=tmp_path / "out",
            base_name="tiny",
            control=StopAfter(2),
        )
        assert result.adapter_dir is None

    def test_trains_on_no_answer_that_was_cut(
        self, model_dir: Path, prepared: Artefacts, tuned: Path, tmp_path: Path
    ) -> None:
        codec = load(model_dir, precision="fp32").codec
        entries = memory_entries(codec)
        kept = prepared.memory_file.read_bytes()
        try:
            write_entries(prepared.memory_file, [entry._replace(ids=entry.ids[:-1]) for entry in entries])
            with pytest.raises(ArtefactMissing, match="No answer in the safety memory is whole"):
                corrected(model_dir, prepared, tuned, tmp_path / "out")
        finally:
            prepared.memory_file.write_bytes(kept)
