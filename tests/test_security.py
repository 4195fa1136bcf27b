"""What SECURITY.md says of dependencies is true of the pinned versions."""

import re
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PINNED = {
    name.lower().replace("_", "-"): Version(version)
    for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
}
FIXED = re.findall(r"^\| ([\w-]+) \| [^|]+ \| (\d[\d.]*) \|$", (ROOT / "SECURITY.md").read_text(), re.MULTILINE)


def test_the_table_is_there() -> None:
    assert len(FIXED) > 20


@pytest.mark.parametrize(("name", "fixed"), FIXED, ids=[name for name, _ in FIXED])
def test_what_is_pinned_is_fixed(name: str, fixed: str) -> None:
    assert PINNED[name] >= Version(fixed)
