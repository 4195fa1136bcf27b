"""`prepare`: a model source and a recipe in; the folder of a prepared base out.

The folder is named by the hash of everything it depends on (weights, recipe, shipped texts), so preparing twice finds
what is there. It is filled aside, one finished part after another, and renamed at the end: an interrupted run goes
on where it stopped, and nobody ever sees half a base.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from app.contracts.bases import PrepareRecipe
from app.contracts.progress import BaseStatusMessage
from app.contracts.specs import PrepareSpec
from workers.channel import Channel
from workers.data import ALIGNMENT_FILE
from workers.data.reference_uploads import REFERENCE_UPLOADS_FILE
from workers.evaluation.baseline import run_baseline
from workers.finetuning import artefacts
from workers.finetuning.errors import ArtefactMissing
from workers.finetuning.fisher import compute_fisher, save_fisher
from workers.finetuning.memory import (
    compute_teacher_states,
    load_memory,
    memory_rows,
    read_entries,
    save_teacher,
    write_entries,
)
from workers.finetuning.twin import write_low_rank
from workers.hashing import file_sha256
from workers.modeling import adapters
from workers.modeling.errors import UnsupportedModel
from workers.modeling.generation import LocalModel
from workers.modeling.heads import OutputHead, gram_matrix, output_head
from workers.modeling.loading import LoadedModel, load
from workers.modeling.sources import FetchedModel, content_hash, fetch
from workers.preflight.references import save_references
from workers.preparation.alignment import copy_companions, copy_shipped, train_alignment, write_merged
from workers.preparation.memory import build_memory
from workers.preparation.references import build_references
from workers.preparation.twin import adapted_shapes, write_difference

FORMAT = 3
"""Part of every prepared base's name: a change in what is stored makes new folders."""
FETCHED_DIR = "fetched"
_ALIGNMENT_RUN = "alignment_run"
_MEMORY_COUNTS = "memory_counts.json"


def prepare(spec: PrepareSpec, channel: Channel) -> str:
    """Prepares a base.

    Returns:
        The name of its folder under `spec.bases_dir`.

    Raises:
        SourceError: The model or its unaligned twin cannot be had.
        ArtefactMissing: theta_safe refuses nothing, so there is no safety memory.
        UnsupportedModel: Its output head is none that training can use.
    """
    recipe, cache_dir = spec.recipe, spec.bases_dir / FETCHED_DIR
    fetched = fetch(spec.source, cache_dir, chat_template=recipe.chat_template, on_status=channel.say)
    twin = None
    if recipe.unaligned_twin is not None:
        twin = fetch(recipe.unaligned_twin, cache_dir, on_status=channel.say)
    name = prepared_hash(fetched, twin, recipe)
    target = spec.bases_dir / name
    if (target / artefacts.RECORD_FILE).is_file():
        channel.say(f"{spec.base_id} is prepared already ({name[:12]})")
        return name
    work = _Preparation(spec, fetched, twin, spec.bases_dir / f"{name}.partial", channel)
    work.run()
    work.folder.rename(target)
    channel.say(f"{spec.base_id} is prepared ({name[:12]})")
    return name


