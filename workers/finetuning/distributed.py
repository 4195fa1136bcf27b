"""Several processes on one run: one a GPU, or (through gloo) several on a CPU.

Each process holds the whole model and draws the whole step's rows, then runs only the rows it is dealt. Every loss is
divided by the totals of the step beforehand, so the gradient of the step is the sum over processes: it is added up once
a step, after accumulation, and from there on every process does the same to the same numbers. Nothing else is exchanged
but the few numbers that forwards add up (`Ranks.total`) and the first process's wish to stop.

Plain torch.distributed: DDP, and accelerate on top of it, average gradients by forward and want the same number of
forwards in every process, which fits neither means over a step nor methods that take gradients of their own.

Start with `torchrun --nproc-per-node N -m workers.finetuning ...` (or `python -m torch.distributed.run`).
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed as dist

from workers.finetuning.errors import ProcessesDiffer, TooFewDevices
from workers.finetuning.rows import TokenRow, num_tokens, units

RENDEZVOUS = "UNFORGOTTEN_RENDEZVOUS"
"""Environment variable: where the processes find each other, as a URL of torch's; torchrun's own way without it."""
TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others: as long as it may take one of them to save or to load."""
BUCKET_NUMBERS = 2**22
"""Gradients are added up so many at a time (16 MB): neither a message a tensor nor a copy of all of them."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; alone by default. What they all do, they do in the same order."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"
    """Where numbers lie while they are exchanged."""

    @property
    def is_first(self) -> bool:
        """The process that reports, decides when to stop, and writes files."""
        return self.rank == 0

    def share(self, rows: Sequence[TokenRow]) -> list[TokenRow]:
        """The rows that this process runs: about as many tokens as the others, possibly none. Pairs stay together."""
        if self.size == 1:
            return list(rows)
        loads = [0] * self.size
        given = units(rows)
        owners = [0] * len(given)
        for place in sorted(range(len(given)), key=lambda k: -num_tokens(given[k])):
            owners[place] = loads.index(min(loads))
            loads[owners[place]] += num_tokens(given[place])
        return [row for unit, owner in zip(given, owners, strict=True) if owner == self.rank for row in unit]

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replaces each tensor by its sum over all processes."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([t.reshape(-1) for t in bucket])
            dist.all_reduce(flat)
            for tensor, part in zip(bucket, torch.split(flat, [t.numel() for t in bucket]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def total(self, value: float) -> float:
        """The sum of a number over all processes."""
        if self.size == 1:
            return value
        number = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(number)
        return float(number)

    def says_first(self, answer: bool) -> bool:
        """What the first process answers, whatever the others would."""
        return self.total(float(answer and self.is_first)) > 0.0

    def wait(self) -> None:
        """Until all processes are here."""
        self.total(0.0)

    def require_same(self, what: str, values: Mapping[str, torch.Tensor], *, key: str = "") -> None:
        """Checks that all processes have the same bits.

        Raises:
            ProcessesDiffer: They do not; every process raises it.
        """
        if self.size == 1:
            return
        digest = hashlib.sha256(key.encode())
        for name, value in values.items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        mine = torch.tensor(int.from_bytes(digest.digest()[:7]), device=self.device)
        all_of_them = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(all_of_them, mine)
        if len({int(one) for one in all_of_them}) > 1:
            raise ProcessesDiffer(f"The processes of this run do not have the same {what}.")

    @contextmanager
    def own_dropout(self, device: torch.device) -> Iterator[None]:
        """Within this context each process draws from a random state of its own; afterwards all have the one before.

        One process alone draws on from the state it has.
        """
        if self.size == 1:
            yield
            return
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(int(torch.randint(2**62, ())) + self.rank)
            yield


@contextmanager
def joined(environment: Mapping[str, str] = os.environ) -> Iterator[Ranks]:
    """Joins the processes that were started together, as torchrun's environment variables say; none: alone.

    Enter it before the model is loaded: it chooses the process's GPU.

    Raises:
        TooFewDevices: There are GPUs here, but fewer than processes.
    """
    size = int(environment.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks()
        return
    rank, device = int(environment["RANK"]), "cpu"
    if torch.cuda.is_available():
        local = int(environment["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise TooFewDevices(
                f"Process {local + 1} on this machine has no GPU of its own: there are {torch.cuda.device_count()}. "
                "Start as many processes as there are GPUs."
            )
        device = f"cuda:{local}"
        torch.cuda.set_device(device)
    where = environment.get(RENDEZVOUS, "env://")
    backend = "gloo" if device == "cpu" else "nccl"
    dist.init_process_group(backend, init_method=where, rank=rank, world_size=size, timeout=TIMEOUT)
    yield Ranks(rank, size, device)
    # Not after an error: the others may be waiting for this process, and leaving waits for them. Its end is theirs.
    dist.destroy_process_group()


def _buckets(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    bucket: list[torch.Tensor] = []
    room = BUCKET_NUMBERS
    for tensor in tensors:
        if bucket and tensor.numel() > room:
            yield bucket
            bucket, room = [], BUCKET_NUMBERS
        bucket.append(tensor)
        room -= tensor.numel()
    if bucket:
        yield bucket
