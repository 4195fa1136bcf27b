"""Jobs that go on from another one's adapter, and the checkpoints that a job leaves on its way."""

import hashlib
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from app.contracts.evaluation import Report
from app.contracts.progress import CheckpointMessage, JobResultMessage
from app.contracts.specs import JobSpec, StartAdapter
from tests.workers.conftest import TinyModels
from tests.workers.listening import Listener
from tests.workers.stages.conftest import MakeSpec
from tests.workers.stages.test_job import _aligned, is_metrics
from workers.channel import StopAsked
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.errors import ArtefactMissing
from workers.hashing import file_sha256
from workers.modeling.adapters import LoraPair, read_pairs
from workers.stages.__main__ import run_job

NONE = {"name": "none"}
STILL = {"method": NONE, "learning_rate": 1e-12}


def run(spec: JobSpec, folder: Path, listener: Listener | None = None) -> Listener:
    folder.mkdir(exist_ok=True)
    listener = listener or Listener()
    run_job(spec, folder, listener.channel)
    return listener


def pairs_in(archive: Path, target: Path) -> dict[str, LoraPair]:
    with tarfile.open(archive) as tar:
        tar.extractall(target, filter="data")
    return read_pairs(target)


def assert_same(one: dict[str, LoraPair], other: dict[str, LoraPair]) -> None:
    assert one.keys() == other.keys()
    for name, pair in one.items():
        torch.testing.assert_close(pair.b @ pair.a, other[name].b @ other[name].a, rtol=1e-5, atol=1e-7)


def start_at(archive: Path, spec: JobSpec, **changes: Any) -> StartAdapter:
    facts = {
        "archive": archive,
        "sha256": file_sha256(archive),
        "model": "ft:tiny:project::0",
        "base_hash": Artefacts(spec.prepared_dir).record["theta_safe_hash"],
        **changes,
    }
    return StartAdapter.model_validate(facts)


@pytest.fixture
def first(make_spec: MakeSpec, tmp_path: Path) -> Path:
    """Folder of a job that has ended after four epochs."""
    run(make_spec(plan={"method": NONE, "num_epochs": 4, "learning_rate": 1e-2}), tmp_path / "first")
    return tmp_path / "first"


class TestContinuedJob:
    def test_starts_at_the_adapter_and_says_so(self, make_spec: MakeSpec, first: Path, tmp_path: Path) -> None:
        spec = make_spec(plan=STILL, model_name="ft:tiny:project::2")
        start = start_at(first / "adapter.tar.gz", spec)
        listener = run(spec.model_copy(update={"start": start}), tmp_path / "second")
        archive = tmp_path / "second" / "adapter.tar.gz"
        assert_same(pairs_in(archive, tmp_path / "b"), pairs_in(first / "adapter.tar.gz", tmp_path / "a"))
        assert any(s.startswith("Training goes on from ft:tiny:project::0; safety is held") for s in listener.sentences)
        report = Report.model_validate_json((tmp_path / "second" / "report.json").read_text())
        assert report.provenance.continued_from == "ft:tiny:project::0"
        assert report.provenance.start_adapter_sha256 == start.sha256
        card = (tmp_path / "b" / "README.md").read_text()
        assert "A LoRA adapter for `tiny`, trained, going on from `ft:tiny:project::0` with the method `none`" in card
        assert "Safety was held to the aligned base and is measured against it" in card

    def test_is_measured_against_the_base(self, make_spec: MakeSpec, first: Path, tmp_path: Path) -> None:
        """Nothing is learnt in it, and yet it does the task better than the base: by all of what was learnt before."""
        spec = make_spec(plan=STILL)
        run(spec.model_copy(update={"start": start_at(first / "adapter.tar.gz", spec)}), tmp_path / "second")
        one, other = (
            Report.model_validate_json((folder / "report.json").read_text()) for folder in (first, tmp_path / "second")
        )
        assert one.utility is not None
        assert other.utility is not None
        assert other.utility.base == one.utility.base
        assert other.utility.tuned.loss == pytest.approx(one.utility.tuned.loss, rel=1e-4)
        assert other.utility.tuned.loss < 0.9 * other.utility.base.loss

    def test_goes_on_from_a_checkpoint_too(self, make_spec: MakeSpec, first: Path, tmp_path: Path) -> None:
        spec, checkpoint = make_spec(plan=STILL), first / "training" / "epochs" / "step-8.tar.gz"
        run(spec.model_copy(update={"start": start_at(checkpoint, spec)}), tmp_path / "second")
        found = pairs_in(tmp_path / "second" / "adapter.tar.gz", tmp_path / "b")
        assert_same(found, pairs_in(checkpoint, tmp_path / "a"))

    def test_that_was_stopped_ends_with_the_same_adapter(
        self, make_spec: MakeSpec, first: Path, tmp_path: Path
    ) -> None:
        spec = make_spec()
        spec = spec.model_copy(update={"start": start_at(first / "adapter.tar.gz", spec)})
        run(spec, tmp_path / "whole")
        with pytest.raises(StopAsked):
            run(spec, tmp_path / "parts", Listener(is_metrics))
        run(spec, tmp_path / "parts")
        one, other = (
            pairs_in(tmp_path / name / "adapter.tar.gz", tmp_path / f"{name} out") for name in ("whole", "parts")
        )
        assert all(torch.equal(one[name].b, other[name].b) and torch.equal(one[name].a, other[name].a) for name in one)

    def test_takes_an_adapter_whose_rank_a_merge_has_raised(self, make_spec: MakeSpec, tmp_path: Path) -> None:
        merge = {"name": "dare", "density": 0.5, "output_rank": 8}
        listener = run(make_spec(plan={"method": NONE, "merge": merge, "learning_rate": 1e-2}), tmp_path / "first")
        (result,) = listener.of(JobResultMessage)
        assert (result.adapter_rank, result.measured_checkpoint) == (8, None)
        spec = make_spec(plan={**STILL, "lora": {"rank": 8, "alpha": 16}})
        archive = tmp_path / "first" / "adapter.tar.gz"
        run(spec.model_copy(update={"start": start_at(archive, spec)}), tmp_path / "second")
        found = pairs_in(tmp_path / "second" / "adapter.tar.gz", tmp_path / "b")
        assert_same(found, pairs_in(archive, tmp_path / "a"))

    def test_is_refused_on_a_base_that_has_other_weights_now(
        self, make_spec: MakeSpec, first: Path, tmp_path: Path
    ) -> None:
        spec = make_spec()
        start = start_at(first / "adapter.tar.gz", spec, base_hash="another")
        with pytest.raises(ArtefactMissing, match="before that base was prepared anew, with other weights"):
            run(spec.model_copy(update={"start": start}), tmp_path / "second")

    def test_is_refused_with_an_archive_that_is_none(self, make_spec: MakeSpec, tmp_path: Path) -> None:
        (tmp_path / "bad.tar.gz").write_bytes(b"no archive")
        spec = make_spec()
        with pytest.raises(ArtefactMissing, match="The stored adapter of ft:tiny:project::0 cannot be trained on from"):
            run(spec.model_copy(update={"start": start_at(tmp_path / "bad.tar.gz", spec)}), tmp_path / "second")


