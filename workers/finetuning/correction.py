"""Corrective replay: a few steps of a finished adapter on the safety memory alone.

Source: the memory's rows are what SafeInstruct (Bianchi et al. 2024, arXiv 2309.07875) trains on, and its stored states
    what DER (Buzzega et al. 2020, arXiv 2004.07211) holds: see methods/safeinstruct.py and methods/der.py.
Idea: what plain fine-tuning has forgotten comes back within a few steps, much of the task is not forgotten in so few.
Differences: both terms run over the memory, and no row of the user's is seen. The optimizer starts anew. Answers that
    were cut when the memory was made are held, not trained on: the model would learn to stop in the middle.
"""

import json
from pathlib import Path

from app.contracts.chat import ChatMessage, ChatRow
from app.contracts.methods import Der
from app.contracts.objectives import SUPERVISED
from app.contracts.plan import LoraPlan, TrainingPlan
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.errors import ArtefactMissing
from workers.finetuning.loop import RunControl
from workers.finetuning.memory import read_entries
from workers.finetuning.run import FinetuneResult, finetune
from workers.modeling.adapters import CONFIG_FILE
from workers.modeling.loading import LoadedModel

ROWS_PER_STEP = 8
"""Rows of memory that a step trains on, and as many whose logits it holds."""


def correct(
    base: LoadedModel,
    adapter_dir: Path,
    plan: TrainingPlan,
    artefacts: Artefacts,
    *,
    num_steps: int,
    out_dir: Path,
    base_name: str,
    control: RunControl | None = None,
) -> FinetuneResult:
    """Trains an adapter on the base's safety memory, from where it stands.

    Args:
        base: As for `finetune`.
        adapter_dir: What to start from; left as it is.
        plan: The run that made it: learning rate, precision and seed are taken over.
        artefacts: Of the base.
        num_steps: Optimizer steps; a few more where the memory has fewer rows than they would draw.
        out_dir: Receives the corrected adapter, as `finetune` writes it.
        base_name: Written into the adapter's configuration.
        control: Watches and stops the run.

    Raises:
        ArtefactMissing: The base has no safety memory, or no refusal or no whole answer is in it.
        TrainingDiverged: A loss or gradient is not a number.
    """
    entries = [entry for entry in read_entries(artefacts.memory_file) if entry.ids[-1] in base.codec.end_ids]
    if not entries:
        raise ArtefactMissing("No answer in the safety memory is whole: prepare the base with more max_answer_tokens.")
    rows = [
        ChatRow(messages=(ChatMessage(role="user", content=e.prompt), ChatMessage(role="assistant", content=e.answer)))
        for e in entries[: num_steps * ROWS_PER_STEP]
    ]
    steps_per_epoch = -(-len(rows) // ROWS_PER_STEP)
    config = json.loads((adapter_dir / CONFIG_FILE).read_text())
    changes = {
        "objective": SUPERVISED,
        "method": Der(memory_rows_per_step=ROWS_PER_STEP),
        "ema": None,
        "merge": None,
        # A merge may have changed the rank.
        "lora": LoraPlan(rank=config["r"], alpha=config["lora_alpha"], dropout=plan.lora.dropout),
        "batch_size": ROWS_PER_STEP,
        "num_epochs": -(-num_steps // steps_per_epoch),
        # Where the user's rows are cut says nothing about the memory's; the template adds a little to these.
        "max_row_tokens": max(plan.max_row_tokens, 2 * max(len(entry.ids) for entry in entries)),
    }
    return finetune(
        base,
        rows,
        plan.model_copy(update=changes),
        out_dir=out_dir,
        base_name=base_name,
        base_hash=artefacts.record["theta_safe_hash"],
        artefacts=artefacts,
        control=control,
        start_from=adapter_dir,
    )
