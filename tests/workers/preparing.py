"""Preparing the tiny refusing model with a handful of prompts."""

from pathlib import Path
from typing import Any

from app.contracts.bases import PrepareRecipe
from app.contracts.specs import PrepareSpec


def small_recipe(**settings: Any) -> PrepareRecipe:
    """Enough prompts to see every part; an answer of the refusing model has 13 tokens."""
    return PrepareRecipe.model_validate(
        {
            "align": False,
            "memory_rows": 9,
            "max_answer_tokens": 16,
            "eval_harmful": 5,
            "eval_lookalikes": 3,
            "eval_max_new_tokens": 16,
            **settings,
        }
    )


def prepare_spec(model_dir: Path, bases_dir: Path, **settings: Any) -> PrepareSpec:
    return PrepareSpec(base_id="tiny", source=f"path:{model_dir}", recipe=small_recipe(**settings), bases_dir=bases_dir)
