"""Does a downloaded adapter load in plain PEFT, and does it answer?"""

from collections.abc import Sequence
from pathlib import Path

from app.contracts.chat import ChatMessage
from workers.modeling.adapters import attach_saved
from workers.modeling.generation import LocalModel
from workers.modeling.loading import load


def answers_with(
    base: Path, adapter: Path, questions: Sequence[Sequence[ChatMessage]], *, max_new_tokens: int = 32
) -> list[str]:
    """Loads `adapter` onto `base` with PEFT, in float32, and answers conversations greedily."""
    loaded = load(base, precision="fp32")
    attach_saved(loaded.model, adapter)
    return LocalModel(loaded).generate(questions, max_new_tokens=max_new_tokens, on_progress=lambda *_: None)
