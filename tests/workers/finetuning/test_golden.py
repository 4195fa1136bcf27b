from pathlib import Path

import pytest

from tests.workers.finetuning import golden
from workers.finetuning.artefacts import Artefacts


@pytest.mark.parametrize("name", list(golden.METHODS))
def test_ten_steps_have_the_committed_losses(name: str, prepared: Artefacts, tmp_path: Path) -> None:
    expected = golden.read(name)
    assert len(expected) == golden.NUM_STEPS
    assert golden.losses(name, prepared, tmp_path) == pytest.approx(expected, abs=1e-4)
