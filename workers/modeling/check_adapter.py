"""Does a downloaded adapter load in plain PEFT, and does it answer?"""

from collections.abc import Sequence
from pathlib import Path

from app.contracts.chat import ChatMessage
from workers.modeling.adapters import attach_saved
from workers.modeling.generation import LocalModel
from workers.modeling.loading import load


def answer_with(base: Path, adapter: Path, question: Sequence[ChatMessage], *, max_new_tokens: int = 32) -> str:
    """Loads `adapter` onto `base` with PEFT, in float32, and answers one conversation greedily."""
    loaded = load(base, precision="fp32")
    attach_saved(loaded.model, adapter)
    answers = LocalModel(loaded).generate([question], max_new_tokens=max_new_tokens, on_progress=lambda *_: None)
    return answers[0]
