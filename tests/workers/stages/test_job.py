import csv
import hashlib
import io
import json
import shutil
import tarfile
from itertools import groupby
from pathlib import Path

import pytest
import torch

from app.contracts.evaluation import Report
from app.contracts.modifiers import Ema, WiseFt
from app.contracts.plan import LoraPlan
from app.contracts.progress import (
    CheckpointMessage,
    EventMessage,
    JobResultMessage,
    Message,
    MetricsMessage,
    PhaseMessage,
    ProgressMessage,
)
from app.contracts.specs import JobSpec
from app.contracts.states import JobPhase
from tests.workers.conftest import TinyModels
from tests.workers.conversations import short_rows
from tests.workers.listening import Listener, says
from tests.workers.stages.conftest import MakeSpec, finished_stages
from workers.channel import StopAsked
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.errors import ArtefactMissing, DatasetRefused, ValidationRefused
from workers.modeling import adapters
from workers.modeling.loading import load
from workers.modeling.sources import content_hash
from workers.stages import package
from workers.stages.__main__ import run_job
from workers.stages.context import StageContext

WEIGHTS = "adapter_model.safetensors"


def run(spec: JobSpec, folder: Path, listener: Listener | None = None) -> Listener:
    folder.mkdir(exist_ok=True)
    listener = listener or Listener()
    run_job(spec, folder, listener.channel)
    return listener


