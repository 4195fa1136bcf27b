"""Training rows as token ids, the batches drawn from them, and how a step is cut into forwards.

Everything random is a function of (seed, epoch or step), so a resumed run needs no sampler state.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from app.contracts.chat import ChatRow
from workers.finetuning.errors import DatasetRefused
from workers.modeling.chat import ChatCodec, EncodedRow
from workers.modeling.errors import ModelingError

_EPOCH, _MEMORY, _DROPOUT, _DRAWS = 1, 2, 3, 3


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A row ready to train on. Position p is predicted *from* when token p + 1 is trained."""

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    """Positions whose hidden state predicts a trained token."""
    targets: tuple[int, ...]
    """The tokens predicted there; as long as `positions`."""
    memory_index: int | None = None
    """Which row of the safety memory this is; None for the user's rows."""
    draw: int = 0
    """Which of a step's draws from the memory it is part of, where a method makes several."""
    pair: int | None = None
    """Which of the user's preference pairs it belongs to: two rows that are never apart. None: it stands alone."""
    is_rejected: bool = False
    """Of a pair: whether it has the answer that is not wanted."""


class Dataset(NamedTuple):
    """The user's rows."""

    rows: tuple[TokenRow, ...]
    num_cut: int
    """Rows (or pairs) whose end was cut off at the token limit."""
    num_alike: int = 0
    """Pairs whose two answers are the same up to there."""


class StepTotals(NamedTuple):
    """Trained tokens of a whole optimizer step: what its means are taken over."""

    user_tokens: int
    """Predicting positions of the user's rows."""
    replay_tokens: int
    """... and of the memory's."""
    user_row_tokens: int
    """All tokens of the user's rows."""
    user_pairs: int = 0
    """Preference pairs among the user's rows."""


def token_row(encoded: EncodedRow) -> TokenRow:
    """An encoded row as one of the user's."""
    return TokenRow(encoded.ids, encoded.positions, encoded.targets)


def encode_dataset(codec: ChatCodec, rows: Sequence[ChatRow], *, max_tokens: int) -> Dataset:
    """Encodes rows for training.

    Raises:
        DatasetRefused: A row cannot be trained on; the message counts rows from 1.
    """
    if not rows:
        raise DatasetRefused("The training file has no rows.")
    encoded = []
    for number, row in enumerate(rows, start=1):
        try:
            encoded.append(codec.encode_row(row, max_tokens=max_tokens))
        except ModelingError as error:
            raise DatasetRefused(f"Row {number}: {error}") from error
    return Dataset(tuple(token_row(e) for e in encoded), sum(e.is_cut for e in encoded))


def units(rows: Sequence[TokenRow]) -> list[list[TokenRow]]:
    """What is drawn, dealt to processes and put into forwards as one: the two rows of a pair, else a row by itself."""
    found: list[list[TokenRow]] = []
    pairs: dict[int, list[TokenRow]] = {}
    for row in rows:
        if row.pair is not None and row.pair in pairs:
            pairs[row.pair].append(row)
            continue
        found.append([row])
        if row.pair is not None:
            pairs[row.pair] = found[-1]
    return found


def num_tokens(unit: Sequence[TokenRow]) -> int:
    """All tokens of a unit's rows."""
    return sum(len(row.ids) for row in unit)


def steps_per_epoch(num_units: int, batch_size: int) -> int:
    """Optimizer steps of an epoch; the last one may have fewer rows (or pairs)."""
    return -(-num_units // batch_size)


def batch_indices(num_units: int, batch_size: int, step: int, seed: int) -> list[int]:
    """The user's units of optimizer step `step` (from 0): each once an epoch, in an order drawn anew each epoch."""
    per_epoch = steps_per_epoch(num_units, batch_size)
    epoch, place = divmod(step, per_epoch)
    order = _permutation(num_units, seed, _EPOCH, epoch)
    return order[place * batch_size : (place + 1) * batch_size]


def memory_indices(num_rows: int, rows_per_step: int, step: int, seed: int, *, draw: int = 0) -> list[int]:
    """Memory rows of a step: drawn without replacement until all were seen, then in a new order.

    Draws of different numbers are independent of each other.
    """
    first = step * rows_per_step
    picked = []
    stream = _MEMORY if draw == 0 else _DRAWS + draw
    for number in range(first, first + rows_per_step):
        cycle, place = divmod(number, num_rows)
        picked.append(_permutation(num_rows, seed, stream, cycle)[place])
    return picked


def dropout_seed(step: int, seed: int) -> int:
    """What torch's random state is set to before step `step`."""
    return _stream_seed(seed, _DROPOUT, step)


def micro_batches(rows: Sequence[TokenRow], max_tokens: int) -> list[list[TokenRow]]:
    """Cuts a step's rows into forwards of at most `max_tokens` tokens (a single longer row or pair goes alone).

    Longest first into the first place with room: few forwards, and a fixed result for fixed rows.
    """
    bins: list[list[TokenRow]] = []
    room: list[int] = []
    for unit in sorted(units(rows), key=lambda u: -num_tokens(u)):
        size = num_tokens(unit)
        place = next((i for i, free in enumerate(room) if free >= size), None)
        if place is None:
            bins.append(list(unit))
            room.append(max(0, max_tokens - size))
        else:
            bins[place].extend(unit)
            room[place] -= size
    return bins


def totals(rows: Sequence[TokenRow]) -> StepTotals:
    """Trained tokens of a step."""
    users = [r for r in rows if r.memory_index is None]
    user = sum(len(r.positions) for r in users)
    replayed = sum(len(r.positions) for r in rows) - user
    return StepTotals(user, replayed, num_tokens(users), user_pairs=sum(r.is_rejected for r in users))


def _permutation(size: int, seed: int, stream: int, cycle: int) -> list[int]:
    generator = torch.Generator().manual_seed(_stream_seed(seed, stream, cycle))
    order: list[int] = torch.randperm(size, generator=generator).tolist()
    return order


def _stream_seed(seed: int, stream: int, cycle: int) -> int:
    return (seed * 1_000_003 + cycle) * 7 + stream