class TestCheckpoints:
    def test_are_packed_at_the_end_of_each_epoch_and_the_last_three_kept(self, first: Path) -> None:
        epochs = first / "training" / "epochs"
        assert sorted(path.name for path in epochs.iterdir()) == ["step-12.tar.gz", "step-16.tar.gz", "step-8.tar.gz"]

    def test_are_announced_with_their_hash(self, make_spec: MakeSpec, tmp_path: Path) -> None:
        listener = run(make_spec(plan={"num_epochs": 2}), tmp_path / "work")
        messages = listener.of(CheckpointMessage)
        assert [message.step for message in messages] == [4, 8]
        for message in messages:
            content = (tmp_path / "work" / message.archive).read_bytes()
            assert hashlib.sha256(content).hexdigest() == message.sha256

    def test_are_what_the_epoch_has_left(self, make_spec: MakeSpec, tmp_path: Path) -> None:
        """Nothing after it but the schedule depends on how many epochs follow."""
        run(make_spec(plan={**STILL, "num_epochs": 2}), tmp_path / "work")
        epochs = tmp_path / "work" / "training" / "epochs"
        one, two = (pairs_in(epochs / f"step-{step}.tar.gz", tmp_path / str(step)) for step in (4, 8))
        assert_same(one, two)
        card = (tmp_path / "4" / "README.md").read_text()
        assert "# ft:tiny:project::1:ckpt-step-4" in card
        assert "no measurement of its safety" in card

    @pytest.mark.parametrize(
        ("parts", "expected"),
        [({}, 8), ({"ema": {"decay": 0.5}}, None), ({"merge": {"name": "wise_ft", "base_weight": 0.5}}, None)],
        ids=["as trained", "averaged", "merged"],
    )
    def test_the_last_one_is_measured_where_it_is_what_is_shipped(
        self, make_spec: MakeSpec, tmp_path: Path, parts: dict[str, Any], expected: int | None
    ) -> None:
        listener = run(make_spec(plan={"method": NONE, "num_epochs": 2, **parts}), tmp_path / "work")
        (result,) = listener.of(JobResultMessage)
        assert result.measured_checkpoint == expected

    def test_of_an_attempt_that_came_further_are_made_again(self, make_spec: MakeSpec, tmp_path: Path) -> None:
        spec = make_spec(plan={"num_epochs": 5, "checkpoint_every_steps": 1})
        folder = tmp_path / "work"
        run(spec, folder)
        kept = {path.name: path.read_bytes() for path in (folder / "training" / "epochs").iterdir()}
        assert sorted(kept) == ["step-12.tar.gz", "step-16.tar.gz", "step-20.tar.gz"]
        for path in (folder / "training" / "checkpoints").iterdir():
            path.rename(path.with_name(f"lost {path.name}"))
        listener = run(spec, folder)
        assert [message.step for message in listener.of(CheckpointMessage)] == [4, 8, 12, 16, 20]
        assert {path.name: path.read_bytes() for path in (folder / "training" / "epochs").iterdir()} == kept

    def test_on_an_aligned_base_load_on_the_public_one(
        self, make_spec: MakeSpec, prepared_dir: Path, tiny_models: TinyModels, tmp_path: Path
    ) -> None:
        aligned = _aligned(prepared_dir, tiny_models.refusing(), tmp_path / "aligned")
        run(make_spec(prepared_dir=aligned.directory, plan={"method": NONE}), tmp_path / "work")
        with tarfile.open(tmp_path / "work" / "training" / "epochs" / "step-4.tar.gz") as tar:
            names = tar.getnames()
        assert "for_original_base/adapter_model.safetensors" in names