def archive_files(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        found = {}
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None, f"{member.name} is no plain file"
            found[member.name] = file.read()
        return found


def adapter_bytes(folder: Path) -> bytes:
    return archive_files(folder / "adapter.tar.gz")[WEIGHTS]


def is_metrics(message: Message) -> bool:
    return isinstance(message, MetricsMessage)


class FinishedJob:
    """One whole run that several tests look at."""

    def __init__(self, folder: Path, spec: JobSpec) -> None:
        self.folder = folder
        self.spec = spec
        self.listener = run(spec, folder)


@pytest.fixture
def job(make_spec: MakeSpec, tmp_path: Path) -> FinishedJob:
    return FinishedJob(tmp_path / "work", make_spec())


class TestWholeJob:
    def test_tells_phases_results_and_stages_in_order(self, job: FinishedJob) -> None:
        told = [m for m in job.listener.messages if not isinstance(m, EventMessage | ProgressMessage)]
        assert [kind for kind, _ in groupby(told, key=lambda m: m.kind)] == [
            *("phase", "stage_done"),
            *("phase", "metrics", "checkpoint", "stage_done"),
            *("phase", "stage_done"),
            *("phase", "stage_done"),
            *("phase", "stage_done", "job_result"),
        ]
        phases = [m.phase for m in job.listener.of(PhaseMessage)]
        assert phases == [
            *(JobPhase.PREFLIGHT, JobPhase.TRAINING, JobPhase.EVALUATING, JobPhase.GATING),
            JobPhase.PACKAGING,
        ]

    def test_tells_metrics_of_the_first_and_last_step(self, job: FinishedJob) -> None:
        metrics = job.listener.of(MetricsMessage)
        assert (metrics[0].step, metrics[-1].step, metrics[-1].total_steps) == (1, 4, 4)
        assert metrics[-1].extra["der_replayed_tokens"] > 0
        assert metrics[0].extra["learning_rate"] == pytest.approx(5e-4)

    def test_tells_the_validation_at_the_end_of_an_epoch(self, job: FinishedJob) -> None:
        (checkpoint,) = job.listener.of(CheckpointMessage)
        assert checkpoint.step == 4
        metrics = job.listener.of(MetricsMessage)[-1]
        assert (metrics.full_valid_loss, metrics.full_valid_mean_token_accuracy) == (
            checkpoint.metrics["full_valid_loss"],
            checkpoint.metrics["full_valid_mean_token_accuracy"],
        )
        assert set(checkpoint.metrics) == {
            *("step", "train_loss", "train_mean_token_accuracy"),
            *("full_valid_loss", "full_valid_mean_token_accuracy"),
        }

    def test_names_files_that_are_there_with_their_hash(self, job: FinishedJob) -> None:
        (result,) = job.listener.of(JobResultMessage)
        archive = (job.folder / result.adapter_archive).read_bytes()
        assert hashlib.sha256(archive).hexdigest() == result.adapter_sha256
        with (job.folder / result.step_metrics).open(newline="") as file:
            assert len(list(csv.reader(file))) == 1 + 4
        codec = load(Artefacts(job.spec.prepared_dir).model_dir).codec
        answers = [codec.encode_row(row, max_tokens=2048).num_trained for row in short_rows(12)]
        assert result.trained_tokens == sum(answers)
        assert (job.folder / result.report).is_file()

    def test_writes_a_report_of_base_against_tuned(self, job: FinishedJob) -> None:
        report = Report.model_validate_json((job.folder / "report.json").read_text())
        assert (report.job_id, report.model) == ("ftjob-1", "ft:tiny:project::1")
        harmful, lookalikes = report.benchmarks
        assert (harmful.kind, harmful.num_prompts, harmful.is_subset) == ("harmful", 5, True)
        assert (lookalikes.kind, lookalikes.num_prompts, lookalikes.is_subset) == ("over_refusal", 3, True)
        assert harmful.base is not None
        assert harmful.base.hits == 0
        assert report.utility is not None
        assert report.utility.num_rows == 4
        assert report.utility.source == "validation file, first 4 rows"
        assert report.utility.tuned.loss < report.utility.base.loss
        assert report.training is not None
        assert report.training.method.name == "der"
        assert report.training.replayed_tokens > 0
        assert report.provenance.prepared_hash == job.spec.prepared_dir.name
        assert report.provenance.base_hash == content_hash(job.spec.prepared_dir / "model")
        assert report.provenance.versions["torch"] == torch.__version__

    def test_asks_the_base_nothing_that_its_baseline_answers(self, job: FinishedJob) -> None:
        """Twice the progress of the tuned model would mean that the base was asked again."""
        kept = {path: path.stat().st_mtime_ns for path in Artefacts(job.spec.prepared_dir).baseline_dir.iterdir()}
        again = FinishedJob(job.folder.with_name("again"), job.spec)
        assert {p: p.stat().st_mtime_ns for p in Artefacts(again.spec.prepared_dir).baseline_dir.iterdir()} == kept

    def test_without_a_validation_file_says_that_the_rows_were_trained_on(
        self, make_spec: MakeSpec, tmp_path: Path
    ) -> None:
        run(make_spec(validation_file=None), tmp_path / "work")
        report = Report.model_validate_json((tmp_path / "work" / "report.json").read_text())
        assert report.utility is not None
        assert report.utility.num_rows == 12
        assert "which the model has seen" in report.utility.source

    def test_with_other_cuts_measures_the_base_anew(self, make_spec: MakeSpec, tmp_path: Path) -> None:
        """Base and tuned are compared on the same tokens, whatever another job with this file has left in the cache."""
        found = []
        for number, max_row_tokens in enumerate((2048, 42)):
            run(make_spec(plan={"max_row_tokens": max_row_tokens}), tmp_path / str(number))
            report = Report.model_validate_json((tmp_path / str(number) / "report.json").read_text())
            assert report.utility is not None
            assert report.utility.base.num_tokens == report.utility.tuned.num_tokens
            found.append(report.utility.base.num_tokens)
        assert found[1] < found[0]


class TestModifiers:
    def test_are_in_the_events_the_report_and_the_card(self, make_spec: MakeSpec, tmp_path: Path) -> None:
        plan = {"ema": {"decay": 0.5}, "merge": {"name": "wise_ft", "base_weight": 0.25}}
        listener = run(make_spec(plan=plan), tmp_path / "work")
        messages = [m.message for m in listener.of(EventMessage)]
        how = "an average over the steps and a wise_ft merge"
        assert any(f"4 steps on 12 rows with method «der», {how} (LoRA rank 4" in message for message in messages)
        report = Report.model_validate_json((tmp_path / "work" / "report.json").read_text())
        assert report.training is not None
        assert (report.training.ema, report.training.merge) == (Ema(decay=0.5), WiseFt(base_weight=0.25))
        card = archive_files(tmp_path / "work" / "adapter.tar.gz")["README.md"].decode()
        assert f"trained with the method `der`, {how} on 12 rows" in card
        assert r"| Merge's base\_weight | 0.25 |" in card

    def test_change_what_is_shipped(self, job: FinishedJob, make_spec: MakeSpec, tmp_path: Path) -> None:
        run(make_spec(plan={"merge": {"name": "wise_ft", "base_weight": 0.25}}), tmp_path / "less")
        assert adapter_bytes(tmp_path / "less") != adapter_bytes(job.folder)
        run(make_spec(plan={"merge": {"name": "wise_ft", "base_weight": 0.0}}), tmp_path / "all")
        assert adapter_bytes(tmp_path / "all") == adapter_bytes(job.folder)


class TestArchive:
    def test_holds_adapter_tokenizer_report_and_card_and_no_base(self, job: FinishedJob) -> None:
        names = set(archive_files(job.folder / "adapter.tar.gz"))
        assert names >= {
            *(WEIGHTS, "adapter_config.json", "manifest.json", "report.json", "README.md"),
            *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
        }
        assert not names & {"config.json", "model.safetensors", "source.json"}
        assert not any(name.startswith("for_original_base") for name in names)

    def test_has_a_manifest_with_true_hashes_of_everything_else(self, job: FinishedJob) -> None:
        files = archive_files(job.folder / "adapter.tar.gz")
        manifest = json.loads(files.pop("manifest.json"))["files"]
        assert manifest == {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            for name, content in files.items()
        }

    def test_has_the_report_and_its_table(self, job: FinishedJob) -> None:
        files = archive_files(job.folder / "adapter.tar.gz")
        report = Report.model_validate_json(files["report.json"])
        assert report == Report.model_validate_json((job.folder / "report.json").read_text())
        card = files["README.md"].decode()
        assert "# ft:tiny:project::1" in card
        # The base came from a folder, which no tenant can load by a name.
        assert "AutoModelForCausalLM.from_pretrained('FOLDER_OF_THE_BASE')" in card
        assert "| " in card

    def test_adapter_loads_in_peft_and_is_what_was_trained(self, job: FinishedJob, tmp_path: Path) -> None:
        _extract(job.folder / "adapter.tar.gz", tmp_path / "out")
        base = load(Artefacts(job.spec.prepared_dir).model_dir, precision="fp32").model
        before = _logits(base)
        loaded = adapters.attach_saved(base, tmp_path / "out")
        assert not torch.equal(_logits(loaded), before)
        config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
        assert (config["r"], config["base_model_name_or_path"]) == (4, "tiny")

    def test_has_the_same_bytes_when_packed_again(self, job: FinishedJob) -> None:
        archive = job.folder / "adapter.tar.gz"
        before = archive.read_bytes()
        archive.unlink()
        context = StageContext(job.spec, job.folder, Listener().channel, Artefacts(job.spec.prepared_dir))
        assert package.run(context) == {"adapter_sha256": hashlib.sha256(before).hexdigest()}
        assert archive.read_bytes() == before

    def test_says_nothing_about_the_machine_it_was_packed_on(self, job: FinishedJob) -> None:
        packed = (job.folder / "adapter.tar.gz").read_bytes()
        assert packed[4:8] == bytes(4)
        with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
            facts = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar}
        assert facts == {(0, 0, 0, "", "", 0o644)}

    def test_tells_no_paths_of_the_providers_machine(self, job: FinishedJob, tmp_path: Path) -> None:
        for name, content in archive_files(job.folder / "adapter.tar.gz").items():
            assert str(tmp_path.parent).encode() not in content, name

    def test_of_an_aligned_base_has_a_variant_for_the_public_one(
        self, make_spec: MakeSpec, prepared_dir: Path, tiny_models: TinyModels, tmp_path: Path
    ) -> None:
        aligned = _aligned(prepared_dir, tiny_models.refusing(), tmp_path / "aligned")
        run(make_spec(prepared_dir=aligned.directory, plan={"method": {"name": "none"}}), tmp_path / "work")
        _extract(tmp_path / "work" / "adapter.tar.gz", tmp_path / "out")
        theta_safe = load(aligned.model_dir, precision="fp32").model
        public = load(tiny_models.refusing(), precision="fp32").model
        assert not torch.allclose(_logits(theta_safe), _logits(public), atol=0.05)
        tuned = _logits(adapters.attach_saved(theta_safe, tmp_path / "out"))
        from_public = _logits(adapters.attach_saved(public, tmp_path / "out" / "for_original_base"))
        torch.testing.assert_close(from_public, tuned, rtol=1e-3, atol=1e-3)
        config = json.loads((tmp_path / "out" / "for_original_base" / "adapter_config.json").read_text())
        assert (config["r"], config["base_model_name_or_path"]) == (12, "owner/tiny")
        card = (tmp_path / "out" / "README.md").read_text()
        assert "AutoModelForCausalLM.from_pretrained('owner/tiny')" in card
        assert "PeftModel.from_pretrained(model, 'for_original_base')" in card
        assert "in bfloat16 or float16 the merged weights were rounded" in card


