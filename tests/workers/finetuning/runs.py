"""Short runs of `finetune`, and what is read off them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from app.contracts.chat import ChatRow, PreferenceRow
from app.contracts.objectives import Dpo
from app.contracts.plan import TrainingPlan
from tests.workers.conversations import short_pairs, short_rows
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.backbone import Backbone
from workers.finetuning.loop import RunControl, StepMetrics
from workers.finetuning.run import FinetuneResult, finetune
from workers.modeling import adapters
from workers.modeling.adapters import WEIGHTS_FILE
from workers.modeling.heads import output_head
from workers.modeling.loading import LoadedModel, load

DER = {"name": "der", "alpha": 2.0, "memory_rows_per_step": 3}
NONE = {"name": "none"}
DPO = {"name": "dpo"}


def plan(method: dict[str, Any], **settings: Any) -> TrainingPlan:
    """A plan of three steps an epoch on the nine rows of `train`, in float32."""
    return TrainingPlan.model_validate(
        {
            "method": method,
            "lora": {"rank": 4, "alpha": 8},
            "batch_size": 3,
            "learning_rate": 1e-2,
            "precision": "fp32",
            **settings,
        }
    )


def rows_for(chosen: TrainingPlan, count: int) -> list[ChatRow] | list[PreferenceRow]:
    """Rows of the kind that a plan trains on."""
    return short_pairs(count) if isinstance(chosen.objective, Dpo) else short_rows(count)


def train(
    model_dir: Path,
    chosen: TrainingPlan,
    out_dir: Path,
    *,
    artefacts: Artefacts | None = None,
    rows: Sequence[ChatRow] | Sequence[PreferenceRow] | None = None,
    validation_rows: Sequence[ChatRow] | Sequence[PreferenceRow] = (),
    control: RunControl | None = None,
    start_from: Path | None = None,
    micro_batch_divisor: int = 1,
) -> FinetuneResult:
    """`finetune` on a freshly loaded model, as a new process would do it."""
    return finetune(
        load(model_dir, precision=chosen.precision, quantisation=chosen.quantisation),
        rows_for(chosen, 9) if rows is None else rows,
        chosen,
        out_dir=out_dir,
        base_name="tiny",
        base_hash="hash of tiny",
        artefacts=artefacts,
        validation_rows=validation_rows,
        control=control,
        start_from=start_from,
        micro_batch_divisor=micro_batch_divisor,
    )


def perturbed_backbone(loaded: LoadedModel, chosen: TrainingPlan, *, divisor: int = 1) -> Backbone:
    """An adapter that is away from its start, where it would change nothing."""
    peft_model = adapters.attach(loaded.model, chosen.lora, seed=chosen.seed)
    parameters = adapters.trainable_parameters(peft_model)
    generator = torch.Generator().manual_seed(11)
    for parameter in parameters.values():
        parameter.data.normal_(0.0, 0.1, generator=generator)
    return Backbone(
        loaded,
        peft_model,
        output_head(loaded.model),
        parameters,
        tokens=chosen.micro_batch_tokens,
        scaling=chosen.lora.scaling,
        divisor=divisor,
    )


def adapter_bytes(result: FinetuneResult) -> bytes:
    assert result.adapter_dir is not None
    return (result.adapter_dir / WEIGHTS_FILE).read_bytes()


class StopAfter(RunControl):
    """Asks to stop after a number of steps."""

    def __init__(self, num_steps: int) -> None:
        self._left = num_steps
        self.steps: list[StepMetrics] = []
        self.damaged: tuple[list[str], int] | None = None

    def on_damaged(self, checkpoints: Sequence[str], next_step: int) -> None:
        self.damaged = (list(checkpoints), next_step)

    def on_step(self, metrics: StepMetrics) -> None:
        self._left -= 1
        self.steps.append(metrics)

    def should_stop(self) -> bool:
        return self._left <= 0
