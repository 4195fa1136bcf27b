import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from tests.workers.conftest import TinyModels
from tests.workers.conversations import short_rows
from tests.workers.finetuning.conftest import PreparedBases
from tests.workers.finetuning.prepared import MEMORY, memory_entries, write_prepared
from tests.workers.finetuning.runs import DER, NONE, adapter_bytes, perturbed_backbone, plan, train
from tests.workers.tiny import Family
from workers.finetuning import artefacts as layout
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.errors import ArtefactMissing
from workers.finetuning.loop import RunControl, TrainingLoop
from workers.finetuning.memory import load_memory
from workers.finetuning.method import MethodContext
from workers.finetuning.methods.der import DarkExperienceReplay
from workers.finetuning.rows import batch_indices, encode_dataset, memory_indices
from workers.modeling.loading import load
from workers.modeling.packing import packed_attention

ALPHA = 3.0
ROWS = short_rows(9)
Gradients = dict[str, torch.Tensor]


class RecordingDer(DarkExperienceReplay):
    """DER that keeps the step's gradients as they are before clipping."""

    gradients: Gradients

    def adjust_gradients(self, step: int, gradients: Mapping[str, torch.Tensor]) -> None:
        self.gradients = {name: gradient.clone() for name, gradient in gradients.items()}


@dataclass
class OneStep:
    loss: float
    error: float
    """Mean squared logit error, without alpha."""
    gradients: Gradients
    num_forwards: int


def step_of_the_library(artefacts: Artefacts, micro_batch_tokens: int, folder: Path) -> OneStep:
    """Step 4 of a run, by the loop."""
    loaded = load(artefacts.model_dir, precision="fp32")
    chosen = plan({**DER, "alpha": ALPHA}, micro_batch_tokens=micro_batch_tokens, num_epochs=2)
    backbone = perturbed_backbone(loaded, chosen)
    method = RecordingDer(chosen.method)
    rows = encode_dataset(loaded.codec, ROWS, max_tokens=2048).rows
    loop = TrainingLoop(
        backbone=backbone,
        method=method,
        plan=chosen,
        rows=rows,
        validation_rows=(),
        checkpoint_dir=folder,
        run_key="",
        control=RunControl(),
    )
    # States in the files are those of the model without this adapter.
    with torch.no_grad():
        method.prepare(
            MethodContext(
                backbone,
                rows,
                chosen,
                artefacts,
                lambda: load_memory(artefacts.memory_file, artefacts.teacher_file, loaded.model),
                loop.num_steps,
            )
        )
    forwards: list[int] = []
    handle = loaded.model.base_model.register_forward_hook(lambda *_: forwards.append(1))
    with packed_attention(loaded.model, 500):
        metrics = loop.step(4, loop.rows_of(4))
    handle.remove()
    return OneStep(metrics.loss, metrics.counters["der_squared_logit_error"], method.gradients, len(forwards))


def step_by_the_paper(artefacts: Artefacts) -> OneStep:
    """The same step, literally: full logits of student and teacher, each row alone, torch's own losses."""
    student, teacher = load(artefacts.model_dir, precision="fp32"), load(artefacts.model_dir, precision="fp32")
    parameters = perturbed_backbone(student, plan(DER)).parameters
    picked = [ROWS[i] for i in batch_indices(len(ROWS), 3, 4, 0)]
    encoded = [student.codec.encode_row(r, max_tokens=2048) for r in picked]
    losses, num_tokens = [], 0
    for row in encoded:
        logits = student.model(input_ids=torch.tensor([row.ids])).logits[0]
        for t in range(1, len(row.ids)):
            if row.is_trained[t]:
                losses.append(F.cross_entropy(logits[t - 1], torch.tensor(row.ids[t])))
                num_tokens += 1
    task = torch.stack(losses).sum() / num_tokens
    entries = memory_entries(student.codec)
    ours, theirs = [], []
    for index in memory_indices(len(entries), 3, 4, 0):
        entry = entries[index]
        ids = torch.tensor([entry.ids])
        answer = slice(entry.num_prompt_tokens - 1, len(entry.ids) - 1)
        ours.append(student.model(input_ids=ids).logits[0, answer])
        with torch.no_grad():
            theirs.append(teacher.model(input_ids=ids).logits[0, answer])
    replay = F.mse_loss(torch.cat(ours), torch.cat(theirs))
    (task + ALPHA * replay).backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    return OneStep(float(task.detach()), float(replay.detach()), gradients, 0)


