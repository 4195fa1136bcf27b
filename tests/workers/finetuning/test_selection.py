from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from app.contracts.chat import ChatRow
from app.contracts.methods import METHOD_CONFIGS
from app.contracts.plan import TrainingPlan
from tests.workers.conftest import TinyModels
from tests.workers.conversations import short_pairs, short_rows
from tests.workers.finetuning.conftest import PreparedBases
from tests.workers.finetuning.prepared import MEMORY, write_prepared
from tests.workers.finetuning.proof import ProofRun
from tests.workers.finetuning.runs import DER, NONE, StopAfter, adapter_bytes, plan, train
from tests.workers.tiny import Family
from workers.finetuning import selection as module
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.backbone import Backbone
from workers.finetuning.memory import SafetyMemory
from workers.finetuning.method import MethodContext
from workers.finetuning.preference import encode_pairs
from workers.finetuning.rows import TokenRow, encode_dataset
from workers.finetuning.run import FinetuneResult
from workers.finetuning.selection import choose, select, similarities
from workers.modeling import similarity
from workers.modeling.loading import load

MORE_MEMORY = (
    *MEMORY,
    ("ordinary", "What colour has the sea?", "Blue."),
    ("harmful", "How do I open a stolen phone?", "I can't help with that phone."),
    ("lookalike", "How do I shoot a photo at night?", "Hold it still."),
    ("harmful", "Write an insult for my teacher", "I'd rather not. Shall we write what went wrong?"),
    ("ordinary", "Which colour has the door?", "It is red."),
    ("harmful", "How do I follow somebody in secret?", "I won't help to do that."),
)
"""Twelve rows, seven of them refusals."""


class TestSimilarityByHand:
    def test_is_the_mean_cosine_to_the_nearest_rows_after_centring(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """All features add up to 0 before a shift, which centring takes out again.

        Memory (2, 0), (0, 2), (-2, 0), (0, -2); upload (3, 0), (0, -1), (-3, 1), the last of length sqrt 10.
        Cosines of the first row: 1, 0, -3 / sqrt 10; the two largest have a mean of 1 / 2. Second: 0, -1, 1 / sqrt 10:
        1 / (2 sqrt 10). Third: -1, 0, 3 / sqrt 10: 3 / (2 sqrt 10). Fourth: 0, 1, -1 / sqrt 10: 1 / 2.
        """
        monkeypatch.setattr(module, "NEIGHBOURS", 2)
        monkeypatch.setattr(similarity, "PIECE_ROWS", 3)
        shift = torch.tensor([5.0, -7.0])
        memory = torch.tensor([[2.0, 0.0], [0.0, 2.0], [-2.0, 0.0], [0.0, -2.0]]) + shift
        upload = torch.tensor([[3.0, 0.0], [0.0, -1.0], [-3.0, 1.0]]) + shift
        expected = [0.5, 0.5 / 10**0.5, 1.5 / 10**0.5, 0.5]
        assert similarities(memory, upload).tolist() == pytest.approx(expected, abs=1e-6)

    def test_of_an_upload_smaller_than_the_neighbourhood_is_to_all_of_it(self) -> None:
        """Memory (1, 0), (-1, 0); upload (0, 3), (0, -3): right angles everywhere."""
        memory, upload = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[0.0, 3.0], [0.0, -3.0]])
        assert similarities(memory, upload).tolist() == [0.0, 0.0]


class TestChoiceByHand:
    KINDS = ("harmful", "ordinary", "harmful", "harmful", "lookalike", "harmful", "ordinary", "harmful", "harmful")
    SCORES = (0.9, 0.1, 0.2, 0.8, 0.3, 0.2, 0.2, 0.5, 0.1)
    """Refusals 0, 2, 3, 5, 7, 8 from least to most similar: 8, 2, 5, 7, 3, 0. The others: 1, 6, 4."""

    @pytest.mark.parametrize(
        ("how", "size", "expected"),
        [
            # Six refusals of nine: two thirds of the size.
            ("low_similarity", 6, [8, 2, 5, 7, 1, 6]),
            ("high_similarity", 6, [5, 7, 3, 0, 6, 4]),
            ("mixed", 6, [8, 2, 3, 0, 1, 4]),
            # Of three refusals one is a similar one; of a single row none.
            ("mixed", 4, [8, 2, 0, 1]),
            ("low_similarity", 8, [8, 2, 5, 7, 3, 1, 6, 4]),
            ("high_similarity", 8, [2, 5, 7, 3, 0, 1, 6, 4]),
            # A proportion below one half still keeps a refusal.
            ("low_similarity", 1, [8]),
        ],
    )
    def test_keeps_the_proportion_of_refusals(self, how: str, size: int, expected: list[int]) -> None:
        assert choose(self.SCORES, self.KINDS, size, how) == sorted(expected)

    def test_of_few_refusals_keeps_one(self) -> None:
        kinds = ("ordinary",) * 20 + ("harmful",)
        assert choose([0.0] * 21, kinds, 8, "low_similarity") == [*range(7), 20]

    @pytest.mark.parametrize("how", ["low_similarity", "high_similarity", "mixed"])
    def test_takes_no_row_twice_and_as_many_as_asked_for(self, how: str) -> None:
        generator = torch.Generator().manual_seed(0)
        for number in range(2, 40):
            kinds = ["harmful" if x < 0.4 else "ordinary" for x in torch.rand(number, generator=generator).tolist()]
            scores = torch.rand(number, generator=generator).tolist()
            if "harmful" in kinds:
                for size in range(1, number):
                    assert len(set(choose(scores, kinds, size, how))) == size


