"""How a base model is aligned and prepared."""

from typing import Literal

from pydantic import Field

from app.contracts.value import Value


class AlignmentRecipe(Value):
    """Supervised fine-tuning on refusals and helpful answers with a LoRA that is merged afterwards.

    A first trial on SmolLM2-135M-Instruct went from 80 % harmful answers to 0 % with one epoch (rank 32, 5e-4)."""

    rank: Literal[4, 8, 16, 32, 64] = 8
    """8 keeps SmolLM2-135M's alignment adapter under 5 MB, so that it can be shipped."""
    alpha: int = Field(default=16, ge=1)
    num_epochs: int = Field(default=1, ge=1, le=20)
    batch_size: int = Field(default=16, ge=1, le=256)
    learning_rate: float = Field(default=1e-3, gt=0.0, le=1.0)
    seed: int = 0


class PrepareRecipe(Value):
    """What `models prepare` does to a base, once; part of the prepared artefacts' content hash."""

    align: bool
    """False: the base is taken as safe already."""
    alignment: AlignmentRecipe = Field(default_factory=AlignmentRecipe)
    shipped_adapter: str | None = None
    """Name of an alignment adapter in workers/data/adapters to use instead of training one; only for a base with
    the exact hash it was made for."""
    memory_rows: int = Field(default=256, ge=8)
    """Prompts of the alignment set put before theta_safe to build the safety memory."""
    max_answer_tokens: int = Field(default=64, ge=8, le=1024)
    eval_harmful: int | None = Field(default=None, ge=1)
    """Number of harmful evaluation prompts; None: all."""
    eval_lookalikes: int | None = Field(default=None, ge=1)
    """Number of look-alike evaluation prompts; None: all."""
    eval_max_new_tokens: int = Field(default=64, ge=8, le=2048)


class TrainingDefaults(Value):
    """What "auto" means for jobs on a base."""

    learning_rate: float = Field(default=5e-4, gt=0.0, le=1.0)
    num_epochs: int = Field(default=1, ge=1, le=50)
    batch_size: int = Field(default=8, ge=1, le=256)
    lora_rank: Literal[8, 16, 32, 64] = 16


class CatalogueEntry(Value):
    """A base model that `unforgotten models add` knows by name."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    title: str
    source: str
    """hf:REPO@REVISION, path:DIR or wheel:NAME==VERSION#FILE"""
    licence: str
    recipe: PrepareRecipe
    defaults: TrainingDefaults = Field(default_factory=TrainingDefaults)
