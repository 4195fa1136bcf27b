"""The API runs on what `pip install unforgotten` brings: its image has nothing else."""

import re
import subprocess
import sys
import tomllib
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PARTS = ("app.main", "app.cli", "app.up", "kombu.transport.redis", "psycopg")


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def names_of(requirements: list[str], extra: str = "") -> list[tuple[str, str]]:
    """(distribution, extra) of every requirement that holds here."""
    parsed = [Requirement(text) for text in requirements]
    held = [needed for needed in parsed if needed.marker is None or needed.marker.evaluate({"extra": extra})]
    return [(normalised(needed.name), name) for needed in held for name in ("", *needed.extras)]


def installed_with(requirements: list[str]) -> set[str]:
    """Distributions that these requirements bring, directly or not."""
    found: set[tuple[str, str]] = set()
    waiting = names_of(requirements)
    while waiting:
        wanted = waiting.pop()
        if wanted not in found:
            found.add(wanted)
            # What is not installed here is for other systems.
            with suppress(PackageNotFoundError):
                waiting += names_of(requires(wanted[0]) or [], wanted[1])
    return {distribution for distribution, _ in found}


@pytest.fixture(scope="module")
def not_installed() -> list[str]:
    """Modules of this environment that the API's image lacks."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ours = installed_with(project["dependencies"]) | {"unforgotten"}
    modules = packages_distributions()
    return [name for name, owners in modules.items() if not ours & {normalised(owner) for owner in owners}]


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_the_api_needs_nothing_that_is_not_declared(part: str, not_installed: list[str]) -> None:
    assert {"torch", "transformers", "pytest"} <= set(not_installed)
    code = f"import sys; sys.modules.update(dict.fromkeys({not_installed!r})); import {part}"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
