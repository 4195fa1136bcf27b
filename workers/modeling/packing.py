"""Rows of different lengths in one forward, with neither padding tokens nor an attention mask.

Legend: T tokens of all rows together, R rows, B rows of a group, L longest row of a group, H heads, D head size.

Linear layers and norms do not care which row a token belongs to, so the rows are concatenated to one sequence of
T tokens with positions that restart. Only attention has to keep rows apart. There rows of similar length are
gathered to B x L; the padding comes last in each row and the attention is causal, so no real token ever sees it and
no mask is needed. An ordinary causal mask over T x T would both cost T^2 and let rows see each other.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from workers.modeling.errors import UnsupportedModel
from workers.modeling.text_parts import ATTENTION_LIMITS, configured_row_limit

_PACKED = "unforgotten_packed"
MAX_GROUP_WASTE = 1.25
"""Rows share a group as long as padding to its longest row costs no more than this factor in attention."""
EXPLICIT_TOKENS = 256
"""Up to this row length, attention on a CPU is written out: torch's fused kernel is several times slower there."""

"""Settings of a model that bound its rows; beyond its context a model only guesses, or has no position at all."""


class AttentionGroup(NamedTuple):
    """Neighbouring rows that attend in one call."""

    start: int
    """First token of the group in the packed sequence."""
    num_tokens: int
    gather_BL: torch.Tensor | None
    """Token of the group at each place of the padded B x L grid; None where all rows are equally long."""
    scatter: torch.Tensor | None
    """Place in the flattened grid of each token of the group."""
    num_rows: int
    longest: int


class Packing(NamedTuple):
    """Layout of the rows of a packed sequence."""

    lengths: tuple[int, ...]
    groups: tuple[AttentionGroup, ...]


class PackedBatch(NamedTuple):
    """Rows laid end to end. All tensors are on one device."""

    input_ids_1T: torch.Tensor
    position_ids_1T: torch.Tensor
    packing: Packing
    row_order: tuple[int, ...]
    """`row_order[k]` is the index (in the order given) of the k-th row of the sequence; rows lie sorted by length."""
    row_starts: tuple[int, ...]
    """First token of each row, in the order given."""


def pack(rows: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> PackedBatch:
    """Lays token rows end to end, longest first."""
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i))
    lengths = tuple(len(rows[i]) for i in order)
    starts = [0] * len(rows)
    position = 0
    for index in order:
        starts[index] = position
        position += len(rows[index])
    ids = torch.tensor([token for i in order for token in rows[i]], dtype=torch.long)
    positions = torch.cat([torch.arange(n) for n in lengths])
    return PackedBatch(
        ids.unsqueeze(0).to(device),
        positions.unsqueeze(0).to(device),
        Packing(lengths, tuple(_groups(lengths, torch.device(device)))),
        tuple(order),
        tuple(starts),
    )


def hidden_states(model: PreTrainedModel, batch: PackedBatch) -> torch.Tensor:
    """Final hidden states (after the last norm), shape [T, hidden]. The model must be in `packed_attention`."""
    output = model.base_model(
        input_ids=batch.input_ids_1T, position_ids=batch.position_ids_1T, packing=batch.packing, use_cache=False
    )
    states: torch.Tensor = output.last_hidden_state
    return states.squeeze(0)


def row_limit(model: PreTrainedModel, asked: int) -> int:
    """Tokens that a row may have: as many as asked for, or as few as the model can attend to."""
    return configured_row_limit(model.config, asked)


