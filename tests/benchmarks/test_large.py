import json
from pathlib import Path

import pytest

from benchmarks.large import main


def test_compares_the_loops_on_a_tiny_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two rows of 32 tokens, and three memory rows of 16 beside them."""
    arguments = ["--shape", "tiny", "--rounds", "1", "--warmup", "0", "--threads", "1", "--batch-size", "2"]
    arguments += ["--row-tokens", "32", "--memory-rows", "3", "--memory-tokens", "16"]
    main([*arguments, "--out", str(tmp_path / "large.json")])
    found = json.loads((tmp_path / "large.json").read_text())
    tokens = {name: (row["tokens"], row["forward_tokens"]) for name, row in found["rows"].items()}
    assert tokens == {"none": (64, 0), "der": (112, 0), "none on der's rows": (112, 0), "naive der": (112, 48)}
    assert all(row["seconds"] > 0 for row in found["rows"].values())
    printed = capsys.readouterr().out
    assert "| naive der |" in printed
    assert str(tmp_path) not in printed
