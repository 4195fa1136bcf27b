"""What every method costs relative to plain fine-tuning, on one prepared base.

A round runs a step of each method on the same rows of the user's (machines drift), and a method's time is divided by
the plain step's of its round. Beside it stand the least that the method's definition allows, counted in tokens, and the
naive DER that this design avoids: teacher's forward and full logits in every step. Peak memory is that of a process
which trains with the method alone, beside one that trains without any.

    python -m benchmarks.methods --base .unforgotten/bases/HASH
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from app.contracts.methods import METHOD_CONFIGS
from app.contracts.modifiers import MERGE_CONFIGS
from benchmarks.conditions import Conditions, conditions, prepared_base
from benchmarks.methods.alone import Alone, measure_alone
from benchmarks.methods.bench import DER, NONE, Bench, Setting, Step
from benchmarks.methods.costs import TARGETS, Measured, Minimum, compared, minima
from workers.data import DEMO_TRAINING_FILE
from workers.finetuning.loop import TrainingLoop
from workers.modeling.loading import use_threads

EMA = f"{NONE} + ema"
SAME_ROWS, NAIVE = "none on der's rows", "naive der"
RECORDING = "forward before training"
RECORDED = {"lwf", "constrained_sft"}
"""Methods that send the upload's rows through the aligned base once, before the first epoch."""
STEPS: dict[str, dict[str, Any]] = {
    NONE: {"method": {"name": NONE}},
    **{name: {"method": {"name": name}} for name in METHOD_CONFIGS},
    EMA: {"method": {"name": NONE}, "ema": {}},
}
"""What is stepped; the plain loop is the first of a round."""
MERGES: dict[str, dict[str, Any]] = {
    f"{NONE} + {name}": {"method": {"name": NONE}, "merge": {"name": name}} for name in MERGE_CONFIGS
}
"""Their steps are plain ones."""