@contextmanager
def packed_attention(model: PreTrainedModel, longest_row: int) -> Iterator[None]:
    """Within this context the model's forward keeps packed rows apart.

    Raises:
        UnsupportedModel: Rows are longer than the model's positions, or than attention that packing reproduces exactly.
    """
    for setting, what in ATTENTION_LIMITS.items():
        limit = getattr(model.config, setting, None)
        if limit is not None and longest_row > limit:
            raise UnsupportedModel(
                f"Rows of {longest_row} tokens exceed the model's {what} of {limit}; set max_row_tokens to it."
            )
    before = model.config._attn_implementation  # noqa: SLF001  (the only name transformers gives it)
    if before == _PACKED:
        # Setting it again would only walk through all modules, twice.
        yield
        return
    model.set_attn_implementation(_PACKED)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _groups(lengths: Sequence[int], device: torch.device) -> Iterator[AttentionGroup]:
    """Cuts rows (sorted by length, longest first) into groups of similar length."""
    first, start = 0, 0
    while first < len(lengths):
        longest, last, tokens = lengths[first], first, 0
        while last < len(lengths) and longest <= max(MAX_GROUP_WASTE * lengths[last], lengths[last] + 8):
            tokens += lengths[last]
            last += 1
        rows = lengths[first:last]
        yield _group(rows, start, longest, tokens, device)
        start += tokens
        first = last


def _group(rows: Sequence[int], start: int, longest: int, tokens: int, device: torch.device) -> AttentionGroup:
    if all(n == longest for n in rows):
        return AttentionGroup(start, tokens, None, None, len(rows), longest)
    lengths = torch.tensor(rows)
    starts = torch.cumsum(lengths, 0) - lengths
    place = torch.arange(longest)
    # Padding places point at the row's last token: any index would do, nobody sees them.
    gather = starts[:, None] + torch.minimum(place[None, :], lengths[:, None] - 1)
    scatter = torch.nonzero((place[None, :] < lengths[:, None]).flatten()).squeeze(1)
    return AttentionGroup(start, tokens, gather.to(device), scatter.to(device), len(rows), longest)


def _packed_attention(
    _module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packing: Packing,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over packed rows; query [1, H, T, D], key and value [1, H_kv, T, D] -> [1, T, H, D].

    The keyword arguments beyond these are the ones transformers passes to every attention (position ids, window:
    checked once in `packed_attention`).
    """
    if attention_mask is not None:
        raise UnsupportedModel("Packed attention takes no mask.")
    if s_aux is not None:
        raise UnsupportedModel("The model's attention has learned sinks (gpt-oss), which training does not support.")
    repeats = query.shape[1] // key.shape[1]
    query_THD, key_THD, value_THD = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    outputs = []
    for group in packing.groups:
        parts = [_grid(x, group) for x in (query_THD, key_THD, value_THD)]
        if repeats > 1:
            parts[1:] = [x.repeat_interleave(repeats, dim=1) for x in parts[1:]]
        out = _attend(parts[0], parts[1], parts[2], scaling, dropout, softcap)
        flat = out.transpose(1, 2).reshape(group.num_rows * group.longest, *query_THD.shape[1:])
        outputs.append(flat if group.scatter is None else flat.index_select(0, group.scatter))
    return torch.cat(outputs).unsqueeze(0), None


def _grid(x_THD: torch.Tensor, group: AttentionGroup) -> torch.Tensor:
    """The group's tokens as [B, H, L, D]."""
    part = x_THD[group.start : group.start + group.num_tokens]
    if group.gather_BL is not None:
        part = part.index_select(0, group.gather_BL.flatten())
    return part.view(group.num_rows, group.longest, *x_THD.shape[1:]).transpose(1, 2)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    dropout: float,
    cap: float | None,
) -> torch.Tensor:
    is_short_on_cpu = query.device.type == "cpu" and query.shape[-2] <= EXPLICIT_TOKENS
    if cap is None and not is_short_on_cpu:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True, scale=scaling)
    # Soft-capped scores (Gemma 2) are no case of scaled_dot_product_attention.
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    scores = query @ key.transpose(-1, -2) * scale
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    causal = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    weights = scores.masked_fill(~causal, float("-inf")).softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    return F.dropout(weights, dropout) @ value


def _no_mask(*_: Any, **__: Any) -> None:
    """Packed rows need no mask; without this, transformers would build one over T x T."""


AttentionInterface.register(_PACKED, _packed_attention)
AttentionMaskInterface.register(_PACKED, _no_mask)
