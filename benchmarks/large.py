"""A large model's shape on a GPU: plain fine-tuning, DER, and DER as it is usually written, step beside step.

The weights are random (what is measured does not depend on them), the rows too: every user's row has the same number of
tokens, of which the last quarter is trained, and so has every memory row. A round makes one step of each loop, so that
they are compared under the same clocks. The share of the peak counts the multiplications that no implementation can
leave out: four operations a weight and token for the frozen layers, six for LoRA's, four for the head at trained tokens
(the naive loop is credited with no more); the peak is a square product in bf16, measured between the rounds.

    python -m benchmarks.large --shape llama-2-7b
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from benchmarks.conditions import conditions
from benchmarks.methods.__main__ import NAIVE, SAME_ROWS, now
from benchmarks.methods.bench import DER, NONE, Bench, Step
from workers.finetuning.artefacts import GRAM_FILE, RECORD_FILE, Artefacts
from workers.finetuning.memory import SafetyMemory, compute_teacher_states
from workers.finetuning.rows import TokenRow
from workers.modeling.heads import gram_matrix, output_head
from workers.modeling.loading import LoadedModel, default_device, use_threads

SHAPES: dict[str, dict[str, int]] = {
    "llama-2-7b": {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
}
"""`tiny` is for trying the command."""
NUM_MEMORY_ROWS = 64
TRAINED_SHARE = 0.25


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = _arguments(arguments)
    use_threads(args.threads)
    here = conditions("benchmarks.large", arguments, threads=torch.get_num_threads())
    with tempfile.TemporaryDirectory() as folder:
        bench = random_bench(args, Path(folder))
        timed, peaks = _rounds(bench, args)
    peak = statistics.median(peaks)
    rows = {name: _row(bench, steps, peak) for name, steps in timed.items()}
    print(f"command: {here.command}")
    print(f"{args.shape}, random weights, {str(bench.model.dtype).removeprefix('torch.')}, LoRA of rank ", end="")
    print(f"{bench.plan.lora.rank} on all linear layers; {here.device}; measured peak {peak / 1e12:.0f} TFLOP/s")
    print(f"{args.batch_size} rows of {args.row_tokens} tokens a step, DER with ", end="")
    print(f"{bench.memory_rows_per_step} memory rows of {args.memory_tokens}; {args.rounds} rounds; ", end="")
    print(", ".join(f"{name} {number}" for name, number in here.versions.items()) + "\n")
    _print_table(rows)
    if args.out:
        args.out.write_text(json.dumps({"conditions": here.model_dump(), "peak": peak, "rows": rows}, indent=1) + "\n")


class LargeBench(Bench):
    """A bench that knows how many trained tokens its steps have."""

    def __init__(self, *args: Any, memory_rows_per_step: int, **named: Any) -> None:
        super().__init__(*args, **named)
        self.memory_rows_per_step = memory_rows_per_step

    def needed_flops(self, step: Step) -> float:
        """Of a step's gradient tokens and its forwards alone."""
        lora = sum(p.numel() for p in self.backbone.parameters.values())
        layers: int = sum(p.numel() for n, p in self.model.named_parameters() if n.endswith("base_layer.weight"))
        head = int(self.model.get_output_embeddings().weight.numel())
        gradient: float = step.gradient_tokens * (4.0 * layers + 6.0 * lora + TRAINED_SHARE * 4.0 * head)
        forward: float = step.forward_tokens * (2.0 * layers + TRAINED_SHARE * 2.0 * head)
        return gradient + forward


def random_bench(args: argparse.Namespace, folder: Path) -> LargeBench:
    """The model with random weights, rows of random tokens, and a memory with the model's own states."""
    model = _random_model(SHAPES[args.shape], max(args.row_tokens, args.memory_tokens))
    generator = torch.Generator().manual_seed(0)
    (folder / RECORD_FILE).write_text(json.dumps({"base_id": args.shape}))
    save_file({"gram": gram_matrix(output_head(model))}, folder / GRAM_FILE)

    def row(length: int, memory_index: int | None = None) -> TokenRow:
        ids = torch.randint(model.config.vocab_size, (length,), generator=generator).tolist()
        first = length - round(TRAINED_SHARE * length)
        return TokenRow(tuple(ids), tuple(range(first - 1, length - 1)), tuple(ids[first:]), memory_index)

    def memory(of: PreTrainedModel) -> SafetyMemory:
        rows = tuple(row(args.memory_tokens, index) for index in range(NUM_MEMORY_ROWS))
        states = compute_teacher_states(of, rows, lambda *_: None)
        counts = [len(r.positions) for r in rows]
        offsets = tuple(sum(counts[:k]) for k in range(len(counts) + 1))
        return SafetyMemory(rows, ("harmful",) * len(rows), states, offsets)

    rows = [row(args.row_tokens) for _ in range((args.warmup + args.rounds) * args.batch_size)]
    return LargeBench(
        # Rows are tokens already: nothing here asks for a codec.
        LoadedModel(model, None),  # type: ignore[arg-type]
        rows,
        memory,
        Artefacts(folder),
        batch_size=args.batch_size,
        micro_batch_tokens=args.micro_batch_tokens,
        memory_rows_per_step=args.memory_rows,
    )