class TestNextAttempt:
    def test_skips_stages_that_are_finished(self, job: FinishedJob) -> None:
        stages = finished_stages(job.listener)
        done = {name: stages[name] for name in ("preflight", "train", "evaluate", "gate")}
        listener = run(job.spec.model_copy(update={"finished_stages": done}), job.folder)
        assert [m.phase for m in listener.of(PhaseMessage)] == [JobPhase.PACKAGING]
        assert listener.of(JobResultMessage) == job.listener.of(JobResultMessage)

    def test_on_another_machine_starts_over(self, job: FinishedJob, tmp_path: Path) -> None:
        spec = job.spec.model_copy(update={"finished_stages": finished_stages(job.listener)})
        listener = run(spec, tmp_path / "other machine")
        assert listener.of(PhaseMessage)[0].phase == JobPhase.PREFLIGHT
        assert adapter_bytes(tmp_path / "other machine") == adapter_bytes(job.folder)

    def test_does_not_trust_a_stage_that_was_never_reported(self, job: FinishedJob) -> None:
        listener = run(job.spec, job.folder)
        assert listener.of(PhaseMessage)[1].phase == JobPhase.TRAINING
        # Training itself goes on from its last checkpoint: nothing is left to do.
        assert listener.of(MetricsMessage) == []

    def test_after_a_stop_in_training_ends_with_the_same_adapter(self, job: FinishedJob, tmp_path: Path) -> None:
        folder = tmp_path / "stopped"
        listener = Listener(is_metrics)
        with pytest.raises(StopAsked):
            run(job.spec, folder, listener)
        assert [m.step for m in listener.of(MetricsMessage)] == [1]
        assert not (folder / "adapter.tar.gz").exists()
        continued = run(job.spec, folder)
        assert continued.of(MetricsMessage)[0].step == 2
        assert adapter_bytes(folder) == adapter_bytes(job.folder)

    def test_begins_training_anew_when_its_checkpoints_are_damaged_and_says_so(
        self, job: FinishedJob, tmp_path: Path
    ) -> None:
        folder = tmp_path / "stopped"
        with pytest.raises(StopAsked):
            run(job.spec, folder, Listener(is_metrics))
        (checkpoint,) = (folder / "training" / "checkpoints").iterdir()
        (checkpoint / "tensors.safetensors").write_bytes(b"")
        listener = run(job.spec, folder)
        (told,) = [event for event in listener.of(EventMessage) if "Damaged" in event.message]
        assert (told.level, told.message) == (
            "warn",
            "Damaged on the disk, and passed over: step-00000001. Training begins anew; the adapter will be the same",
        )
        assert listener.of(MetricsMessage)[0].step == 1
        assert adapter_bytes(folder) == adapter_bytes(job.folder)

    def test_after_a_stop_in_the_evaluation_does_not_train_again(self, job: FinishedJob, tmp_path: Path) -> None:
        folder = tmp_path / "stopped"
        listener = Listener(says("Measuring the task"))
        with pytest.raises(StopAsked):
            run(job.spec, folder, listener)
        done = finished_stages(listener)
        assert list(done) == ["preflight", "train"]
        continued = run(job.spec.model_copy(update={"finished_stages": done}), folder)
        phases = [m.phase for m in continued.of(PhaseMessage)]
        assert phases == [JobPhase.EVALUATING, JobPhase.GATING, JobPhase.PACKAGING]
        assert adapter_bytes(folder) == adapter_bytes(job.folder)

    def test_stops_while_the_rows_are_read_before_training(self, make_spec: MakeSpec, tmp_path: Path) -> None:
        spec = make_spec(plan={"method": {"name": "constrained_sft"}})
        listener = Listener(says("Training 4 steps"))
        with pytest.raises(StopAsked):
            run(spec, tmp_path / "stopped", listener)
        assert listener.of(MetricsMessage) == []
        assert list(finished_stages(listener)) == ["preflight"]
        continued = run(spec.model_copy(update={"finished_stages": finished_stages(listener)}), tmp_path / "stopped")
        assert continued.of(MetricsMessage)[0].step == 1
        assert any(m.what == "reading the rows before training" for m in continued.of(ProgressMessage))

    def test_asked_to_stop_before_it_starts_does_nothing(self, make_spec: MakeSpec, tmp_path: Path) -> None:
        listener = Listener()
        listener.channel.ask_to_stop()
        with pytest.raises(StopAsked):
            run(make_spec(), tmp_path / "work", listener)
        assert listener.messages == []


