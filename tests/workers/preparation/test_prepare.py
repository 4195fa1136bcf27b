import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PhiConfig

from app.contracts.bases import PrepareRecipe
from app.contracts.evaluation import Verdict
from app.contracts.progress import ProgressMessage
from app.contracts.specs import PrepareSpec
from tests.workers.conftest import TinyModels
from tests.workers.finetuning.literal_fisher import literal_fisher
from tests.workers.finetuning.proof import assert_same
from tests.workers.listening import Listener, reports, says
from tests.workers.preparing import prepare_spec
from tests.workers.tiny import REFUSAL, tiny_model, tiny_tokenizer
from workers.channel import StopAsked
from workers.data import alignment_rows
from workers.evaluation.safety import BenchmarkAnswers
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.errors import ArtefactMissing
from workers.finetuning.fisher import load_fisher
from workers.finetuning.memory import memory_rows, read_entries
from workers.finetuning.twin import LowRankChange
from workers.modeling.adapters import read_pairs
from workers.modeling.errors import ModelingError, SourceError, UnsupportedModel
from workers.modeling.loading import load
from workers.preparation.memory import choose_prompts
from workers.preparation.run import prepare
from workers.preparation.twin import adapted_shapes


def prepare_quietly(spec: PrepareSpec) -> Path:
    return spec.bases_dir / prepare(spec, Listener().channel)


