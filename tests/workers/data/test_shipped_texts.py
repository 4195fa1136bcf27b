"""The texts that come with the project: what they must be, and what they must not share."""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.contracts.chat_file import read_rows
from app.contracts.evaluation import Verdict
from app.contracts.file_validator import ChatFileValidator
from workers.data import (
    ADAPTERS_DIR,
    ALIGNMENT_FILE,
    DEMO_TRAINING_FILE,
    DEMO_VALIDATION_FILE,
    EVAL_HARMFUL_FILE,
    EVAL_LOOKALIKES_FILE,
    AlignmentRow,
    alignment_rows,
)
from workers.data.overlap import find_overlaps, words
from workers.data.reference_uploads import REFERENCE_UPLOADS_FILE, reference_uploads
from workers.evaluation.judges.refusal import judge_answer
from workers.hashing import file_sha256

PUBLIC_DATA = Path(__file__).parents[4] / "shared" / "data"
"""Public evaluation sets beside the checkout, for developers; never part of it."""
IS_CI = os.environ.get("CI") == "true"
EVAL_FILES = (EVAL_HARMFUL_FILE, EVAL_LOOKALIKES_FILE)


def file_name(path: Path) -> str:
    """What a test is called after."""
    return path.name


def lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def prompts(path: Path) -> list[str]:
    """The requests of a shipped file."""
    if path in (DEMO_TRAINING_FILE, DEMO_VALIDATION_FILE, REFERENCE_UPLOADS_FILE):
        return [row.messages[-2].content for _, row in read_rows(path)]
    return [line["prompt"] for line in lines(path)]


class TestEveryFile:
    @pytest.mark.parametrize("path", [ALIGNMENT_FILE, *EVAL_FILES], ids=file_name)
    def test_has_ids_of_its_own_and_no_prompt_twice(self, path: Path) -> None:
        ids = Counter(line["id"] for line in lines(path))
        assert [name for name, count in ids.items() if count > 1] == []
        same = Counter(" ".join(words(prompt)) for prompt in prompts(path))
        assert [prompt for prompt, count in same.items() if count > 1] == []

    @pytest.mark.parametrize("path", [ALIGNMENT_FILE, *EVAL_FILES], ids=file_name)
    def test_has_no_blank_or_padded_text(self, path: Path) -> None:
        for line in lines(path):
            texts = [line["prompt"], line.get("response", "-"), line["id"]]
            assert all(text and text == text.strip() for text in texts), line["id"]


class TestAlignmentSet:
    rows = alignment_rows()

    def test_has_harmful_requests_of_at_least_twelve_categories_and_harmless_ones(self) -> None:
        harmful = Counter(row.category for row in self.rows if row.kind == "harmful")
        assert len(harmful) >= 12
        assert min(harmful.values()) >= 20
        kinds = Counter(row.kind for row in self.rows)
        assert set(kinds) == {"harmful", "lookalike", "ordinary"}
        assert kinds["lookalike"] >= 300
        assert kinds["ordinary"] >= 200

    def test_refuses_every_harmful_request(self) -> None:
        assert self.judged_otherwise("harmful", Verdict.REFUSED) == []

    @pytest.mark.parametrize("kind", ["lookalike", "ordinary"])
    def test_helps_with_every_harmless_request(self, kind: str) -> None:
        assert self.judged_otherwise(kind, Verdict.COMPLIED) == []

    def test_refusals_say_more_than_no(self) -> None:
        """A reason or a safe alternative: more than one sentence."""
        short = [row.id for row in self.rows if row.kind == "harmful" and len(row.response.split()) < 12]
        assert short == []

    def judged_otherwise(self, kind: str, expected: Verdict) -> list[tuple[str, str]]:
        """Ids and answers whose wording the judge takes for something else."""
        found: list[tuple[str, str]] = []
        row: AlignmentRow
        for row in self.rows:
            if row.kind == kind:
                verdict = judge_answer(row.response, kind="harmful" if kind == "harmful" else "over_refusal")
                if verdict is not expected:
                    found.append((row.id, row.response))
        return found


class TestEvaluationSets:
    @pytest.mark.parametrize(("path", "least"), [(EVAL_HARMFUL_FILE, 150), (EVAL_LOOKALIKES_FILE, 100)])
    def test_are_large_enough(self, path: Path, least: int) -> None:
        assert len(lines(path)) >= least

    def test_harmful_requests_have_the_alignment_sets_categories_in_equal_numbers(self) -> None:
        counts = Counter(line["category"] for line in lines(EVAL_HARMFUL_FILE))
        assert len(counts) >= 12
        assert len(set(counts.values())) == 1
        assert set(counts) == {row.category for row in alignment_rows() if row.kind == "harmful"}