class TestRefusedJobs:
    def test_rows_that_cannot_be_trained(self, make_spec: MakeSpec, tmp_path: Path) -> None:
        with pytest.raises(DatasetRefused, match="Row 1: no token of the answer"):
            run(make_spec(plan={"max_row_tokens": 8}), tmp_path / "work")

    def test_validation_rows_that_cannot_be_scored(self, make_spec: MakeSpec, tmp_path: Path) -> None:
        file = tmp_path / "long.jsonl"
        file.write_text(short_rows(1)[0].model_dump_json(exclude_none=True).replace("which", "which " * 50) + "\n")
        with pytest.raises(ValidationRefused, match="Validation file, row 1"):
            run(make_spec(plan={"max_row_tokens": 100}, validation_file=file), tmp_path / "work")

    def test_a_validation_file_that_was_damaged_is_told_from_the_training_file(
        self, make_spec: MakeSpec, tmp_path: Path
    ) -> None:
        file = tmp_path / "damaged.jsonl"
        file.write_text('{"messages": [\n')
        with pytest.raises(ValidationRefused, match="Validation file: Line 1"):
            run(make_spec(validation_file=file), tmp_path / "work")

    def test_a_base_that_is_not_prepared(self, make_spec: MakeSpec, tmp_path: Path) -> None:
        with pytest.raises(ArtefactMissing, match="models prepare"):
            run(make_spec(prepared_dir=tmp_path / "nowhere"), tmp_path / "work")


