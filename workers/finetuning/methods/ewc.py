"""Elastic Weight Consolidation: weights that the safe answers depend on are held by a quadratic spring.

Source: Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural networks", arXiv 1612.00796, eq. 3; in
    the form of arXiv 2512.10150 (Unforgotten Safety): L = CE(user) + lambda / 2 * sum_i F_i (theta_i - theta_safe,i)^2.
Idea: F, the diagonal of theta_safe's Fisher information on its own safe answers, says how much each weight matters to
    them. It is computed once when the base is prepared (see fisher.py), and no safety row is seen in training.
Hooks: prepare, adjust_gradients, state, load_state, counters, notes.
Differences: the spring is on the weights W that the adapter changes, not on its A and B: theta - theta_safe is the
    update U = s B A, which is 0 at the start. On A and B it would be wrong: F of A is 0 where B is 0, and A's random
    start is nothing to be pulled to. Biases, norms and embeddings do not move, so they need no spring.
    F is divided by its mean over all these weights, so that lambda means about the same on every base and however many
    rows F was averaged over. Implementations disagree on both and on the half: the paper has lambda / 2, others
    lambda; some average F, some sum it, some square the mean gradient of a batch, and then take lambda up to 1e9.
    Here are the paper's half, squares of single rows, and the trace of F in the counters to convert with.
    The gradient is written down instead of left to autograd: with P = lambda F * U, it is s P A^T for B and s B^T P
    for A, and the penalty itself is half the inner product of B and its gradient. U exists only in pieces: some weights
    of one shape at once, or some rows of a large one. The three products are made in the model's own precision and
    added up in float32: on a bf16 base the update is held as the forward pass computes it, in about half the time.
Memory: F of every weight that the adapter changes, as stored: as large as these weights of the base. EWC has no
    smaller form. The step itself takes one piece.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch

from app.contracts.methods import Ewc
from app.contracts.value import Value
from workers.finetuning.errors import ArtefactMissing, CheckpointMismatch
from workers.finetuning.fisher import load_fisher, piece_numbers
from workers.finetuning.method import Method, MethodContext


class _Held(NamedTuple):
    """G weights [O, I] with updates of rank R, worked on at once: a product alone is too small for several threads."""

    a_names: list[str]
    b_names: list[str]
    a: list[torch.Tensor]
    """Each [R, I]."""
    b: list[torch.Tensor]
    """Each [O, R]."""
    fisher_GOI: torch.Tensor


class ElasticWeightConsolidation(Method):
    """L = CE(user rows) + lambda / 2 * sum over weights of F / mean(F) * (s B A)^2."""

    name: ClassVar[str] = "ewc"

    def __init__(self, config: Value) -> None:
        assert isinstance(config, Ewc)
        super().__init__(config)
        self._strength = config.strength
        self._held: list[_Held] = []
        self._factor = 0.0
        self._dtype = torch.float32
        self._trace = 0.0
        self._penalty = 0.0

    def prepare(self, context: MethodContext) -> None:
        if self._strength == 0.0:
            return
        if context.artefacts is None:
            raise ArtefactMissing("EWC needs the base's Fisher information: run `unforgotten models prepare` first.")
        backbone = context.backbone
        shapes = {name: (b.shape[0], a.shape[1]) for name, (a, b) in backbone.lora_weights.items()}
        fisher = load_fisher(context.artefacts.fisher_file, shapes, backbone.device)
        names = {parameter: name for name, parameter in backbone.parameters.items()}
        for layers in _cut(shapes, _numbers_at_once(backbone.device)):
            pairs = [backbone.lora_weights[layer] for layer in layers]
            self._held.append(
                _Held(
                    [names[a] for a, _ in pairs],
                    [names[b] for _, b in pairs],
                    [a.detach() for a, _ in pairs],
                    [b.detach() for _, b in pairs],
                    # Taken out, so that there is never a second copy of more than a piece.
                    torch.stack([fisher.weights.pop(layer) for layer in layers]),
                )
            )
        self._factor = self._strength * backbone.scaling**2 / fisher.mean
        self._dtype = backbone.model.get_input_embeddings().weight.dtype
        self._trace = fisher.total

    @torch.no_grad()
    def adjust_gradients(self, step: int, gradients: Mapping[str, torch.Tensor]) -> None:
        values: list[torch.Tensor] = []
        for held in self._held:
            # A layer that no token of the step has reached has no gradient, and the optimizer leaves it where it is.
            reached = [k for k, name in enumerate(held.a_names) if name in gradients]
            if not reached:
                continue
            pull_GRI, pull_GOR, penalty_G = self._pull(held)
            for k in reached:
                gradients[held.a_names[k]].add_(pull_GRI[k])
                gradients[held.b_names[k]].add_(pull_GOR[k])
                values.append(penalty_G[k])
        self._penalty = float(torch.stack(values).sum()) if values else 0.0

    def _pull(self, held: _Held) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the spring adds to the gradients of A and B, and the penalty of each weight; all in float32."""
        a_GRI, b_GOR = torch.stack(held.a), torch.stack(held.b)
        low_GIR, low_GOR = a_GRI.to(self._dtype).transpose(1, 2), b_GOR.to(self._dtype)
        scaled_GRI = (self._factor * a_GRI).to(self._dtype)
        pull_GRI, pulls_GPR = torch.zeros_like(a_GRI), []
        count, outputs, inputs = held.fisher_GOI.shape
        rows = max(1, _numbers_at_once(a_GRI.device) // (count * inputs))
        for start in range(0, outputs, rows):
            piece = slice(start, start + rows)
            pull_GPI = torch.bmm(low_GOR[:, piece], scaled_GRI).mul_(held.fisher_GOI[:, piece])
            pulls_GPR.append(torch.bmm(pull_GPI, low_GIR).float())
            pull_GRI += torch.bmm(low_GOR[:, piece].transpose(1, 2), pull_GPI)
        pull_GOR = torch.cat(pulls_GPR, dim=1)
        return pull_GRI, pull_GOR, 0.5 * torch.sum(pull_GOR * b_GOR, dim=(1, 2))

    def state(self) -> dict[str, torch.Tensor]:
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in self.counters().items()}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        if float(state["ewc_fisher_trace"]) != self._trace:
            raise CheckpointMismatch(
                "The checkpoint belongs to a run with another Fisher information: choose another output folder."
            )
        self._penalty = float(state["ewc_penalty"])

    def counters(self) -> dict[str, float]:
        return {"ewc_penalty": self._penalty, "ewc_fisher_trace": self._trace}

    def notes(self) -> list[str]:
        if self._strength == 0.0:
            return ["strength is 0: no weight was held, this is plain fine-tuning."]
        return []


def _numbers_at_once(device: torch.device) -> int:
    """Twice what fisher takes, which works in float32 and on one weight."""
    return 2 * piece_numbers(device)


def _cut(shapes: Mapping[str, tuple[int, int]], most_numbers: int) -> Iterator[Sequence[str]]:
    """Layers of one shape, as many at a time as have so many numbers (one at least)."""
    by_shape: dict[tuple[int, int], list[str]] = {}
    for layer, shape in shapes.items():
        by_shape.setdefault(shape, []).append(layer)
    for (outputs, inputs), layers in by_shape.items():
        count = max(1, most_numbers // (outputs * inputs))
        for start in range(0, len(layers), count):
            yield layers[start : start + count]
