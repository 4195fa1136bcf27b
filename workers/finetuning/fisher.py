"""Which weights the safe answers depend on: the diagonal of theta_safe's Fisher information.

F_W = mean over rows of (d/dW sum over the answer's tokens of log p(token))^2, entry by entry, for the weight W of every
linear layer that adapters attach to. Rows are the safety memory's. The labels are the memory's tokens, which are
theta_safe's own greedy answers (the "empirical" Fisher information). Each row is squared on its own: the square of a
batch's mean gradient would be too small by about the size of the batch.

The gradient of one row is G = delta^T x over its tokens, where x is the layer's input and delta the gradient on its
output. Both are caught by hooks in a packed forward and backward of many rows at once, so no weight ever has a gradient
of its own. A layer's squares are added up piece by piece, a piece staying in the cache while all rows pass over it.

Legend: T tokens of a forward, row after row; O outputs and I inputs of a weight.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from workers.finetuning.errors import ArtefactMissing
from workers.finetuning.rows import TokenRow, micro_batches
from workers.modeling.adapters import target_modules
from workers.modeling.errors import UnsupportedModel
from workers.modeling.heads import OutputHead, cross_entropy, output_head
from workers.modeling.loading import autocast
from workers.modeling.packing import hidden_states, pack, packed_attention

CONVENTION = "mean over rows of (gradient of the answer's summed log-probability)^2; labels: the memory's tokens"
FORWARD_TOKENS = 2048
"""Most tokens of a forward (a longer row goes alone): bounds the layers' inputs that wait for the backward pass."""
GROUP_WEIGHTS = 2**30
"""Weights whose squares are added up in one pass over the rows (4 GB in float32); larger models take several."""
CPU_PIECE, GPU_PIECE = 2**20, 2**25
"""Entries of weights worked on at a time: what stays in a CPU's caches; on a GPU, so many that launches are few."""


class Fisher(NamedTuple):
    """Fisher information of weights, with the facts that tell what its numbers mean."""

    weights: dict[str, torch.Tensor]
    """[O, I] by name of the layer, in the model's own precision: it is an estimate, more digits would say nothing."""
    total: float
    """The trace: the sum over all weights, before they were rounded."""
    num_weights: int
    """How many weights that is; `weights` may hold only some of them."""
    num_rows: int
    num_tokens: int
    """Answer tokens of the rows."""

    @property
    def mean(self) -> float:
        """Over all weights."""
        return self.total / self.num_weights


def piece_numbers(device: torch.device) -> int:
    """How many entries of weights are worked on at a time."""
    return CPU_PIECE if device.type == "cpu" else GPU_PIECE


def compute_fisher(
    model: PreTrainedModel,
    rows: Sequence[TokenRow],
    on_progress: Callable[[int, int], None],
    *,
    forward_tokens: int = FORWARD_TOKENS,
    group_weights: int = GROUP_WEIGHTS,
) -> Fisher:
    """Fisher information of a frozen model (in evaluation mode) on rows; on the CPU, in the model's precision.

    Beside the model, its device holds float32 sums for `group_weights` weights at most.

    Args:
        model: theta_safe, with no adapter attached.
        rows: Rows of the safety memory.
        on_progress: Told (done, total) in rows, each counted once for every group of weights.
        forward_tokens: Most tokens of a forward.
        group_weights: Most weights of a pass over the rows.

    Raises:
        UnsupportedModel: A layer does not see every token exactly once, or the gradients are not finite.
    """
    assert rows, "there is nothing to take a mean over"
    assert not any(p.requires_grad for p in model.parameters()), "a trained weight would get a gradient of its own"
    head = output_head(model)
    groups = _groups(model, group_weights)
    cuts = micro_batches(rows, forward_tokens)
    weights, total, done = {}, 0.0, 0
    for names in groups:
        sums = _SquaredGradients({name: model.get_submodule(name) for name in names})
        with packed_attention(model, max(len(row.ids) for row in rows)), sums.watching(model):
            for cut in cuts:
                _backward(model, head, cut, sums)
                done += len(cut)
                on_progress(done, len(rows) * len(groups))
        for name in names:
            mean_OI = sums.by_layer.pop(name) / len(rows)
            total += float(mean_OI.sum(dtype=torch.float64))
            weights[name] = mean_OI.to("cpu", model.get_input_embeddings().weight.dtype)
    if not math.isfinite(total):
        raise UnsupportedModel(f"{type(model).__name__}'s gradients on the safety memory are not finite.")
    num_weights = sum(weight.numel() for weight in weights.values())
    return Fisher(weights, total, num_weights, len(rows), sum(len(row.positions) for row in rows))


def save_fisher(path: Path, fisher: Fisher) -> None:
    """Writes fisher.safetensors. The facts are one entry: several would be in another order each time."""
    facts = {**fisher._asdict(), "convention": CONVENTION}
    del facts["weights"]
    save_file(fisher.weights, path, {"fisher": json.dumps(facts, sort_keys=True)})


