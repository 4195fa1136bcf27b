"""What SECURITY.md says of dependencies is true of the pinned versions."""

import re
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "SECURITY.md").read_text()
PINNED = {
    name.lower().replace("_", "-"): Version(version)
    for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
}
FIXED = re.findall(r"^\| ([\w-]+) \| [^|]+ \| (\d[\d.]*) \|$", TEXT, re.MULTILINE)
OPEN = re.findall(r"^\| ([\w-]+) \| [^|]+ \| (`[^|]+`) \|$", TEXT, re.MULTILINE)
CALLS = [(package, name) for package, names in OPEN for name in re.findall(r"`([^`]+)`", names)]
NUM_ROWS = len(re.findall(r"^\| (?!package|-)", TEXT, re.MULTILINE))


def test_every_row_is_one_of_both_tables() -> None:
    assert len(FIXED) + len(OPEN) == NUM_ROWS
    assert {package for package, _ in OPEN} | {package for package, _ in FIXED} <= PINNED.keys()


@pytest.mark.parametrize(("name", "fixed"), FIXED, ids=[name for name, _ in FIXED])
def test_what_is_pinned_is_fixed(name: str, fixed: str) -> None:
    assert PINNED[name] >= Version(fixed)


def _calls(code: str, name: str) -> bool:
    """Whether it names it, at once or as `from ... import`."""
    module, _, attribute = name.rpartition(".")
    found = [rf"\b{re.escape(name)}\b"]
    if module:
        found.append(rf"\bfrom [\w.]*\b{re.escape(module)} import [^\n]*\b{attribute}\b")
    return any(re.search(pattern, code) for pattern in found)


def test_it_is_seen_how_something_is_called() -> None:
    for code in ("torch.jit.script(f)", "from torch.jit import freeze, script"):
        assert _calls(code, "jit.script")
    assert not _calls("from torch.jit import freeze", "jit.script")


@pytest.mark.parametrize(("package", "name"), CALLS)
def test_what_is_open_is_not_called(package: str, name: str) -> None:
    used = [
        str(file.relative_to(ROOT))
        for folder in ("app", "workers", "benchmarks", "migrations")
        for file in (ROOT / folder).rglob("*.py")
        if _calls(file.read_text(), name)
    ]
    assert used == [], f"{name} of {package} has an open advisory"
