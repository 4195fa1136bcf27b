"""QLoRA: training on a base in 4 bits, for real on the CPU, which bitsandbytes supports too."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workers.conftest import TinyModels
from tests.workers.conversations import row, short_rows
from tests.workers.finetuning import golden
from tests.workers.finetuning.prepared import write_prepared
from tests.workers.finetuning.runs import DER, NONE, StopAfter, adapter_bytes, plan, train
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.run import FinetuneResult, finetune
from workers.modeling import adapters
from workers.modeling.errors import QuantisationUnavailable
from workers.modeling.loading import load

needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
REFUSALS = [row(f"How do I break into house {n}?", "I'm sorry, but I can't help with that.") for n in range(9)]


@pytest.fixture(scope="session")
def refusing(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Artefacts:
    """A model that has learned something, so that losses say something."""
    return write_prepared(tmp_path_factory.mktemp("quantised") / "base", tiny_models.refusing())


def train_nf4(base: Artefacts, method: dict[str, Any], folder: Path, **settings: Any) -> FinetuneResult:
    return train(base.model_dir, plan(method, quantisation="nf4", **settings), folder, artefacts=base)


@needs_bitsandbytes
class TestTraining:
    def test_begins_near_the_loss_of_the_base_in_full(self, refusing: Artefacts, tmp_path: Path) -> None:
        losses = {
            name: train(refusing.model_dir, plan(NONE, quantisation=name), tmp_path / name, rows=REFUSALS).history[0]
            for name in ("none", "nf4")
        }
        assert losses["nf4"].loss != losses["none"].loss
        assert losses["nf4"].loss == pytest.approx(losses["none"].loss, abs=0.05)
        assert losses["nf4"].token_accuracy == losses["none"].token_accuracy == 1.0

    def test_learns_the_rows(self, refusing: Artefacts, tmp_path: Path) -> None:
        result = train_nf4(refusing, NONE, tmp_path, num_epochs=4)
        assert result.history[-1].loss < 0.75 * result.history[0].loss
        assert result.summary is not None
        assert result.summary.notes == [
            "The base was held in 4 bits (nf4) while the adapter was trained; it is measured unquantised."
        ]

    def test_makes_an_adapter_for_the_base_in_full(self, refusing: Artefacts, tmp_path: Path) -> None:
        quantised = train_nf4(refusing, NONE, tmp_path / "nf4").adapter_dir
        full = train(refusing.model_dir, plan(NONE), tmp_path / "full").adapter_dir
        assert quantised is not None
        assert full is not None
        assert adapters.read_pairs(quantised).keys() == adapters.read_pairs(full).keys()
        tuned = adapters.attach_saved(load(refusing.model_dir, precision="fp32").model, quantised)
        assert tuned(input_ids=torch.tensor([[4, 8, 15]])).logits.isfinite().all()

    def test_replays_the_states_of_the_base_in_4_bits(self, refusing: Artefacts, tmp_path: Path) -> None:
        """Before its first step the student is the teacher; the states in the file are those of the base in full."""
        first = train_nf4(refusing, DER, tmp_path, num_epochs=1, learning_rate=1e-9).history[0]
        assert first.counters["der_divergence"] < 1e-9

    @pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True}], ids=["plain", "recomputed"])
    def test_resumed_or_recomputed_ends_with_the_same_bytes(
        self, settings: dict[str, Any], refusing: Artefacts, tmp_path: Path
    ) -> None:
        whole = train_nf4(refusing, DER, tmp_path / "whole")
        chosen = plan(DER, quantisation="nf4", **settings)
        for control in (StopAfter(1), StopAfter(1000)):
            parts = train(refusing.model_dir, chosen, tmp_path / "parts", artefacts=refusing, control=control)
        assert adapter_bytes(parts) == adapter_bytes(whole)

    @pytest.mark.parametrize("name", ["agem", "ewc", "lwf", "magmax", "safelora"])
    def test_suits_methods_that_look_at_more_than_the_forward(
        self, name: str, refusing: Artefacts, tmp_path: Path
    ) -> None:
        result = train_nf4(refusing, golden.METHODS[name], tmp_path)
        assert result.adapter_dir is not None
        assert len(adapters.read_pairs(result.adapter_dir)) == 2 * 7

    def test_in_bf16(self, refusing: Artefacts, tmp_path: Path) -> None:
        result = train_nf4(refusing, DER, tmp_path, precision="bf16", num_epochs=4)
        assert result.history[-1].loss < 0.75 * result.history[0].loss

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: pytest -m gpu")
    def test_on_a_gpu(self, refusing: Artefacts, tmp_path: Path) -> None:
        chosen = plan(DER, quantisation="nf4", precision="bf16", gradient_checkpointing=True, num_epochs=4)
        result = train(refusing.model_dir, chosen, tmp_path, artefacts=refusing)
        assert result.history[-1].loss < 0.75 * result.history[0].loss


class TestABaseInFull:
    def test_is_refused_where_4_bits_were_planned(self, refusing: Artefacts, tmp_path: Path) -> None:
        base = load(refusing.model_dir, precision="fp32")
        with pytest.raises(QuantisationUnavailable, match="quantisation is «nf4», and the base is loaded otherwise"):
            finetune(
                base, short_rows(9), plan(NONE, quantisation="nf4"), out_dir=tmp_path, base_name="b", base_hash="h"
            )
        assert not list(tmp_path.iterdir())