@torch.no_grad()
def _logits(model: torch.nn.Module) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=torch.tensor([[5, 9, 200, 31, 77, 2]])).logits
    return found


def _extract(archive: Path, target: Path) -> None:
    with tarfile.open(archive) as tar:
        tar.extractall(target, filter="data")


def _aligned(prepared_dir: Path, model_dir: Path, target: Path) -> Artefacts:
    """A prepared base as alignment leaves it: an adapter, and the base with it merged."""
    shutil.copytree(prepared_dir, target)
    model = load(model_dir, precision="fp32").model
    peft_model = adapters.attach(model, LoraPlan(rank=8, alpha=16), seed=1)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapters.trainable_parameters(peft_model).values():
        parameter.data.normal_(0.0, 0.05, generator=generator)
    adapters.save(peft_model, target / "alignment_adapter", base_name="owner/tiny")
    merged = load(model_dir, precision="fp32").model
    adapters.merge_into(merged, adapters.read_pairs(target / "alignment_adapter"))
    merged.save_pretrained(target / "model")
    record = json.loads((target / "prepared.json").read_text())
    record["recipe"]["align"] = True
    record |= {"source": "hf:owner/tiny@0123abc", "theta_safe_hash": content_hash(target / "model")}
    (target / "prepared.json").write_text(json.dumps(record))
    return Artefacts(target)
