"""Aligning a base: supervised fine-tuning on refusals and helpful answers, merged into theta_safe."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM

from app.contracts.bases import AlignmentRecipe
from app.contracts.chat import ChatMessage, ChatRow
from app.contracts.methods import NoMethod
from app.contracts.plan import LoraPlan, TrainingPlan
from workers.channel import StopAsked
from workers.data import ADAPTERS_DIR, alignment_rows
from workers.finetuning.loop import RunControl, StepMetrics
from workers.finetuning.run import finetune
from workers.hashing import weights_sha256
from workers.modeling import adapters
from workers.modeling.errors import ModelingError
from workers.modeling.loading import load
from workers.modeling.sources import FetchedModel

RECORD = "record.json"
"""Beside a shipped adapter: which base it is for and how it was made."""


class _Watch(RunControl):
    def __init__(self, num_steps: int, on_progress: Callable[[int, int], None]) -> None:
        self._num_steps = num_steps
        self._on_progress = on_progress
        self._is_stopping = False

    def on_step(self, metrics: StepMetrics) -> None:
        try:
            self._on_progress(metrics.step, self._num_steps)
        except StopAsked:
            # The loop saves a checkpoint first; the next attempt goes on from there.
            self._is_stopping = True

    def should_stop(self) -> bool:
        return self._is_stopping


class ShippedAdapter(NamedTuple):
    """An alignment adapter that comes with the project."""

    directory: Path
    weights_sha256: str


def shipped_adapter(name: str) -> ShippedAdapter | None:
    """The shipped alignment adapter of that name, or None."""
    directory = ADAPTERS_DIR / name
    if not (directory / RECORD).is_file():
        return None
    return ShippedAdapter(directory, json.loads((directory / RECORD).read_text())["weights_sha256"])


def train_alignment(
    fetched: FetchedModel, recipe: AlignmentRecipe, out_dir: Path, on_progress: Callable[[int, int], None]
) -> Path:
    """Trains the alignment adapter; goes on from `out_dir`'s checkpoints. Returns the adapter folder."""
    rows = [
        ChatRow(
            messages=(ChatMessage(role="user", content=r.prompt), ChatMessage(role="assistant", content=r.response))
        )
        for r in alignment_rows()
    ]
    plan = TrainingPlan(
        method=NoMethod(),
        lora=LoraPlan(rank=recipe.rank, alpha=recipe.alpha),
        num_epochs=recipe.num_epochs,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        checkpoint_every_steps=10,
        seed=recipe.seed,
    )
    num_steps = recipe.num_epochs * -(-len(rows) // recipe.batch_size)
    result = finetune(
        load(fetched.directory),
        rows,
        plan,
        out_dir=out_dir,
        base_name=fetched.source,
        base_hash=fetched.content_hash,
        control=_Watch(num_steps, on_progress),
    )
    if result.adapter_dir is None:
        raise StopAsked
    return result.adapter_dir


def copy_shipped(name: str, fetched: FetchedModel, target: Path) -> None:
    """Takes a shipped adapter.

    Raises:
        ModelingError: There is none of that name, or it was made for other weights.
    """
    found = shipped_adapter(name)
    if found is None:
        raise ModelingError(f"The project ships no alignment adapter «{name}»; prepare with --retrain.")
    # Not the folder's hash: configuration files name the library's version that has written them.
    weights = weights_sha256(fetched.directory)
    if found.weights_sha256 != weights:
        raise ModelingError(
            f"The shipped adapter «{name}» was made for weights {found.weights_sha256[:12]}, these are "
            f"{weights[:12]}; prepare with --retrain."
        )
    shutil.copytree(found.directory, target, ignore=shutil.ignore_patterns(RECORD))


def write_merged(fetched: FetchedModel, adapter_dir: Path, target: Path) -> None:
    """Writes theta_safe: the base with the alignment adapter merged, in the base's own precision."""
    model = AutoModelForCausalLM.from_pretrained(
        fetched.directory, dtype="auto", trust_remote_code=False, local_files_only=True, use_safetensors=True
    )
    with torch.no_grad():
        adapters.merge_into(model, adapters.read_pairs(adapter_dir))
    model.save_pretrained(target)
    copy_companions(fetched.directory, target)


def copy_companions(source: Path, target: Path) -> None:
    """Copies tokenizer, template and generation settings beside the weights."""
    for file in source.iterdir():
        is_weights = file.name.endswith((".safetensors", ".safetensors.index.json"))
        if file.is_file() and file.name != "source.json" and not is_weights and not (target / file.name).exists():
            shutil.copyfile(file, target / file.name)