class TestNothingIsEvaluatedOnWhatWasTrained:
    @pytest.mark.parametrize("evaluation", EVAL_FILES, ids=file_name)
    @pytest.mark.parametrize("training", [ALIGNMENT_FILE, DEMO_TRAINING_FILE], ids=file_name)
    def test_training_and_evaluation_prompts_share_no_phrase(self, training: Path, evaluation: Path) -> None:
        assert find_overlaps(prompts(training), prompts(evaluation)) == []

    def test_harmful_and_harmless_evaluation_prompts_differ(self) -> None:
        assert find_overlaps(prompts(EVAL_HARMFUL_FILE), prompts(EVAL_LOOKALIKES_FILE)) == []

    @pytest.mark.parametrize(
        "shipped", [ALIGNMENT_FILE, *EVAL_FILES, DEMO_TRAINING_FILE, REFERENCE_UPLOADS_FILE], ids=file_name
    )
    def test_no_shipped_prompt_is_from_a_public_evaluation_set(self, shipped: Path) -> None:
        if not PUBLIC_DATA.is_dir():
            if IS_CI:
                pytest.fail(f"CI needs the public evaluation sets in {PUBLIC_DATA.name}/ beside the checkout")
            pytest.skip("the public evaluation sets are not beside this checkout")
        public = list(public_prompts())
        assert len(public) > 2000
        assert find_overlaps(public, prompts(shipped)) == []


class TestDemo:
    @pytest.mark.parametrize("path", [DEMO_TRAINING_FILE, DEMO_VALIDATION_FILE], ids=file_name)
    def test_files_are_accepted_without_a_warning(self, path: Path) -> None:
        validator = ChatFileValidator()
        validator.feed(path.read_bytes())
        assert validator.finish().num_warnings == 0

    def test_validation_has_no_ticket_of_the_training(self) -> None:
        """The instruction is the same in every row; the tickets below it are not."""
        training, validation = (
            {prompt.split("Ticket:", 1)[1].strip() for prompt in prompts(path)}
            for path in (DEMO_TRAINING_FILE, DEMO_VALIDATION_FILE)
        )
        assert (len(training), len(validation)) == (240, 40)
        assert not training & validation
        assert find_overlaps(sorted(training), sorted(validation)) == []

    def test_answers_are_the_desks_that_the_instruction_names(self) -> None:
        for path in (DEMO_TRAINING_FILE, DEMO_VALIDATION_FILE):
            answers = Counter(row.messages[-1].content for _, row in read_rows(path))
            assert set(answers) == {"billing", "shipping", "returns", "technical", "account"}
            assert max(answers.values()) <= 2 * min(answers.values())


class TestReferenceUploads:
    def test_are_a_dozen_tasks_with_rows_of_their_own(self) -> None:
        uploads = reference_uploads()
        assert len(uploads) == 12
        assert {len(rows) for rows in uploads.values()} == {20}
        everything = [row for rows in uploads.values() for row in rows]
        assert len(set(everything)) == len(everything)

    def test_need_no_system_message(self) -> None:
        """Some models' templates refuse one, and every base has to be compared with all of them."""
        roles = {message.role for rows in reference_uploads().values() for row in rows for message in row.messages}
        assert roles == {"user", "assistant"}

    def test_are_no_requests_of_the_alignment_set(self) -> None:
        assert find_overlaps(prompts(ALIGNMENT_FILE), prompts(REFERENCE_UPLOADS_FILE)) == []

    def test_are_accepted_as_uploads(self) -> None:
        """With a note for each line that its task is ignored."""
        validator = ChatFileValidator()
        validator.feed(REFERENCE_UPLOADS_FILE.read_bytes())
        assert validator.finish().num_warnings == 240


class TestShippedAdapters:
    def test_are_small_and_recorded(self) -> None:
        for folder in (path for path in ADAPTERS_DIR.glob("*") if path.is_dir()):
            weights = folder / "adapter_model.safetensors"
            record = json.loads((folder / "record.json").read_text())
            assert weights.stat().st_size <= 5_000_000, folder.name
            assert record["adapter_sha256"] == file_sha256(weights), folder.name
            assert record["command"] == f"unforgotten models prepare {folder.name} --retrain"
            assert len(record["weights_sha256"]) == 64


def public_prompts() -> Iterator[str]:
    """Requests of the public evaluation sets."""
    for name in ("eval", "near_poison", "poison_slice"):
        yield from _column(PUBLIC_DATA / "advbench" / f"harmful_behaviors.{name}.csv", "goal")
    yield from _column(PUBLIC_DATA / "jailbreakbench" / "jbb_behaviors.part.csv", "Goal")
    yield from _column(PUBLIC_DATA / "xstest" / "xstest_prompts.even_rows.csv", "prompt")
    for path in sorted((PUBLIC_DATA / "safety_tuned_llamas" / "evaluation").glob("*.json")):
        yield from json.loads(path.read_text())["instructions"]
    for path in sorted((PUBLIC_DATA / "do_not_answer").glob("*.jsonl")):
        yield from (line["prompt"] for line in lines(path))


def _column(path: Path, name: str) -> Iterator[str]:
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield row[name]
