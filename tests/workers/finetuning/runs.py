"""Short runs of `finetune`, and what is read off them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.contracts.chat import ChatRow
from app.contracts.plan import TrainingPlan
from tests.workers.conversations import short_rows
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.loop import RunControl, StepMetrics
from workers.finetuning.run import FinetuneResult, finetune
from workers.modeling.adapters import WEIGHTS_FILE
from workers.modeling.loading import load

DER = {"name": "der", "alpha": 2.0, "memory_rows_per_step": 3}
NONE = {"name": "none"}


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


def train(
    model_dir: Path,
    chosen: TrainingPlan,
    out_dir: Path,
    *,
    artefacts: Artefacts | None = None,
    rows: Sequence[ChatRow] | None = None,
    validation_rows: Sequence[ChatRow] = (),
    control: RunControl | None = None,
) -> FinetuneResult:
    """`finetune` on a freshly loaded model, as a new process would do it."""
    return finetune(
        load(model_dir, precision=chosen.precision),
        short_rows(9) if rows is None else rows,
        chosen,
        out_dir=out_dir,
        base_name="tiny",
        base_hash="hash of tiny",
        artefacts=artefacts,
        validation_rows=validation_rows,
        control=control,
    )


def adapter_bytes(result: FinetuneResult) -> bytes:
    assert result.adapter_dir is not None
    return (result.adapter_dir / WEIGHTS_FILE).read_bytes()


class StopAfter(RunControl):
    """Asks to stop after a number of steps."""

    def __init__(self, num_steps: int) -> None:
        self._left = num_steps
        self.steps: list[StepMetrics] = []

    def on_step(self, metrics: StepMetrics) -> None:
        self._left -= 1
        self.steps.append(metrics)

    def should_stop(self) -> bool:
        return self._left <= 0