def _random_model(shape: dict[str, int], positions: int) -> PreTrainedModel:
    device = default_device()
    config = LlamaConfig(**shape, max_position_embeddings=max(2048, positions), use_cache=False)
    torch.manual_seed(0)
    # Made where it stays: seven billion numbers drawn on a CPU take minutes.
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.requires_grad_(requires_grad=False)
    model.eval()
    return model


def _rounds(
    bench: LargeBench, args: argparse.Namespace
) -> tuple[dict[str, list[tuple[float, Step, int]]], list[float]]:
    """Seconds, tokens and peak bytes of every loop's steps, and the peaks measured between."""
    der = {"name": DER, "memory_rows_per_step": args.memory_rows}
    loops = {NONE: bench.loop_of({"method": {"name": NONE}}), DER: bench.loop_of({"method": der})}
    calls: dict[str, Callable[[int], Step]] = {name: partial(bench.step, loop) for name, loop in loops.items()}
    calls[SAME_ROWS] = partial(bench.plain_step, loops[NONE], loops[DER])
    calls[NAIVE] = partial(bench.naive_step, loops[DER])
    found: dict[str, list[tuple[float, Step, int]]] = {name: [] for name in calls}
    peaks: list[float] = []
    with bench.training(list(loops.values())):
        for number in range(args.warmup + args.rounds):
            for name, call in calls.items():
                if torch.cuda.is_available():
                    torch.cuda.reset_peak_memory_stats()
                started = now()
                step = call(number)
                seconds = now() - started
                memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
                if number >= args.warmup:
                    found[name].append((seconds, step, memory))
            peaks.append(_peak_flops(bench.model.device, 8192 if torch.cuda.is_available() else 1024))
            print(f"round {number + 1} of {args.warmup + args.rounds}", file=sys.stderr, flush=True)
    return found, peaks


def _row(bench: LargeBench, steps: list[tuple[float, Step, int]], peak: float) -> dict[str, float]:
    seconds = statistics.median(one[0] for one in steps)
    step = steps[0][1]
    return {
        "seconds": seconds,
        "tokens": step.gradient_tokens,
        "forward_tokens": step.forward_tokens,
        "tokens_per_second": step.gradient_tokens / seconds,
        "share_of_peak": bench.needed_flops(step) / seconds / peak,
        "peak_bytes": max(one[2] for one in steps),
    }


def _print_table(rows: dict[str, dict[str, float]]) -> None:
    print("| loop | s/step | x none | tokens a step | tokens/s | share of peak | peak memory, GB |")
    print("|---" * 7 + "|")
    for name, row in rows.items():
        print(
            f"| {name} | {row['seconds']:.3f} | {row['seconds'] / rows[NONE]['seconds']:.2f} | {row['tokens']:.0f} | "
            f"{row['tokens_per_second']:.0f} | {100 * row['share_of_peak']:.0f} % | {row['peak_bytes'] / 1e9:.1f} |"
        )


def _peak_flops(device: torch.device, size: int) -> float:
    one, two = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(6):
        started = now()
        one @ two
        times.append(now() - started)
    return 2.0 * float(size) ** 3 / min(times)


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "benchmarks.large", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--shape", choices=SHAPES, default="llama-2-7b")
    add("--batch-size", type=int, default=8, help="rows of the user's a step (default 8)")
    add("--row-tokens", type=int, default=512, help="of each (default 512)")
    add("--memory-rows", type=int, default=8, help="of DER, a step (default 8)")
    add("--memory-tokens", type=int, default=128, help="of each (default 128)")
    add("--micro-batch-tokens", type=int, default=8192, help="most tokens in one forward (default 8192)")
    add("--rounds", type=int, default=10)
    add("--warmup", type=int, default=3)
    add("--threads", type=int, default=0, help="of torch (default: all cores)")
    add("--out", type=Path, help="JSON with the table's rows")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