def load_fisher(path: Path, shapes: Mapping[str, tuple[int, int]], device: torch.device) -> Fisher:
    """Fisher information of the weights ([O, I] by name of their layer) that a run changes, read one after another.

    Raises:
        ArtefactMissing: There is none, a weight is not covered, or it is nothing everywhere.
    """
    again = "Run `unforgotten models prepare NAME` to make it again."
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        if not metadata or "fisher" not in metadata:
            raise ArtefactMissing("The base has no Fisher information: its model allowed none when it was prepared.")
        facts = json.loads(metadata["fisher"])
        if facts.pop("convention") != CONVENTION:
            raise ArtefactMissing(f"The base's Fisher information was made by another convention. {again}")
        known = set(file.keys())
        weights = {}
        for name, shape in shapes.items():
            if name not in known:
                raise ArtefactMissing(f"The base's Fisher information does not cover {name}. {again}")
            weight_OI: torch.Tensor = file.get_tensor(name)
            if tuple(weight_OI.shape) != shape:
                raise ArtefactMissing(
                    f"The base's Fisher information has the shape {list(weight_OI.shape)} for {name}, whose shape is "
                    f"{list(shape)}. {again}"
                )
            weights[name] = weight_OI.to(device)
    fisher = Fisher(weights=weights, **facts)
    if not 0.0 < fisher.total < math.inf:
        raise ArtefactMissing(f"The base's Fisher information is {fisher.total}: no weight could be held. {again}")
    return fisher


class _SquaredGradients:
    """Sums over rows of the squared gradients of layers' weights, added to while backward passes run."""

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        self._layers = layers
        self._spans: list[tuple[int, int]] = []
        self._seen: set[str] = set()
        self.by_layer: dict[str, torch.Tensor] = {}
        for name, layer in layers.items():
            assert isinstance(layer.weight, torch.Tensor)
            self.by_layer[name] = torch.zeros_like(layer.weight, dtype=torch.float32)

    def expect(self, spans: list[tuple[int, int]]) -> None:
        """The next forward has rows at these places (first token, and the one after the last)."""
        self._spans = spans
        self._seen.clear()

    @contextmanager
    def watching(self, model: PreTrainedModel) -> Iterator[None]:
        """Within this context gradients flow through the frozen model, and those of the layers are caught."""

        def differentiable(_module: nn.Module, _args: Any, embedded: torch.Tensor) -> None:
            embedded.requires_grad_()

        handles = [model.get_input_embeddings().register_forward_hook(differentiable)]
        handles += [layer.register_forward_hook(self._hook(name)) for name, layer in self._layers.items()]
        try:
            with torch.enable_grad():
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def keep(_layer: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            x_TI = args[0].detach().reshape(-1, args[0].shape[-1])
            if name in self._seen or x_TI.shape[0] != self._spans[-1][1]:
                raise UnsupportedModel(
                    f"{name} does not see every token exactly once (as in a mixture of experts), so that its gradient "
                    "cannot be told apart by rows."
                )
            self._seen.add(name)
            if output.requires_grad:
                # The input lives as long as the graph does, which the backward pass frees.
                output.register_hook(lambda delta: self._add(name, x_TI, delta))  # type: ignore[no-untyped-call]

        return keep

    def _add(self, name: str, x_TI: torch.Tensor, delta: torch.Tensor) -> None:
        sums_OI = self.by_layer[name]
        delta_TO = delta.reshape(x_TI.shape[0], -1)
        step = max(1, piece_numbers(sums_OI.device) // sums_OI.shape[1])
        for start in range(0, sums_OI.shape[0], step):
            piece = slice(start, start + step)
            for first, end in self._spans:
                gradient = (delta_TO[first:end, piece].T @ x_TI[first:end]).float()
                sums_OI[piece].addcmul_(gradient, gradient)


def _backward(model: PreTrainedModel, head: OutputHead, rows: Sequence[TokenRow], sums: _SquaredGradients) -> None:
    """One packed forward and backward; rows do not see each other, so one backward has every row's own gradients."""
    device = model.get_input_embeddings().weight.device
    batch = pack([row.ids for row in rows], device)
    sums.expect(sorted((s, s + len(row.ids)) for row, s in zip(rows, batch.row_starts, strict=True)))
    with autocast(model):
        hidden_TH = hidden_states(model, batch)
    places = [start + p for row, start in zip(rows, batch.row_starts, strict=True) for p in row.positions]
    targets = [token for row in rows for token in row.targets]
    states_NH = hidden_TH.index_select(0, torch.tensor(places, device=device))
    cross_entropy(head, states_NH, torch.tensor(targets, device=device)).loss_sum.backward()  # type: ignore[no-untyped-call]


def _groups(model: PreTrainedModel, most_weights: int) -> list[list[str]]:
    """Names of the layers in passes of a bounded number of weights (a larger layer has one to itself)."""
    groups: list[list[str]] = []
    room = 0
    for name in target_modules(model):
        weight = model.get_submodule(name).weight
        assert isinstance(weight, torch.Tensor)
        if weight.numel() > room:
            groups.append([])
            room = most_weights
        groups[-1].append(name)
        room -= weight.numel()
    return groups
