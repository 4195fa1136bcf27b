"""Every benchmark by name. A new one is one enum member, one file and one line of a table here.

Two tables, because where the prompts come from differs: a shipped benchmark is complete, the others read a file that
the provider has to bring.
"""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from workers.evaluation.benchmarks import advbench, unforgotten_harmful, unforgotten_lookalikes, xstest
from workers.evaluation.errors import BenchmarkUnavailable
from workers.evaluation.prompts import Benchmark


class BenchmarkName(StrEnum):
    """Names of benchmarks, as reports and settings have them."""

    UNFORGOTTEN_HARMFUL = unforgotten_harmful.NAME
    UNFORGOTTEN_LOOKALIKES = unforgotten_lookalikes.NAME
    ADVBENCH = advbench.NAME
    XSTEST = xstest.NAME


SHIPPED: dict[BenchmarkName, Callable[[], Benchmark]] = {
    BenchmarkName.UNFORGOTTEN_HARMFUL: unforgotten_harmful.load,
    BenchmarkName.UNFORGOTTEN_LOOKALIKES: unforgotten_lookalikes.load,
}
FROM_FILE: dict[BenchmarkName, Callable[[Path], Benchmark]] = {
    BenchmarkName.ADVBENCH: advbench.load,
    BenchmarkName.XSTEST: xstest.load,
}


def load_benchmark(name: BenchmarkName, path: Path | None = None) -> Benchmark:
    """A benchmark, ready to run.

    Args:
        name: Which one.
        path: The local CSV of a benchmark that is not shipped.

    Raises:
        BenchmarkUnavailable: the benchmark is not shipped and its file is not there.
        BadBenchmarkFile: the file is in another format.
        ValueError: a path was given for a shipped benchmark, whose prompts are fixed.
    """
    if name in SHIPPED:
        if path is not None:
            raise ValueError(f"{name} is shipped with this project and reads no other file; leave the path out")
        return SHIPPED[name]()
    if path is None:
        raise BenchmarkUnavailable(f"{name} is not shipped: give the path of its CSV")
    if not path.is_file():
        raise BenchmarkUnavailable(f"{name} was not run: there is no file {path.name}; download it and give its path")
    return FROM_FILE[name](path)