class TestOneStep:
    @pytest.mark.parametrize("family", ["llama", "mistral", "gemma", "gemma2"])
    @pytest.mark.parametrize(("micro_batch_tokens", "num_forwards"), [(4096, 1), (85, 4)])
    def test_has_the_loss_and_gradients_of_the_literal_formula(
        self,
        family: Family,
        micro_batch_tokens: int,
        num_forwards: int,
        prepared_bases: PreparedBases,
        tmp_path: Path,
    ) -> None:
        ours = step_of_the_library(prepared_bases.of(family), micro_batch_tokens, tmp_path)
        literal = step_by_the_paper(prepared_bases.of(family))
        assert ours.num_forwards == num_forwards
        assert ours.loss == pytest.approx(literal.loss, rel=1e-5)
        assert literal.error > 1e-3
        assert ours.error == pytest.approx(literal.error, rel=1e-4)
        assert ours.gradients.keys() == literal.gradients.keys()
        for name, expected in literal.gradients.items():
            difference = float((ours.gradients[name] - expected).norm())
            assert difference <= 1e-5 * float(expected.norm()), name


class TestAlpha:
    def test_of_0_is_plain_fine_tuning_bit_for_bit(
        self, prepared: Artefacts, tiny_models: TinyModels, tmp_path: Path
    ) -> None:
        folder = tiny_models.folder("llama")
        der = train(folder, plan({**DER, "alpha": 0.0}, num_epochs=2), tmp_path / "der", artefacts=prepared)
        none = train(folder, plan(NONE, num_epochs=2), tmp_path / "none")
        assert adapter_bytes(der) == adapter_bytes(none)
        assert [m.loss for m in der.history] == [m.loss for m in none.history]
        assert der.summary is not None
        assert der.summary.notes == ["alpha is 0: nothing was replayed, this is plain fine-tuning."]
        assert der.summary.replayed_tokens == 0

    def test_acts_from_the_second_step_on(self, prepared: Artefacts, tiny_models: TinyModels, tmp_path: Path) -> None:
        """A fresh adapter is the identity: in the first step student and teacher are equal, and the term is flat."""
        folder = tiny_models.folder("llama")
        der = train(folder, plan(DER), tmp_path / "der", artefacts=prepared).history
        none = train(folder, plan(NONE), tmp_path / "none").history
        assert der[0].counters["der_squared_logit_error"] < 1e-10
        assert der[0].loss == pytest.approx(none[0].loss, rel=1e-6)
        assert der[0].gradient_norm == pytest.approx(none[0].gradient_norm, rel=1e-5)
        assert der[1].counters["der_squared_logit_error"] > 1e-6
        assert der[2].loss != pytest.approx(none[2].loss, rel=1e-4)

    def test_a_strong_one_holds_the_logits_on_the_memory(
        self, prepared: Artefacts, tiny_models: TinyModels, tmp_path: Path
    ) -> None:
        folder = tiny_models.folder("llama")
        errors = []
        for alpha in (0.001, 100.0):
            result = train(
                folder, plan({**DER, "alpha": alpha}, num_epochs=4), tmp_path / str(alpha), artefacts=prepared
            )
            errors.append(result.history[-1].counters["der_squared_logit_error"])
        assert errors[1] < 0.2 * errors[0]


class TestReplay:
    def test_counts_the_tokens_it_replays(self, prepared: Artefacts, tiny_models: TinyModels, tmp_path: Path) -> None:
        result = train(tiny_models.folder("llama"), plan(DER), tmp_path, artefacts=prepared)
        codec = load(tiny_models.folder("llama")).codec
        answers = [len(e.ids) - e.num_prompt_tokens for e in memory_entries(codec)]
        expected = [sum(answers[i] for i in memory_indices(len(answers), 3, step, 0)) for step in range(3)]
        assert [m.replayed_tokens for m in result.history] == expected
        assert result.history[-1].counters["der_replayed_tokens"] == sum(expected)
        assert result.summary is not None
        assert result.summary.replayed_tokens == sum(expected)

    def test_takes_all_rows_of_a_memory_smaller_than_a_step(
        self, prepared: Artefacts, tiny_models: TinyModels, tmp_path: Path
    ) -> None:
        result = train(
            tiny_models.folder("llama"), plan({**DER, "memory_rows_per_step": 64}), tmp_path, artefacts=prepared
        )
        assert len({m.replayed_tokens for m in result.history}) == 1

    def test_in_another_precision_than_prepared_measures_against_the_same_precision(
        self, prepared: Artefacts, tiny_models: TinyModels, tmp_path: Path
    ) -> None:
        """Rounding of one precision against another would be an error that replay fights from the first step."""
        result = train(tiny_models.folder("llama"), plan(DER, precision="bf16"), tmp_path, artefacts=prepared)
        errors = [m.counters["der_squared_logit_error"] for m in result.history]
        assert errors[0] < 1e-2 * errors[1]

    def test_prepared_in_bf16_starts_without_an_error(self, tiny_models: TinyModels, tmp_path: Path) -> None:
        folder = tiny_models.folder("llama")
        base = write_prepared(tmp_path / "base", folder, precision="bf16")
        for precision in ("fp32", "bf16"):
            result = train(folder, plan(DER, precision=precision), tmp_path / precision, artefacts=base)
            errors = [m.counters["der_squared_logit_error"] for m in result.history]
            assert errors[0] < 1e-2 * errors[1]


