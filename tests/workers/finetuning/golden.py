"""The committed losses of ten steps; `python -m tests.workers.finetuning.golden` writes them anew.

A change of them is a change of the training's numbers: it needs a reason in the change's message.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.workers.finetuning.prepared import write_prepared
from tests.workers.finetuning.runs import DER, DPO, NONE, plan, train
from tests.workers.tiny import save_tiny_model
from workers.finetuning.artefacts import Artefacts

FOLDER = Path(__file__).parents[2] / "assets" / "losses"
METHODS: dict[str, dict[str, Any]] = {
    "none": NONE,
    "der": DER,
    "der_budget": {"name": "der", "alpha": {"budget": 0.05}, "divergence": "kl", "memory_rows_per_step": 3},
    "derpp": {"name": "derpp", "memory_rows_per_step": 3},
    "refresh": {"name": "refresh", "memory_rows_per_step": 3, "step_size": 1e-3},
    "magmax": {"name": "magmax"},
    "safelora": {"name": "safelora"},
    "agem": {"name": "agem", "memory_rows_per_step": 3},
    "safegrad": {"name": "safegrad", "memory_rows_per_step": 3},
    "safeinstruct": {"name": "safeinstruct", "memory_rows_per_step": 3},
    "lisa": {"name": "lisa"},
    "lwf": {"name": "lwf", "beta": 1.0},
    "constrained_sft": {"name": "constrained_sft"},
    "ewc": {"name": "ewc"},
    "dpo": NONE,
    "dpo_der": DER,
}
OBJECTIVES = dict.fromkeys(("dpo", "dpo_der"), DPO)
"""Of the names that are not supervised."""
NUM_STEPS = 10


def settings(name: str) -> dict[str, Any]:
    """What a name stands for beside its method."""
    return {"objective": OBJECTIVES[name]} if name in OBJECTIVES else {}


def losses(name: str, base: Artefacts, out_dir: Path) -> list[float]:
    """Losses of ten steps in float32: nine rows, three a step, the last epoch's two steps left out."""
    chosen = plan(METHODS[name], num_epochs=4, micro_batch_tokens=256, **settings(name))
    return [m.loss for m in train(base.model_dir, chosen, out_dir, artefacts=base).history[:NUM_STEPS]]


def read(name: str) -> list[float]:
    lines = (FOLDER / f"{name}.txt").read_text().splitlines()
    return [float(line.split()[1]) for line in lines if not line.startswith("#")]


def main() -> None:
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        base = write_prepared(folder / "base", save_tiny_model(folder / "model"))
        for name in METHODS:
            lines = [f"{step} {loss:.6f}" for step, loss in enumerate(losses(name, base, folder / name), start=1)]
            header = "# step and loss; written by `python -m tests.workers.finetuning.golden`"
            (FOLDER / f"{name}.txt").write_text("\n".join([header, *lines]) + "\n")


if __name__ == "__main__":
    main()
