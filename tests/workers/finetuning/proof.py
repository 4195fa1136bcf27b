"""What a method's proofs are made with: single steps of the loop, and the literal formulas beside them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from app.contracts.plan import TrainingPlan
from tests.workers.finetuning.runs import perturbed_backbone, plan, rows_for
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.loop import LoopResult, RunControl, StepMetrics, TrainingLoop
from workers.finetuning.memory import load_memory
from workers.finetuning.method import Method, MethodContext
from workers.finetuning.methods import build_method
from workers.finetuning.rows import TokenRow
from workers.finetuning.run import build_objective, encode
from workers.modeling.loading import load
from workers.modeling.packing import packed_attention

Gradients = dict[str, torch.Tensor]
WHOLE, CUT = 4096, 8
"""Tokens of a forward: a step in one, or every row in one of its own."""


class ProofRun:
    """A loop on an adapter away from its start, with a prepared base: steps it, and writes out what it should do."""

    seen: Gradients
    """The latest step's gradients as clipping finds them."""

    def __init__(
        self, base: Artefacts, method: Method | dict[str, Any], folder: Path, chosen: TrainingPlan | None = None
    ) -> None:
        if isinstance(method, dict):
            chosen = plan(method, num_epochs=2) if chosen is None else chosen
            method = build_method(chosen)
        assert chosen is not None, "a method that is no configuration needs a plan"
        loaded = load(base.model_dir, precision="fp32")
        self.method = method
        self.plan = chosen
        self.backbone = perturbed_backbone(loaded, chosen)
        self.base = load(base.model_dir, precision="fp32").model
        """theta_safe, which never has an adapter."""
        rows = encode(loaded.codec, rows_for(chosen, 9), chosen, max_tokens=2048).rows
        objective = build_objective(chosen, self.backbone)
        objective.prepare(rows, is_fresh=True)
        self.loop = TrainingLoop(
            backbone=self.backbone,
            objective=objective,
            method=method,
            plan=chosen,
            rows=rows,
            validation_rows=(),
            checkpoint_dir=folder,
            run_key="",
            control=RunControl(),
        )
        # States in the files are those of the model without this adapter.
        self.memory = load_memory(base.memory_file, base.teacher_file, loaded.model)
        num_steps = self.loop.num_steps
        method.prepare(MethodContext(self.backbone, rows, chosen, base, lambda: self.memory, num_steps, objective))
        method.begin()
        self._record(method)

    def step(self, number: int = 0) -> StepMetrics:
        """One step of the loop, on its own rows of that step."""
        with packed_attention(self.backbone.model, 500):
            return self.loop.step(number, self.loop.rows_of(number))

    def run(self, control: RunControl | None = None) -> LoopResult:
        """All of it, with checkpoints in the folder."""
        self.loop.control = control or RunControl()
        return self.loop.run()

    def values(self) -> Gradients:
        """The parameters as they are."""
        return {name: p.detach().clone() for name, p in self.backbone.parameters.items()}

    def reference_gradients(self, loss: torch.Tensor) -> Gradients:
        """By autograd, of a loss that was computed from the parameters in the most literal way."""
        found = torch.autograd.grad(loss, list(self.backbone.parameters.values()), materialize_grads=True)
        return dict(zip(self.backbone.parameters, found, strict=True))

    def cross_entropy(self, rows: Sequence[TokenRow]) -> torch.Tensor:
        """Mean over the rows' trained tokens, by torch, from full logits."""
        return F.cross_entropy(self.logits(rows), self.targets(rows))

    def logits(self, rows: Sequence[TokenRow]) -> torch.Tensor:
        """Full logits at the predicting positions, each row alone, without packing."""
        return logits_of(self.backbone.model, rows)

    def teacher_logits(self, rows: Sequence[TokenRow]) -> torch.Tensor:
        """The same of the base as it was loaded, which never had an adapter."""
        with torch.no_grad():
            return logits_of(self.base, rows)

    def targets(self, rows: Sequence[TokenRow]) -> torch.Tensor:
        return torch.tensor([t for r in rows for t in r.targets])

    def _record(self, method: Method) -> None:
        inner = method.adjust_gradients

        def adjust(step: int, gradients: Mapping[str, torch.Tensor]) -> None:
            inner(step, gradients)
            self.seen = {name: gradient.clone() for name, gradient in gradients.items()}

        method.adjust_gradients = adjust  # type: ignore[method-assign]


def assert_same(
    found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], *, relative: float = 1e-5
) -> None:
    """Each tensor within `relative` of the expected one's length."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        difference, length = float((found[name] - tensor).norm()), float(tensor.norm())
        assert difference <= relative * length, f"{name}: off by {difference / max(length, 1e-30):.2e} of its length"


def dot(one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor]) -> float:
    """Over all tensors as one vector, in float64."""
    return sum(float((one[name].double() * two[name].double()).sum()) for name in one)


def kl(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """KL(theirs || ours) of logits [N, V], summed over positions."""
    return F.kl_div(ours.log_softmax(-1), theirs.log_softmax(-1), log_target=True, reduction="sum")


def logits_of(model: PreTrainedModel, rows: Sequence[TokenRow]) -> torch.Tensor:
    """Full logits at the predicting positions, each row alone, without packing."""
    return torch.cat([model(input_ids=torch.tensor([r.ids])).logits[0, list(r.positions)] for r in rows])