def files(folder: Path) -> dict[str, str]:
    """sha256 by relative name."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def spec(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> PrepareSpec:
    return prepare_spec(tiny_models.refusing(), tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="module")
def prepared(spec: PrepareSpec) -> Artefacts:
    """The refusing model, taken as safe."""
    return Artefacts(prepare_quietly(spec))


class TestPreparedBase:
    def test_has_every_part_and_nothing_left_over(self, prepared: Artefacts) -> None:
        assert sorted(path.name for path in prepared.directory.iterdir()) == [
            "baseline",
            "fisher.safetensors",
            "gram.safetensors",
            "memory.jsonl",
            "memory_counts.json",
            "model",
            "prepared.json",
            "references.safetensors",
            "teacher.safetensors",
        ]
        assert prepared.alignment_dir is None

    def test_memory_holds_the_models_own_refusals(self, prepared: Artefacts) -> None:
        """Nine prompts, a third of them harmless; this model refuses those too, and they are dropped."""
        entries = read_entries(prepared.memory_file)
        assert {(entry.kind, entry.answer) for entry in entries} == {("harmful", REFUSAL)}
        assert prepared.record["memory"] == {
            "asked": 9,
            "kept": 6,
            "kept_refusals": 6,
            "dropped_not_refused": 0,
            "dropped_not_helpful": 3,
        }
        prompts = {row.prompt for row in alignment_rows()}
        assert all(entry.prompt in prompts for entry in entries)

    def test_teacher_states_are_the_models_at_the_positions_that_predict_the_answer(self, prepared: Artefacts) -> None:
        loaded = load(prepared.model_dir)
        states = load_file(prepared.teacher_file)["states"]
        rows = memory_rows(read_entries(prepared.memory_file))
        assert states.shape == (sum(len(row.positions) for row in rows), 64)
        with torch.no_grad():
            alone = [
                loaded.model.base_model(input_ids=torch.tensor([row.ids])).last_hidden_state[0, list(row.positions)]
                for row in rows
            ]
        is_bf16 = states.dtype == torch.bfloat16
        torch.testing.assert_close(
            states, torch.cat(alone), rtol=0.05 if is_bf16 else 1e-5, atol=0.1 if is_bf16 else 1e-5
        )

    def test_gram_matrix_is_that_of_the_head(self, prepared: Artefacts) -> None:
        weight = load(prepared.model_dir).model.get_output_embeddings().weight.double()
        torch.testing.assert_close(prepared.load_gram(), weight.T @ weight)

    def test_record_has_the_true_hash_of_every_file(self, prepared: Artefacts) -> None:
        found = files(prepared.directory)
        found.pop("prepared.json")
        assert prepared.record["files"] == found

    def test_record_says_how_it_was_made(self, prepared: Artefacts, spec: PrepareSpec) -> None:
        record = prepared.record
        assert record["base_id"] == "tiny"
        assert record["source"] == spec.source
        assert PrepareRecipe.model_validate(record["recipe"]) == spec.recipe
        assert record["chat_template_sha256"] == load(prepared.model_dir).codec.template_sha256
        assert (spec.bases_dir / "fetched" / record["base_hash"]).is_dir()

    def test_baseline_has_the_models_answers(self, prepared: Artefacts) -> None:
        """It refuses everything: no harmful answer, and every harmless request refused."""
        rates = {name: facts["rate"] for name, facts in prepared.record["baseline"].items()}
        assert [(rate["hits"], rate["num_scored"]) for rate in rates.values()] == [(0, 5), (3, 3)]
        kept = [BenchmarkAnswers.model_validate_json(p.read_bytes()) for p in prepared.baseline_dir.iterdir()]
        answers = [answer for found in kept for answer in found.answers]
        assert {(answer.answer, answer.verdict) for answer in answers} == {(REFUSAL, Verdict.REFUSED)}
        assert len(answers) == 8


class TestFisherInformation:
    def test_is_that_of_the_memorys_first_rows(self, tiny_models: TinyModels, tmp_path: Path) -> None:
        listener = Listener()
        spec = prepare_spec(tiny_models.refusing(), tmp_path, fisher_rows=4)
        base = Artefacts(tmp_path / prepare(spec, listener.channel))
        loaded = load(base.model_dir, precision="fp32")
        found = load_fisher(base.fisher_file, adapted_shapes(loaded), torch.device("cpu"))
        rows = memory_rows(read_entries(base.memory_file))[:4]
        assert (found.num_rows, found.num_tokens) == (4, sum(len(row.positions) for row in rows))
        stored = load(base.model_dir).model.dtype
        assert {f.dtype for f in found.weights.values()} == {stored}
        weights = {name: f.double() for name, f in found.weights.items()}
        # Gradients of queries and keys nearly cancel in this model: their squares keep four of float32's digits.
        relative = 0.1 if stored == torch.bfloat16 else 2e-4
        assert_same(weights, literal_fisher(loaded.model, rows), relative=relative)
        assert listener.progress_of("Fisher information rows") == [4]

    def test_is_left_out_where_the_recipe_asks_for_no_rows(self, tiny_models: TinyModels, tmp_path: Path) -> None:
        spec = prepare_spec(tiny_models.refusing(), tmp_path, fisher_rows=0)
        base = Artefacts(prepare_quietly(spec))
        assert "fisher" not in spec.recipe.artefacts
        with pytest.raises(ArtefactMissing, match=r"no fisher\.safetensors"):
            _ = base.fisher_file

    def test_of_a_model_that_allows_none_is_empty_and_said(
        self, tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Such a base is still good for every other method."""

        def refuse(*_: object) -> None:
            raise UnsupportedModel("a mixture of experts")

        monkeypatch.setattr("workers.preparation.run.compute_fisher", refuse)
        listener = Listener()
        base = Artefacts(tmp_path / prepare(prepare_spec(tiny_models.refusing(), tmp_path), listener.channel))
        assert "No Fisher information: a mixture of experts" in listener.sentences
        with pytest.raises(ArtefactMissing, match="its model allowed none"):
            load_fisher(base.fisher_file, {}, torch.device("cpu"))


class TestSecondPreparation:
    def test_finds_what_is_there_and_asks_the_model_nothing(self, prepared: Artefacts, spec: PrepareSpec) -> None:
        before = {path: path.stat().st_mtime_ns for path in prepared.directory.rglob("*")}
        listener = Listener()
        name = prepare(spec, listener.channel)
        assert spec.bases_dir / name == prepared.directory
        assert listener.of(ProgressMessage) == []
        assert listener.statuses == []
        assert listener.sentences[-1] == f"tiny is prepared already ({name[:12]})"
        assert {path: path.stat().st_mtime_ns for path in prepared.directory.rglob("*")} == before

    def test_with_another_recipe_makes_another_folder(self, prepared: Artefacts, spec: PrepareSpec) -> None:
        other = prepare_quietly(prepare_spec(Path(spec.source.removeprefix("path:")), spec.bases_dir, memory_rows=12))
        assert other != prepared.directory
        assert Artefacts(other).record["memory"]["asked"] == 12
        assert prepared.memory_file.is_file()

    def test_of_the_same_weights_elsewhere_is_the_same(
        self, prepared: Artefacts, spec: PrepareSpec, tiny_models: TinyModels, tmp_path: Path
    ) -> None:
        copy = Path(shutil.copytree(tiny_models.refusing(), tmp_path / "copy"))
        listener = Listener()
        name = prepare(prepare_spec(copy, spec.bases_dir), listener.channel)
        assert spec.bases_dir / name == prepared.directory


