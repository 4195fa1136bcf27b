"""Step time of DER over plain fine-tuning with the same number of tokens in the forward.

Both loops take the same rows a step: DER 8 of the user's and 8 of the memory as replay, plain fine-tuning the same 16
rows, all as its own. Steps of the two alternate (machines drift), and the ratio is taken step by step. Beside it stands
the naive DER that this design avoids: teacher forward and full logits each step.

    python -m benchmarks.der_step_time --base .unforgotten/bases/HASH --data demo.jsonl
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch.nn import functional as F

from app.contracts.chat_file import read_rows
from app.contracts.methods import Der, MethodConfig, NoMethod
from app.contracts.plan import TrainingPlan
from workers.data import DEMO_TRAINING_FILE
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.backbone import Backbone
from workers.finetuning.loop import RunControl, TrainingLoop
from workers.finetuning.memory import load_memory
from workers.finetuning.method import MethodContext
from workers.finetuning.methods import build_method
from workers.finetuning.rows import TokenRow, encode_dataset
from workers.modeling import adapters
from workers.modeling.heads import OutputHead, output_head
from workers.modeling.loading import autocast, load, use_threads
from workers.modeling.packing import hidden_states, pack, packed_attention

Step = Callable[[int], int]
"""Runs step number n; returns the tokens it processed."""


def main() -> None:
    """Measures and prints."""
    args = _arguments()
    use_threads(0)
    bench = _Bench(args.base, args.data, args.rows)
    steps: dict[str, Step] = {
        "plain": bench.step_of(NoMethod()),
        "der": bench.step_of(Der(memory_rows_per_step=8)),
        "naive der": bench.naive_step,
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    tokens = 0
    with packed_attention(bench.model, bench.longest):
        for number in range(args.warmup + args.steps):
            for name, step in steps.items():
                started = time.perf_counter()
                processed = step(number)
                if number >= args.warmup:
                    seconds[name].append(time.perf_counter() - started)
                    tokens += processed if name == "plain" else 0
    print(f"{args.steps} steps, {tokens / args.steps:.0f} tokens a step, {torch.get_num_threads()} threads\n")
    print("| loop | median s/step | median ratio to plain (quartiles) |\n|---|---|---|")
    for name, times in seconds.items():
        ratios = [a / b for a, b in zip(times, seconds["plain"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"| {name} | {statistics.median(times):.3f} | {middle:.3f} ({low:.3f} to {high:.3f}) |")


class _Bench:
    """One model with one adapter, stepped by several loops in turn."""

    def __init__(self, base: Path, data: Path, num_rows: int) -> None:
        artefacts = Artefacts(base)
        self.artefacts = artefacts
        loaded = load(artefacts.model_dir)
        self.model = loaded.model
        rows = [row for _, row in islice(read_rows(data), num_rows)]
        self.rows = encode_dataset(loaded.codec, rows, max_tokens=2048).rows
        self.memory = load_memory(artefacts.memory_file, artefacts.teacher_file, loaded.model)
        self.longest = max(len(r.ids) for r in (*self.rows, *self.memory.rows))
        self.plan = TrainingPlan(batch_size=8)
        self.peft_model = adapters.attach(loaded.model, self.plan.lora, seed=0)
        self.head: OutputHead = output_head(loaded.model)
        self.backbone = Backbone(
            loaded,
            self.peft_model,
            self.head,
            adapters.trainable_parameters(self.peft_model),
            tokens=self.plan.micro_batch_tokens,
        )
        self._der = self._loop(Der(memory_rows_per_step=8))

    def step_of(self, method: MethodConfig) -> Step:
        """A loop's own step, on DER's rows: as they are, or (for plain) all of them as the user's."""
        if isinstance(method, Der):
            return lambda number: self._der.step(number, self._der.rows_of(number)).processed_tokens
        loop = self._loop(method)

        def step(number: int) -> int:
            rows = [replace(row, memory_index=None) for row in self._der.rows_of(number)]
            return loop.step(number, rows).processed_tokens

        return step

    def naive_step(self, number: int) -> int:
        """Teacher forward with the adapter off, full logits of student and teacher, mean squared error."""
        loop = self._der
        rows = loop.rows_of(number)
        loop.optimizer.zero_grad()
        user = [r for r in rows if r.memory_index is None]
        replay = [r for r in rows if r.memory_index is not None]
        with autocast(self.model):
            loss = self._logits_loss(user) + F.mse_loss(self._logits(replay), self._teacher(replay))
        loss.backward()  # type: ignore[no-untyped-call]
        loop.optimizer.step()
        return sum(len(r.ids) for r in rows)

    def _teacher(self, rows: list[TokenRow]) -> torch.Tensor:
        with torch.no_grad(), self.peft_model.disable_adapter():
            return self._logits(rows)

    def _logits_loss(self, rows: list[TokenRow]) -> torch.Tensor:
        return F.cross_entropy(self._logits(rows), torch.tensor([t for r in rows for t in r.targets]))

    def _logits(self, rows: list[TokenRow]) -> torch.Tensor:
        """Logits at every position, then those that predict an answer's token."""
        batch = pack([r.ids for r in rows])
        logits = self.head.logits(hidden_states(self.model, batch))
        places = [start + p for row, start in zip(rows, batch.row_starts, strict=True) for p in row.positions]
        return logits[torch.tensor(places)]

    def _loop(self, config: MethodConfig) -> TrainingLoop:
        method = build_method(config)
        loop = TrainingLoop(
            backbone=self.backbone,
            method=method,
            plan=self.plan.model_copy(update={"method": config}),
            rows=self.rows,
            validation_rows=(),
            checkpoint_dir=Path(tempfile.mkdtemp()),
            run_key="benchmark",
            control=RunControl(),
        )
        method.prepare(
            MethodContext(self.backbone, self.rows, self.plan, self.artefacts, lambda: self.memory, loop.num_steps)
        )
        return loop


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="folder of a prepared base")
    parser.add_argument("--data", type=Path, default=DEMO_TRAINING_FILE, help="chat JSONL (default: the demo upload)")
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--warmup", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