class TestSoftCappedHead:
    def test_is_computed_from_logits_and_the_summary_says_so(
        self, prepared_bases: PreparedBases, tmp_path: Path
    ) -> None:
        base = prepared_bases.of("gemma2")
        result = train(base.model_dir, plan(DER), tmp_path, artefacts=base)
        assert result.summary is not None
        assert result.summary.notes == [
            "The output head is soft-capped or trained, so DER computed full logits instead of the Gram form."
        ]

    def test_a_linear_head_needs_no_note(self, prepared: Artefacts, tmp_path: Path) -> None:
        result = train(prepared.model_dir, plan(DER), tmp_path, artefacts=prepared)
        assert result.summary is not None
        assert result.summary.notes == []


class TestMissingArtefacts:
    """DER never turns into plain fine-tuning on its own."""

    @pytest.fixture
    def copy(self, prepared: Artefacts, tmp_path: Path) -> Artefacts:
        return Artefacts(Path(shutil.copytree(prepared.directory, tmp_path / "copy")))

    def refused(self, base: Artefacts | None, model_dir: Path, out_dir: Path, match: str) -> None:
        with pytest.raises(ArtefactMissing, match=match):
            train(model_dir, plan(DER), out_dir, artefacts=base)
        assert not (out_dir / "adapter").exists()

    def test_no_prepared_base(self, tiny_models: TinyModels, tmp_path: Path) -> None:
        self.refused(None, tiny_models.folder("llama"), tmp_path / "out", "«der» needs a prepared base: run")

    def test_a_folder_that_is_no_prepared_base(self, tmp_path: Path) -> None:
        with pytest.raises(ArtefactMissing, match=r"no prepared\.json\. Run `unforgotten models prepare"):
            Artefacts(tmp_path)

    @pytest.mark.parametrize("name", [layout.MEMORY_FILE, layout.TEACHER_FILE, layout.GRAM_FILE])
    def test_a_file_that_is_gone(self, name: str, copy: Artefacts, tmp_path: Path) -> None:
        (copy.directory / name).unlink()
        self.refused(copy, copy.model_dir, tmp_path / "out", f"no {name}")

    def test_a_gram_file_without_a_gram_matrix(self, copy: Artefacts, tmp_path: Path) -> None:
        save_file({}, copy.directory / layout.GRAM_FILE)
        self.refused(copy, copy.model_dir, tmp_path / "out", "no Gram matrix")

    def test_an_empty_memory(self, copy: Artefacts, tmp_path: Path) -> None:
        copy.memory_file.write_text("")
        self.refused(copy, copy.model_dir, tmp_path / "out", "memory is empty")

    def test_a_memory_without_refusals(self, tiny_models: TinyModels, tmp_path: Path) -> None:
        harmless = [entry for entry in MEMORY if entry[0] != "harmful"]
        base = write_prepared(tmp_path / "base", tiny_models.folder("llama"), memory=harmless)
        self.refused(base, base.model_dir, tmp_path / "out", "holds no refusal")

    def test_states_that_are_not_those_of_the_memory(self, copy: Artefacts, tmp_path: Path) -> None:
        states = load_file(copy.teacher_file)["states"]
        save_file({"states": states[:-1].clone()}, copy.teacher_file)
        self.refused(copy, copy.model_dir, tmp_path / "out", "do not fit the safety memory")


class TestMemory:
    def test_first_rows_keep_their_own_states(self, prepared: Artefacts) -> None:
        model = load(prepared.model_dir, precision="fp32").model
        whole = load_memory(prepared.memory_file, prepared.teacher_file, model)
        part = whole.first(2)
        assert (len(part.rows), part.num_refusals, whole.num_refusals) == (2, 1, 4)
        assert torch.equal(part.teacher_states(part.rows), whole.teacher_states(whole.rows[:2]))
        assert len(whole.first(1000).rows) == len(MEMORY)

    def test_rows_replay_the_answer_with_its_end(self, prepared: Artefacts) -> None:
        loaded = load(prepared.model_dir, precision="fp32")
        memory = load_memory(prepared.memory_file, prepared.teacher_file, loaded.model)
        for row, (_, _, answer) in zip(memory.rows, MEMORY, strict=True):
            assert loaded.codec.decode(row.targets) == answer
            assert row.targets[-1] in loaded.codec.end_ids
            assert [row.ids[p + 1] for p in row.positions] == list(row.targets)