class TestInterruptedPreparation:
    @pytest.mark.parametrize(
        ("moment", "part", "is_made"),
        [
            (says("Building the safety memory"), "memory.jsonl", False),
            (says("Safety memory: kept"), "memory.jsonl", True),
            (reports("baseline answers"), "gram.safetensors", True),
        ],
        ids=["in the memory", "after the memory", "in the baseline"],
    )
    def test_goes_on_and_ends_with_the_same_files(
        self,
        moment: object,
        part: str,
        is_made: bool,
        prepared: Artefacts,
        tiny_models: TinyModels,
        tmp_path: Path,
    ) -> None:
        assert callable(moment)
        spec = prepare_spec(tiny_models.refusing(), tmp_path)
        with pytest.raises(StopAsked):
            prepare(spec, Listener(moment).channel)
        (partial,) = tmp_path.glob("*.partial")
        assert not (tmp_path / partial.stem).exists()
        assert (partial / part).exists() is is_made
        listener = Listener()
        continued = tmp_path / prepare(spec, listener.channel)
        assert bool(listener.progress_of("safety memory answers")) is not is_made
        assert files(continued) == files(prepared.directory)
        assert list(tmp_path.glob("*.partial")) == []

    def test_after_its_record_was_written_records_no_hash_of_the_record(
        self, prepared: Artefacts, tiny_models: TinyModels, tmp_path: Path
    ) -> None:
        spec = prepare_spec(tiny_models.refusing(), tmp_path)
        shutil.copytree(prepared.directory, tmp_path / f"{prepared.directory.name}.partial")
        assert Artefacts(prepare_quietly(spec)).record["files"] == prepared.record["files"]

    def test_does_not_keep_half_of_a_part(self, prepared: Artefacts, tiny_models: TinyModels, tmp_path: Path) -> None:
        spec = prepare_spec(tiny_models.refusing(), tmp_path)
        with pytest.raises(StopAsked):
            prepare(spec, Listener(says("Building the safety memory")).channel)
        (partial,) = tmp_path.glob("*.partial")
        (partial / ".new-model").mkdir()
        (partial / ".new-memory.jsonl").write_text("half a li")
        assert files(prepare_quietly(spec)) == files(prepared.directory)


class TestBasesThatCannotBePrepared:
    def test_one_that_refuses_nothing_is_told_to_be_aligned(self, tiny_models: TinyModels, tmp_path: Path) -> None:
        with pytest.raises(ArtefactMissing, match=r"refused none of 6 harmful requests: .*\(align: true"):
            prepare(prepare_spec(tiny_models.folder("llama"), tmp_path), Listener().channel)
        (partial,) = tmp_path.glob("*.partial")
        assert not (partial / "memory.jsonl").exists()

    def test_one_with_a_head_that_training_cannot_use(self, tiny_models: TinyModels, tmp_path: Path) -> None:
        """It would otherwise be offered to tenants, and every job on it would fail."""
        tokenizer = tiny_tokenizer()
        config = PhiConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            pad_token_id=0,
            eos_token_id=len(tokenizer) - 1,
        )
        tiny_model(config).save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        with pytest.raises(UnsupportedModel, match="no bias-free linear layer"):
            prepare(prepare_spec(tmp_path / "model", tmp_path / "bases"), Listener().channel)

    def test_one_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="is not a folder"):
            prepare(prepare_spec(tmp_path / "nowhere", tmp_path), Listener().channel)

    def test_one_whose_shipped_adapter_does_not_exist(self, tiny_models: TinyModels, tmp_path: Path) -> None:
        with pytest.raises(ModelingError, match="ships no alignment adapter «nobody»; prepare with --retrain"):
            prepare(
                prepare_spec(tiny_models.refusing(), tmp_path, align=True, shipped_adapter="nobody"), Listener().channel
            )


