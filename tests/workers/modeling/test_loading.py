import shutil
from pathlib import Path

import pytest
import torch

from tests.workers.conftest import TinyModels
from tests.workers.tiny import FAMILIES, Family
from workers.modeling.errors import SourceError
from workers.modeling.loading import autocast, load, resolve_precision


class TestLoad:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_gives_a_frozen_model_in_evaluation_mode(self, family: Family, tiny_models: TinyModels) -> None:
        loaded = load(tiny_models.folder(family), precision="fp32")
        assert not loaded.model.training
        assert not any(p.requires_grad for p in loaded.model.parameters())
        assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}

    def test_in_bf16(self, tiny_models: TinyModels) -> None:
        model = load(tiny_models.folder("llama"), precision="bf16").model
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}

    def test_shows_no_progress_bars(self, tiny_models: TinyModels, capfd: pytest.CaptureFixture[str]) -> None:
        load(tiny_models.folder("llama"))
        assert capfd.readouterr() == ("", "")

    def test_refuses_a_folder_without_a_configuration(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match=r"no config\.json: it is not a model folder"):
            load(tmp_path)

    def test_never_reads_pickled_weights(self, tmp_path: Path, tiny_models: TinyModels) -> None:
        folder = shutil.copytree(tiny_models.folder("llama"), tmp_path / "model")
        state = load(tiny_models.folder("llama")).model.state_dict()
        (folder / "model.safetensors").unlink()
        torch.save(state, folder / "pytorch_model.bin")
        with pytest.raises(OSError, match="safetensors"):
            load(folder)


class TestPrecision:
    def test_is_what_was_asked_for(self) -> None:
        assert resolve_precision("fp32", "cpu") is torch.float32
        assert resolve_precision("bf16", "cpu") is torch.bfloat16
        assert resolve_precision("auto", "cpu") in (torch.float32, torch.bfloat16)

    @pytest.mark.parametrize(("precision", "is_mixed"), [("fp32", False), ("bf16", True)])
    def test_is_mixed_for_bf16_models_only(self, precision: str, is_mixed: bool, tiny_models: TinyModels) -> None:
        model = load(tiny_models.folder("llama"), precision="bf16" if is_mixed else "fp32").model
        with autocast(model):
            assert torch.is_autocast_enabled("cpu") is is_mixed
