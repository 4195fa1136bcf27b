"""A method alone in a process: its peak memory, and what it does before the first and after the last step."""

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from benchmarks.methods.bench import Bench, Setting
from workers.modeling.loading import use_threads

MAX_STEPS = 5
"""Enough for every kind of step that a method has."""
_RESET_PEAK = "5"
_T = TypeVar("_T")


class Alone(NamedTuple):
    """What a process found."""

    prepare_seconds: float
    """With reading the safety memory, where the method has one."""
    release_seconds: float
    training_bytes: int
    """Peak memory from the loaded model to the last step: of the process, or on a GPU of its tensors."""
    release_bytes: int
    """... and after the last step."""


def measure_alone(parts: dict[str, Any], setting: Setting, threads: int) -> Alone:
    """Runs a method in a new process. One that has measured something before would keep its memory."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure_in_this_process, parts, setting, threads).result()


def measure_in_this_process(parts: dict[str, Any], setting: Setting, threads: int) -> Alone:
    """The same here, for a process that has done nothing else."""
    use_threads(threads)
    bench = Bench.of(setting)
    _reset_peak()
    loop, prepare_seconds = _timed(lambda: bench.loop_of(parts))
    with bench.training([loop]):
        for number in range(min(MAX_STEPS, setting.num_steps)):
            bench.step(loop, number)
    training_bytes = _peak()
    _reset_peak()

    def release() -> None:
        loop.method.finish()
        loop.method.release(bench.backbone.pairs())

    release_seconds = _timed(release)[1]
    return Alone(prepare_seconds, release_seconds, training_bytes, _peak())


def _timed(call: Callable[[], _T]) -> tuple[_T, float]:
    started = time.perf_counter()
    found = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return found, time.perf_counter() - started


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        # getrusage's maximum cannot be reset, and a new process has its parent's.
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)


def _peak() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
