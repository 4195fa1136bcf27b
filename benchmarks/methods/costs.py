"""What a method's step has to cost at least, beside a plain one, and what it may cost."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from app.contracts.methods import Der, Lisa
from benchmarks.methods.bench import Bench


class Minimum(NamedTuple):
    """Time of a step relative to a plain one, if time went into tokens (EWC: into products) alone."""

    passes: str
    value: float


class Target(NamedTuple):
    """At most `bound` times: a plain step, the same over one epoch with what goes before it, a plain step's time for a
    token, or the analytic minimum. (constrained_sft goes forward before it as well; its bound has no room for that.)"""

    bound: float
    of: Literal["none", "none in one epoch", "none per token", "its passes"]


TARGETS: dict[str, Target] = {
    "ewc": Target(1.05, "none"),
    "lisa": Target(1.05, "none"),
    "constrained_sft": Target(1.05, "none"),
    "none + ema": Target(1.05, "none"),
    "der": Target(1.05, "none per token"),
    "derpp": Target(1.05, "none per token"),
    "safeinstruct": Target(1.05, "none per token"),
    "lwf": Target(1.35, "none in one epoch"),
    "agem": Target(1.10, "its passes"),
    "safegrad": Target(1.10, "its passes"),
    "refresh": Target(1.10, "its passes"),
}


class Measured(NamedTuple):
    """Of one loop, beside the plain one's step of the same round."""

    seconds: float
    """Median."""
    ratio: float
    """Median over the rounds of its time over the plain step's."""
    low: float
    high: float
    """Quartiles."""
    gradient_tokens: float
    """Mean tokens a step that went forward and backward ..."""
    forward_tokens: float
    """... and forward alone."""
    before: float = 0.0
    """What goes forward before the first epoch, as a share of a plain step for each step of one epoch."""

    @property
    def epoch_ratio(self) -> float:
        """The ratio over one epoch, with what goes before it."""
        return self.ratio + self.before


def minima(bench: Bench, user_tokens: float, forward_share: float, steps: Sequence[int]) -> dict[str, Minimum]:
    """Of every method that adds something to a step; all others are plain ones.

    Args:
        bench: Says how long the memory's rows are.
        user_tokens: Mean tokens of the user's rows in a step.
        forward_share: Measured: what a forward alone takes of a plain step.
        steps: Numbers of the steps that were measured.
    """
    drawn = Der().memory_rows_per_step
    one = bench.drawn_tokens(steps, drawn)
    two = one + bench.drawn_tokens(steps, drawn, draw=1)
    lisa = Lisa()
    cycle = lisa.alignment_steps + lisa.user_steps
    turns_so_far = sorted({step // cycle for step in steps})
    memory_turn = bench.drawn_tokens(turns_so_far, bench.plan.batch_size)
    mixed = (lisa.user_steps * user_tokens + lisa.alignment_steps * memory_turn) / (cycle * user_tokens)
    with_one, with_two = 1 + one / user_tokens, 1 + two / user_tokens
    return {
        "der": Minimum("1, memory rows in it", with_one),
        "safeinstruct": Minimum("1, memory rows in it", with_one),
        "derpp": Minimum("1, two draws of memory rows in it", with_two),
        "agem": Minimum("2: user's rows, memory rows", with_one),
        "safegrad": Minimum("2: user's rows, memory rows", with_one),
        "refresh": Minimum("2, each as derpp's", 2 * with_two),
        "lwf": Minimum("1, and a forward before the first epoch", 1 + forward_share),
        "ewc": Minimum("1, and three products of rank R with every weight", 1 + _ewc_share(bench, user_tokens)),
        "lisa": Minimum(f"1, on memory rows in {lisa.alignment_steps} step of {cycle}", mixed),
    }


def _ewc_share(bench: Bench, user_tokens: float) -> float:
    """The products of EWC's penalty (B A, P A^T, B^T P) have 6 R multiplications and additions for each number of a
    weight; a plain step has 4 for each token, forward and backward to the inputs of a frozen base."""
    return 6 * bench.plan.lora.rank / (4 * user_tokens)


def compared(target: Target, measured: Measured, plain: Measured, minimum: Minimum) -> float:
    """The number that the target's bound is for."""
    if target.of == "none":
        return measured.ratio
    if target.of == "none in one epoch":
        return measured.epoch_ratio
    if target.of == "its passes":
        return measured.ratio / minimum.value
    return measured.ratio * plain.gradient_tokens / measured.gradient_tokens