class Timed(NamedTuple):
    """One step and the seconds it took."""

    seconds: float
    step: Step

    def share_of(self, num_steps: int) -> "Timed":
        """What a step has of it, where it was done for several at once."""
        step = self.step._replace(forward_tokens=self.step.forward_tokens // num_steps)
        return Timed(self.seconds / num_steps, step)


def main() -> None:
    """Measures and prints."""
    args = _arguments()
    use_threads(args.threads)
    here = conditions("benchmarks.methods", sys.argv[1:], threads=torch.get_num_threads())
    base = prepared_base(args.base).directory
    setting = Setting(base, args.data, args.warmup + args.rounds, args.batch_size)
    steps = {name: parts for name, parts in STEPS.items() if name in {NONE, DER, *args.methods}}
    # First, while this process is small and keeps no core busy.
    alone = {name: measure_alone(parts, setting, here.threads) for name, parts in (steps | MERGES).items()}
    bench = Bench.of(setting)
    loops = {name: bench.loop_of(parts) for name, parts in steps.items()}
    timed = _rounds(bench, loops, args.warmup, args.rounds)
    plain = timed[NONE]
    measured = {name: summary(times, plain) for name, times in timed.items()}
    for name in RECORDED & measured.keys():
        measured[name] = measured[name]._replace(before=measured[RECORDING].ratio)
    user_tokens = measured[NONE].gradient_tokens
    least = minima(bench, user_tokens, measured[RECORDING].ratio, range(args.warmup, setting.num_steps))
    _print_head(here, bench, user_tokens, args.rounds)
    _print_steps(measured, least)
    _print_alone(alone)


def _rounds(bench: Bench, loops: dict[str, TrainingLoop], warmup: int, rounds: int) -> dict[str, list[Timed]]:
    """Times of every loop's steps, round after round."""
    calls: dict[str, Callable[[int], Step]] = {name: partial(bench.step, loop) for name, loop in loops.items()}
    calls[SAME_ROWS] = partial(bench.plain_step, loops[NONE], loops[DER])
    calls[NAIVE] = partial(bench.naive_step, loops[DER])
    calls[RECORDING] = partial(bench.teacher_passes, loops[NONE])
    names = list(calls)
    found: dict[str, list[Timed]] = {name: [] for name in names}
    with bench.training(list(loops.values())):
        for number in range(warmup + rounds):
            # Each round begins with another loop: what comes after a large step finds other caches.
            for name in names[number % len(names) :] + names[: number % len(names)]:
                started = now()
                step = calls[name](number)
                if number >= warmup:
                    timed = Timed(now() - started, step)
                    num_steps = bench.steps_recorded(loops[NONE]) if name == RECORDING else 1
                    found[name].append(timed.share_of(num_steps))
    return found


def summary(times: Sequence[Timed], plain: Sequence[Timed]) -> Measured:
    """Medians over the rounds. Kinds of steps (turns on the memory) have medians of their own, by their share."""
    seconds, quartiles = 0.0, [0.0, 0.0, 0.0]
    for is_memory_turn in (False, True):
        places = [k for k, one in enumerate(times) if one.step.is_memory_turn is is_memory_turn]
        if not places:
            continue
        share = len(places) / len(times)
        ratios = [times[k].seconds / plain[k].seconds for k in places]
        seconds += share * statistics.median(times[k].seconds for k in places)
        found = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else 3 * ratios
        quartiles = [before + share * value for before, value in zip(quartiles, found, strict=True)]
    low, ratio, high = quartiles
    return Measured(
        seconds,
        ratio,
        low,
        high,
        statistics.mean(one.step.gradient_tokens for one in times),
        statistics.mean(one.step.forward_tokens for one in times),
    )


def _print_head(here: Conditions, bench: Bench, user_tokens: float, rounds: int) -> None:
    versions = ", ".join(f"{name} {number}" for name, number in here.versions.items())
    precision = str(bench.model.dtype).removeprefix("torch.")
    print(f"command: {here.command}")
    print(f"{bench.artefacts.record['base_id']} in {precision} on {here.device}, {here.cores} cores, ", end="")
    print(f"{here.threads} threads; {versions}")
    print(f"{rounds} rounds; {bench.plan.batch_size} rows of the user's a step, {user_tokens:.0f} tokens\n")


def _print_steps(measured: dict[str, Measured], least: dict[str, Minimum]) -> None:
    print("| loop | s/step | x none (quartiles) | tokens x none | + forward alone | x none per token ", end="")
    print("| passes | least x none | one epoch, with its forward before | target | |")
    print("|---" * 11 + "|")
    plain = measured[NONE]
    for name, one in measured.items():
        minimum = least.get(name, Minimum("1", 1.0) if name in STEPS else None)
        ratio = f"{one.ratio:.3f} ({one.low:.3f} to {one.high:.3f})"
        tokens, extra = one.gradient_tokens / plain.gradient_tokens, one.forward_tokens / plain.gradient_tokens
        per_token = f"{one.ratio / tokens:.3f}" if tokens else ""
        cells = [name, f"{one.seconds:.3f}", ratio, f"{tokens:.2f}", f"{extra:.2f}", per_token]
        cells += ["", ""] if minimum is None else [minimum.passes, f"{minimum.value:.2f}"]
        cells.append(f"{one.epoch_ratio:.3f}" if one.before else "")
        print("| " + " | ".join([*cells, *_judged(name, one, plain, minimum)]) + " |")


def _judged(name: str, one: Measured, plain: Measured, minimum: Minimum | None) -> tuple[str, str]:
    """The target, and whether it is met."""
    target = TARGETS.get(name)
    if target is None or minimum is None:
        return "", ""
    value = compared(target, one, plain, minimum)
    return f"<= {target.bound:.2f} of {target.of}", f"{value:.3f}: {'met' if value <= target.bound else 'not met'}"


def _print_alone(alone: dict[str, Alone]) -> None:
    print("\nAlone in a process: peak memory beyond that of none, and what is done once a run\n")
    print("| method | peak of training, MB | beyond none | peak of release | beyond none | prepare s | release s |")
    print("|---" * 7 + "|")
    plain = alone[NONE]
    for name, one in alone.items():
        training, release = one.training_bytes / 1e6, one.release_bytes / 1e6
        more, more_at_release = training - plain.training_bytes / 1e6, release - plain.release_bytes / 1e6
        memory = f"{training:.0f} | {more:+.0f} ({training * 1e6 / plain.training_bytes:.2f} x)"
        memory += f" | {release:.0f} | {more_at_release:+.0f}"
        print(f"| {name} | {memory} | {one.prepare_seconds:.2f} | {one.release_seconds:.2f} |")


def now() -> float:
    """Seconds of a clock, once the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--base", type=Path, help="folder of a prepared base (default: the one prepared last)")
    add("--data", type=Path, default=DEMO_TRAINING_FILE, help="chat JSONL (default: the demo upload)")
    add("--methods", nargs="+", choices=STEPS, default=list(STEPS), help="default: all; none and der are always there")
    add("--rounds", type=int, default=16, help="default 16, four of Lisa's cycles")
    add("--warmup", type=int, default=2)
    add("--batch-size", type=int, default=8, help="rows of the user's a step (default 8)")
    add("--threads", type=int, default=0, help="of torch (default: all cores)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
