"""Says at the end which back ends the suite really ran on; CI requires all of them."""

import os
from collections import Counter

import pytest

BACKENDS = {
    "sqlite": "SQLite",
    "postgresql": "PostgreSQL",
    "embedded": "embedded valkey",
    "redis": "Redis",
}
"""Part of a test's parameters -> the back end it ran on."""


class _BackendTally:
    def __init__(self) -> None:
        self.passed: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" or not report.passed or "[" not in report.nodeid:
            return
        parameters = report.nodeid.rsplit("[", 1)[1].rstrip("]").split("-")
        self.passed.update(name for name in BACKENDS if name in parameters)


def pytest_configure(config: pytest.Config) -> None:
    # Numbers are worked out on the CPU; a GPU, where there is one, is for the tests that ask for it (-m gpu).
    if "gpu" not in config.option.markexpr:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # Workers of pytest-xdist report to the controller, which alone prints.
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_BackendTally(), "backend-tally")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    tally = config.pluginmanager.get_plugin("backend-tally")
    if tally is None:
        return
    parts = [f"{label}: {tally.passed[name]} tests" for name, label in BACKENDS.items()]
    terminalreporter.section("back ends exercised")
    terminalreporter.write_line(", ".join(parts))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    tally = session.config.pluginmanager.get_plugin("backend-tally")
    is_required = os.environ.get("UNFORGOTTEN_TEST_REQUIRE_BACKENDS") == "all"
    if tally is None or not is_required or session.config.option.collectonly:
        return
    missing = [label for name, label in BACKENDS.items() if not tally.passed[name]]
    if missing:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print(f"\nerror: no test ran on {', '.join(missing)}, and all back ends are required")  # noqa: T201