def prepared_hash(fetched: FetchedModel, twin: FetchedModel | None, recipe: PrepareRecipe) -> str:
    """Hash (hex) over all that a prepared base depends on."""
    facts = {
        "format": FORMAT,
        "base": fetched.content_hash,
        "unaligned_twin": None if twin is None else twin.content_hash,
        # These two are in the hashes above.
        "recipe": recipe.model_dump(mode="json", exclude={"unaligned_twin", "chat_template"}),
        "alignment_set": file_sha256(ALIGNMENT_FILE),
        "reference_uploads": file_sha256(REFERENCE_UPLOADS_FILE),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class _Preparation:
    """The parts, in order; each is skipped when it is there already."""

    def __init__(
        self, spec: PrepareSpec, fetched: FetchedModel, twin: FetchedModel | None, folder: Path, channel: Channel
    ) -> None:
        self.spec = spec
        self.recipe = spec.recipe
        self.fetched = fetched
        self.twin = twin
        self.folder = folder
        self.channel = channel
        folder.mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        if self.recipe.align:
            self.channel.send(BaseStatusMessage(status="aligning"))
            self._part(artefacts.ALIGNMENT_DIR, self._alignment)
        self.channel.send(BaseStatusMessage(status="preparing"))
        self._part(artefacts.MODEL_DIR, self._model)
        loaded = load(self.folder / artefacts.MODEL_DIR)
        # A head that training cannot use is refused here, not in every job on this base.
        head = output_head(loaded.model)
        if self.recipe.align or self.twin is not None:
            self._part(artefacts.TWIN_FILE, lambda path: self._unaligned_twin(path, loaded))
        self._part(artefacts.MEMORY_FILE, lambda path: self._memory(path, loaded))
        self._part(artefacts.TEACHER_FILE, lambda path: self._teacher(path, loaded))
        self._part(artefacts.REFERENCES_FILE, lambda path: self._references(path, loaded, head))
        self._part(artefacts.GRAM_FILE, lambda path: self._gram(path, head))
        if self.recipe.fisher_rows:
            self._part(artefacts.FISHER_FILE, lambda path: self._fisher(path, loaded))
        theta_safe_hash = content_hash(self.folder / artefacts.MODEL_DIR)
        baseline = run_baseline(
            LocalModel(loaded),
            self.folder / artefacts.BASELINE_DIR,
            base_hash=theta_safe_hash,
            recipe=self.recipe,
            on_progress=self.channel.progress("baseline answers"),
        )
        self._record(loaded, theta_safe_hash, baseline)
        shutil.rmtree(self.folder / _ALIGNMENT_RUN, ignore_errors=True)

    def _part(self, name: str, make: Callable[[Path], None]) -> None:
        """Makes one part aside and moves it to its name, unless an earlier run did."""
        done = self.folder / name
        if done.exists():
            return
        # The suffix stays: safetensors and PEFT look at it.
        staging = self.folder / f".new-{name}"
        if staging.is_dir():
            shutil.rmtree(staging)
        make(staging)
        staging.rename(done)

    def _alignment(self, target: Path) -> None:
        if self.recipe.shipped_adapter is not None:
            self.channel.say(f"Taking the alignment adapter «{self.recipe.shipped_adapter}» that the project ships")
            copy_shipped(self.recipe.shipped_adapter, self.fetched, target)
            return
        self.channel.say("Aligning the base on refusals and helpful answers")
        adapter = train_alignment(
            self.fetched, self.recipe.alignment, self.folder / _ALIGNMENT_RUN, self.channel.progress("alignment steps")
        )
        adapters.copy_rounded(adapter, target)

    def _model(self, target: Path) -> None:
        if self.recipe.align:
            self.channel.say("Merging the alignment adapter into theta_safe")
            write_merged(self.fetched, self.folder / artefacts.ALIGNMENT_DIR, target)
            return
        target.mkdir()
        for weights in self.fetched.directory.glob("*.safetensors*"):
            shutil.copyfile(weights, target / weights.name)
        copy_companions(self.fetched.directory, target)

    def _unaligned_twin(self, path: Path, loaded: LoadedModel) -> None:
        shapes = adapted_shapes(loaded)
        if self.twin is None:
            write_low_rank(path, adapters.read_pairs(self.folder / artefacts.ALIGNMENT_DIR), shapes)
            return
        self.channel.say("Comparing the base with its unaligned twin")
        progress = self.channel.progress("unaligned twin weights")
        write_difference(path, self.folder / artefacts.MODEL_DIR, self.twin, shapes, progress)

    def _memory(self, path: Path, loaded: LoadedModel) -> None:
        self.channel.say("Building the safety memory from the base's own answers")
        built = build_memory(
            LocalModel(loaded),
            loaded.codec,
            count=self.recipe.memory_rows,
            max_answer_tokens=self.recipe.max_answer_tokens,
            seed=self.recipe.alignment.seed,
            on_progress=self.channel.progress("safety memory answers"),
        )
        num_refusals = sum(entry.kind == "harmful" for entry in built.entries)
        if not num_refusals:
            raise ArtefactMissing(
                f"The base refused none of {built.num_not_refused} harmful requests: it is not aligned. Prepare it "
                "with alignment (align: true in its recipe)."
            )
        counts = {
            "asked": built.num_asked,
            "kept": len(built.entries),
            "kept_refusals": num_refusals,
            "dropped_not_refused": built.num_not_refused,
            "dropped_not_helpful": built.num_not_helpful,
        }
        self.channel.say(
            f"Safety memory: kept {counts['kept']} of {counts['asked']} rows ({num_refusals} refusals); dropped "
            f"{built.num_not_refused} that were not refused and {built.num_not_helpful} that were not helpful"
        )
        (self.folder / _MEMORY_COUNTS).write_text(json.dumps(counts))
        write_entries(path, built.entries)

    def _teacher(self, path: Path, loaded: LoadedModel) -> None:
        rows = memory_rows(read_entries(self.folder / artefacts.MEMORY_FILE))
        save_teacher(path, compute_teacher_states(loaded.model, rows, self.channel.progress("teacher states")))

    def _references(self, path: Path, loaded: LoadedModel, head: OutputHead) -> None:
        self.channel.say("Looking at the reference uploads that tenants' uploads will be compared with")
        memory_file = self.folder / artefacts.MEMORY_FILE
        references = build_references(
            loaded,
            head,
            read_entries(memory_file),
            load_memory(memory_file, self.folder / artefacts.TEACHER_FILE, loaded.model),
            self.channel.progress("reference rows"),
        )
        detector = references.refused_request
        self.channel.say(
            f"Of requests that this base refuses, {100 * detector.recall:.0f} % are told from harmless ones before it "
            "answers"
        )
        save_references(path, references)

    def _gram(self, path: Path, head: OutputHead) -> None:
        try:
            gram = gram_matrix(head)
        except UnsupportedModel as error:
            # Methods that could use it compute logits instead, and say so in their report.
            self.channel.say(f"No Gram matrix: {error}")
            save_file({}, path)
            return
        save_file({"gram": gram}, path)

    def _fisher(self, path: Path, loaded: LoadedModel) -> None:
        self.channel.say("Measuring how much the safe answers depend on each weight")
        # The memory's order is mixed, so its beginning has rows of every kind.
        rows = memory_rows(read_entries(self.folder / artefacts.MEMORY_FILE))[: self.recipe.fisher_rows]
        try:
            fisher = compute_fisher(loaded.model, rows, self.channel.progress("Fisher information rows"))
        except UnsupportedModel as error:
            # Jobs that need it fail and say so; all others do without.
            self.channel.say(f"No Fisher information: {error}")
            save_file({}, path)
            return
        save_fisher(path, fisher)

    def _record(self, loaded: LoadedModel, theta_safe_hash: str, baseline: dict[str, Any]) -> None:
        hashes = {
            str(file.relative_to(self.folder)): file_sha256(file)
            for file in sorted(self.folder.rglob("*"))
            if file.is_file()
            # A run that was interrupted right here has left a record, whose hash would be that of the old one.
            and file != self.folder / artefacts.RECORD_FILE
            and not file.is_relative_to(self.folder / _ALIGNMENT_RUN)
        }
        record = {
            "base_id": self.spec.base_id,
            "source": self.fetched.source,
            "base_hash": self.fetched.content_hash,
            "unaligned_twin": None if self.twin is None else self.twin.source,
            "theta_safe_hash": theta_safe_hash,
            "recipe": self.recipe.model_dump(mode="json"),
            "chat_template_sha256": loaded.codec.template_sha256,
            "memory": json.loads((self.folder / _MEMORY_COUNTS).read_text()),
            "baseline": baseline,
            "files": hashes,
        }
        (self.folder / artefacts.RECORD_FILE).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
