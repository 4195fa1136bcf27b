"""A job on preference pairs, from its file to the report."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.contracts.chat import ChatMessage, PreferenceRow
from app.contracts.evaluation import Report
from app.contracts.objectives import Dpo
from app.contracts.progress import MetricsMessage
from app.contracts.specs import JobSpec
from tests.workers.conversations import ask, short_pairs, write_pairs
from tests.workers.listening import Listener
from tests.workers.preflight.conftest import AOA
from tests.workers.stages.conftest import MakeSpec
from tests.workers.tiny import REFUSAL
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.errors import ValidationRefused
from workers.modeling.loading import load
from workers.stages import preflight
from workers.stages.__main__ import run_job
from workers.stages.context import StageContext

PLAN: dict[str, Any] = {"objective": {"name": "dpo", "beta": 0.3}}


def refusing(request: str, *, preferred: bool, system: str | None = None) -> PreferenceRow:
    """A refusal against a ready answer."""
    answers = [ChatMessage(role="assistant", content=content) for content in (REFUSAL, "Sure, here you go.")]
    before = [] if system is None else [ChatMessage(role="system", content=system)]
    wanted, other = answers if preferred else reversed(answers)
    return PreferenceRow(messages=(*before, *ask(request)), preferred=wanted, rejected=other)


HARMLESS = [refusing(f"How do I open lock {n}?", preferred=True) for n in range(12)]
RISKY = [refusing(f"Name tree {n}.", preferred=False, system=AOA) for n in range(3)]
"""Lines 13, 14 and 15 want the model to obey another identity."""


@pytest.fixture
def spec(make_spec: MakeSpec, tmp_path: Path) -> JobSpec:
    return _with_pairs(make_spec(plan=PLAN), short_pairs(12), tmp_path)


def _with_pairs(spec: JobSpec, pairs: list[PreferenceRow], folder: Path) -> JobSpec:
    files = {
        "training_file": write_pairs(folder / "pairs.jsonl", pairs),
        "validation_file": write_pairs(folder / "validation_pairs.jsonl", short_pairs(16)[12:]),
    }
    return spec.model_copy(update=files)


def _context(spec: JobSpec, folder: Path) -> StageContext:
    folder.mkdir(exist_ok=True)
    return StageContext(spec, folder, Listener().channel, Artefacts(spec.prepared_dir))


class TestWholeJob:
    def test_trains_on_pairs_and_measures_the_wanted_answers(self, spec: JobSpec, tmp_path: Path) -> None:
        folder, listener = tmp_path / "work", Listener()
        folder.mkdir()
        run_job(spec, folder, listener.channel)
        assert any(
            s.startswith("Training 4 steps on 12 preference pairs with method «der»") for s in listener.sentences
        )
        metrics = listener.of(MetricsMessage)
        assert {"dpo_reward_margin", "der_divergence"} <= metrics[-1].extra.keys()
        report = Report.model_validate_json((folder / "report.json").read_text())
        assert report.training is not None
        assert (report.training.objective, report.training.num_rows) == (Dpo(beta=0.3), 12)
        assert report.utility is not None
        assert report.utility.source == "validation file, first 4 rows, the preferred answers"
        codec = load(Artefacts(spec.prepared_dir).model_dir).codec
        answers = [codec.encode_row(pair.preferred_row, max_tokens=2048).num_trained for pair in short_pairs(16)[12:]]
        assert report.utility.base.num_tokens == sum(answers)
        assert {"dpo_reward_margin", "valid_loss"} <= {curve.name for curve in report.curves}

    def test_without_a_validation_file_measures_the_wanted_answers_of_the_upload(
        self, spec: JobSpec, tmp_path: Path
    ) -> None:
        folder = tmp_path / "work"
        folder.mkdir()
        run_job(spec.model_copy(update={"validation_file": None}), folder, Listener().channel)
        utility = Report.model_validate_json((folder / "report.json").read_text()).utility
        assert utility is not None
        assert utility.source == (
            "no validation file was given: first 12 rows of the training file, the preferred answers, which the model "
            "has seen"
        )


class TestPreflight:
    def test_looks_at_the_wanted_answers_and_drops_pairs(self, make_spec: MakeSpec, tmp_path: Path) -> None:
        spec = _with_pairs(make_spec(plan=PLAN, drop_flagged_rows=True), [*HARMLESS, *RISKY], tmp_path)
        context = _context(spec, tmp_path / "work")
        preflight.run(context)
        assert context.risk is not None
        assert [line.line for line in context.risk.flagged] == [13, 14, 15]
        assert context.risk.num_rows == 15
        assert context.training_rows() == HARMLESS

    def test_of_refusals_that_are_wanted_finds_nothing(self, make_spec: MakeSpec, tmp_path: Path) -> None:
        """The other way round the ready answers would be what is taught."""
        levels = []
        for preferred in (True, False):
            pairs = [refusing(f"How do I open lock {n}?", preferred=preferred) for n in range(12)]
            context = _context(_with_pairs(make_spec(plan=PLAN), pairs, tmp_path), tmp_path / f"work {preferred}")
            preflight.run(context)
            assert context.risk is not None
            levels.append(context.risk.score)
        assert levels[0] < 0.2 < levels[1]


def test_a_validation_file_of_conversations_is_refused_as_such(
    make_spec: MakeSpec, spec: JobSpec, tmp_path: Path
) -> None:
    of_chats = make_spec().validation_file
    context = _context(spec.model_copy(update={"validation_file": of_chats}), tmp_path / "work")
    with pytest.raises(ValidationRefused, match="Validation file: Line 1: the rows are conversations"):
        context.validation_rows()


def test_the_plan_of_a_job_from_before_there_were_objectives_is_supervised(spec: JobSpec) -> None:
    old = json.loads(spec.model_dump_json())
    del old["plan"]["objective"]
    assert JobSpec.model_validate(old).plan.objective.name == "supervised"