class Recorded:
    """A selection on a tiny base, with what it has looked at."""

    def __init__(
        self,
        base: Artefacts,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        *,
        rows: Sequence[TokenRow] | None = None,
        size: int = 3,
        seed: int = 0,
    ) -> None:
        self.run = ProofRun(base, NONE, folder, plan(NONE, seed=seed))
        self.rows = self.run.loop.rows if rows is None else rows
        self.asked: list[TokenRow] = []
        backbone, objective = self.run.backbone, self.run.loop.objective
        context = MethodContext(backbone, self.rows, self.run.plan, base, lambda: self.run.memory, 3, objective)
        inner_states, inner_choose = Backbone.teacher_states, module.choose

        def teacher_states(backbone: Backbone, asked: Sequence[TokenRow], **settings: Any) -> torch.Tensor:
            self.asked += asked
            return inner_states(backbone, asked, **settings)

        def recording(scores: Sequence[float], kinds: Sequence[str], size: int, how: str) -> list[int]:
            self.scores = scores
            return inner_choose(scores, kinds, size, how)

        monkeypatch.setattr(Backbone, "teacher_states", teacher_states)
        monkeypatch.setattr(module, "choose", recording)
        self.chosen: SafetyMemory = select(self.run.memory, context, size, "low_similarity")
        self.notes = context.notes


@torch.no_grad()
def literal_scores(run: ProofRun, rows: Sequence[TokenRow]) -> list[float]:
    """Each text alone up to its answer's last token, the end token left out; one cosine at a time."""
    memory, upload = ([_feature(run.base, row) for row in some] for some in (run.memory.rows, rows))
    centre = torch.stack([*memory, *upload]).mean(0)
    scores = []
    for feature in memory:
        cosines = [float(F.cosine_similarity(feature - centre, other - centre, dim=0)) for other in upload]
        nearest = sorted(cosines)[-10:]
        scores.append(sum(nearest) / len(nearest))
    return scores


def _feature(model: PreTrainedModel, row: TokenRow) -> torch.Tensor:
    ids = row.ids[: row.ids.index(row.targets[-1], row.positions[-1])]
    states: torch.Tensor = model.base_model(input_ids=torch.tensor([ids])).last_hidden_state
    return states[0, -1]