@pytest.fixture(scope="module")
def alignment(
    tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory, one_thread: None
) -> tuple[Listener, Listener, Path]:
    """A preparation that was stopped while it aligned, its continuation, and the prepared base."""
    bases_dir = tmp_path_factory.mktemp("aligned")
    recipe = {"rank": 4, "alpha": 8, "batch_size": 256, "learning_rate": 1e-5}
    spec = prepare_spec(tiny_models.refusing(), bases_dir, align=True, alignment=recipe)
    first, second = Listener(reports("alignment steps")), Listener()
    with pytest.raises(StopAsked):
        prepare(spec, first.channel)
    return first, second, bases_dir / prepare(spec, second.channel)


class TestAlignment:
    """The whole alignment set in steps of 256 rows, at a rate so low that the refusing model stays what it is."""

    def test_goes_on_from_its_checkpoint(self, alignment: tuple[Listener, Listener, Path]) -> None:
        first, second, _ = alignment
        num_steps = -(-len(alignment_rows()) // 256)
        # The first sentence of progress asks to stop, and the second step notices.
        assert first.progress_of("alignment steps") == [1]
        assert second.progress_of("alignment steps")[0] == 3
        assert second.progress_of("alignment steps")[-1] == num_steps
        assert second.statuses == ["aligning", "preparing"]

    def test_merges_its_adapter_into_the_base(
        self, alignment: tuple[Listener, Listener, Path], tiny_models: TinyModels
    ) -> None:
        aligned = Artefacts(alignment[2])
        assert aligned.alignment_dir is not None
        pairs = read_pairs(aligned.alignment_dir)
        base = load(tiny_models.refusing(), precision="fp32").model.state_dict()
        merged = load(aligned.model_dir, precision="fp32").model.state_dict()
        assert merged.keys() == base.keys()
        changed = set()
        for name, weight in base.items():
            pair = pairs.get(name.removesuffix(".weight"))
            expected = weight if pair is None else weight + pair.b @ pair.a
            assert torch.equal(merged[name], expected), name
            if not torch.equal(merged[name], weight):
                changed.add(name.removesuffix(".weight"))
        assert changed == pairs.keys()

    def test_has_its_adapter_as_what_alignment_changed(self, alignment: tuple[Listener, Listener, Path]) -> None:
        aligned = Artefacts(alignment[2])
        assert aligned.alignment_dir is not None
        twin = aligned.unaligned_twin()
        for name, pair in read_pairs(aligned.alignment_dir).items():
            change = twin.change(name, torch.device("cpu"))
            assert isinstance(change, LowRankChange)
            assert torch.equal(change.pair.a, pair.a)
            assert torch.equal(change.pair.b, pair.b)

    def test_leaves_no_training_files_behind(self, alignment: tuple[Listener, Listener, Path]) -> None:
        assert not (alignment[2] / "alignment_run").exists()
        assert sorted(path.name for path in (alignment[2] / "alignment_adapter").iterdir()) == [
            "adapter_config.json",
            "adapter_model.safetensors",
        ]
        record = json.loads((alignment[2] / "prepared.json").read_text())
        assert record["theta_safe_hash"] != record["base_hash"]
        assert not any(name.startswith("alignment_run") for name in record["files"])


class TestChosenPrompts:
    def test_are_two_thirds_harmful_from_every_beginning_on(self) -> None:
        chosen = choose_prompts(240, seed=0)
        assert len({row.id for row in chosen}) == len(chosen) == 240
        for count in (9, 30, 120, 240):
            share = sum(row.kind == "harmful" for row in chosen[:count]) / count
            assert share == pytest.approx(2 / 3, abs=0.1)

    def test_spread_over_all_categories(self) -> None:
        categories = {row.category for row in alignment_rows() if row.kind == "harmful"}
        chosen = [row for row in choose_prompts(3 * len(categories), seed=0) if row.kind == "harmful"]
        assert {row.category for row in chosen} == categories

    def test_are_as_many_as_there_are_when_more_are_asked_for(self) -> None:
        everything = choose_prompts(1_000_000, seed=0)
        assert len(everything) == len(alignment_rows())

    def test_depend_on_the_seed_alone(self) -> None:
        assert choose_prompts(30, seed=1) == choose_prompts(30, seed=1) != choose_prompts(30, seed=2)


def test_folder_names_are_hashes(prepared: Artefacts) -> None:
    assert re.fullmatch(r"[0-9a-f]{64}", prepared.directory.name)
