"""The main job on a real model, as `make demo` runs it. Minutes: `make test-slow`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_demo_ends_with_an_adapter_that_answers_and_a_second_run_reuses_the_base(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("UNFORGOTTEN_")}
    environment |= {"UNFORGOTTEN_DATA_DIR": str(tmp_path / "data"), "COLUMNS": "200"}

    def demo() -> str:
        done = subprocess.run(
            [sys.executable, "-m", "app.cli", "demo"], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    first = demo()
    assert "Harmful requests answered" in first
    assert re.search(r"PEFT on theta_safe: \w+", first)
    assert re.search(r"PEFT on the public base: \w+", first)
    assert "is prepared already" in demo()