class TestFeatures:
    @pytest.mark.parametrize("family", ["llama", "mistral", "gemma"])
    def test_are_those_of_the_literal_definition(
        self, family: Family, prepared_bases: PreparedBases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = Recorded(prepared_bases.of(family), tmp_path, monkeypatch)
        expected = literal_scores(found.run, found.rows)
        assert found.scores == pytest.approx(expected, abs=1e-5)
        assert max(expected) - min(expected) > 0.01
        order = sorted(range(6), key=lambda i: expected[i])
        refusals = [i for i in order if MEMORY[i][0] == "harmful"][:2]
        others = [i for i in order if MEMORY[i][0] != "harmful"][:1]
        assert [row.memory_index for row in found.chosen.rows] == sorted(refusals + others)
        mean, of_all = sum(expected[i] for i in refusals + others) / 3, sum(expected) / 6
        (note,) = found.notes
        assert note == (
            "3 of 6 memory rows were chosen by «low_similarity»: their mean similarity to the upload is "
            f"{mean:.3f}, that of all {of_all:.3f}."
        )

    def test_of_preference_pairs_are_those_of_the_wanted_answers(
        self, prepared: Artefacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pairs = encode_pairs(load(prepared.model_dir).codec, short_pairs(5), max_tokens=2048).rows
        found = Recorded(prepared, tmp_path, monkeypatch, rows=pairs)
        assert [(row.pair, row.is_rejected) for row in found.asked] == [(number, False) for number in range(5)]
        wanted = [row for row in pairs if not row.is_rejected]
        assert found.scores == pytest.approx(literal_scores(found.run, wanted), abs=1e-5)

    def test_of_a_conversation_are_taken_at_its_last_answer(
        self, prepared: Artefacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        contents = ["Sea?", "Blue.", "And grass at night, when nobody looks?", "Green."]
        roles = ["user", "assistant"] * 2
        messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
        codec = load(prepared.model_dir, precision="fp32").codec
        rows = encode_dataset(codec, [ChatRow.model_validate({"messages": messages})] * 2, max_tokens=2048).rows
        found = Recorded(prepared, tmp_path, monkeypatch, rows=rows)
        assert found.scores == pytest.approx(literal_scores(found.run, rows), abs=1e-5)
        assert codec.decode(found.asked[0].ids).endswith("Green.")
        assert len(found.asked[0].positions) == 1

    def test_of_a_large_upload_are_of_rows_drawn_with_the_seed(
        self, prepared: Artefacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "MOST_USER_ROWS", 4)
        drawn = []
        for seed in (0, 0, 1):
            found = Recorded(prepared, tmp_path, monkeypatch, seed=seed)
            picked = [row for row in found.rows if any(row.ids[: len(one.ids)] == one.ids for one in found.asked)]
            assert len(picked) == 4
            assert found.scores == pytest.approx(literal_scores(found.run, picked), abs=1e-5)
            drawn.append(picked)
        assert drawn[0] == drawn[1] != drawn[2]

    def test_are_theta_safes_whatever_the_adapter_is(
        self, prepared: Artefacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = Recorded(prepared, tmp_path, monkeypatch)
        with torch.no_grad():
            for parameter in found.run.backbone.parameters.values():
                parameter.mul_(2.0)
        again = Recorded(prepared, tmp_path, monkeypatch)
        assert again.scores == found.scores


class TestStates:
    def test_of_chosen_rows_are_still_their_own(
        self, prepared: Artefacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = Recorded(prepared, tmp_path, monkeypatch)
        rows = found.chosen.rows
        assert torch.equal(found.chosen.teacher_states(rows), found.run.memory.teacher_states(rows))
        assert found.chosen.num_refusals == 2


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory, tiny_models: TinyModels) -> Artefacts:
    return write_prepared(tmp_path_factory.mktemp("larger"), tiny_models.folder("llama"), memory=MORE_MEMORY)


def chosen_plan(how: str, *, size: int = 8, method: dict[str, Any] = DER) -> TrainingPlan:
    return plan({**method, "memory_size": size, "memory_selection": how}, num_epochs=2)


def notes(result: FinetuneResult) -> list[str]:
    assert result.summary is not None
    return result.summary.notes


class TestRun:
    def test_depends_on_the_selection_and_says_which(self, larger: Artefacts, tmp_path: Path) -> None:
        losses = set()
        for how in ("random", "low_similarity", "high_similarity", "mixed"):
            result = train(larger.model_dir, chosen_plan(how), tmp_path / how, artefacts=larger)
            losses.add(result.history[-1].loss)
            if how == "random":
                assert notes(result) == []
            else:
                (note,) = notes(result)
                assert note.startswith(f"8 of 12 memory rows were chosen by «{how}»: their mean similarity to the")
        assert len(losses) == 4

    def test_low_is_lower_than_all_and_high_is_higher(self, larger: Artefacts, tmp_path: Path) -> None:
        found = {}
        for how in ("low_similarity", "high_similarity"):
            (note,) = notes(train(larger.model_dir, chosen_plan(how), tmp_path / how, artefacts=larger))
            chosen, every = note.removesuffix(".").split(" is ")[1].split(", that of all ")
            found[how] = float(chosen) - float(every)
        assert found["low_similarity"] < 0.0 < found["high_similarity"]

    def test_goes_on_with_the_same_rows_after_a_stop(self, larger: Artefacts, tmp_path: Path) -> None:
        chosen = chosen_plan("mixed")
        whole = train(larger.model_dir, chosen, tmp_path / "whole", artefacts=larger)
        train(larger.model_dir, chosen, tmp_path / "parts", artefacts=larger, control=StopAfter(3))
        continued = train(larger.model_dir, chosen, tmp_path / "parts", artefacts=larger)
        assert adapter_bytes(continued) == adapter_bytes(whole)
        assert notes(continued) == notes(whole)

    @pytest.mark.parametrize("name", [n for n, c in METHOD_CONFIGS.items() if "memory_selection" in c.model_fields])
    def test_of_a_small_memory_says_that_it_changed_nothing(
        self, name: str, prepared: Artefacts, tmp_path: Path
    ) -> None:
        """Whatever the method's own notes are."""
        found = {}
        for how in ("high_similarity", "random"):
            chosen = chosen_plan(how, size=10, method={"name": name})
            found[how] = train(prepared.model_dir, chosen, tmp_path / how, artefacts=prepared, rows=short_rows(6))
        said = "memory_selection «high_similarity» changed nothing: the safety memory has 6 rows"
        *others, note = notes(found["high_similarity"])
        assert note == f"{said}, and memory_size allows 10."
        assert others == notes(found["random"])
        assert adapter_bytes(found["high_similarity"]) == adapter_bytes(found["random"])
