"""How a base model is aligned and prepared."""

from typing import Literal, Self

from pydantic import Field, model_validator

from app.contracts.methods import Artefact
from app.contracts.plan import Quantisation
from app.contracts.value import Value

MAX_TEMPLATE_CHARACTERS = 65_536


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
    unaligned_twin: str | None = None
    """Source of the same model before it was aligned (hf:, path: or wheel:), for a base that is taken as safe: methods
    that compare with the change that alignment made need it. A base that is aligned here is its own."""
    chat_template: str | None = Field(default=None, min_length=1, max_length=MAX_TEMPLATE_CHARACTERS)
    """Jinja text, for a model that comes without a chat template (one that was only pretrained)."""
    memory_rows: int = Field(default=256, ge=8)
    """Prompts of the alignment set put before theta_safe to build the safety memory."""
    fisher_rows: int = Field(default=64, ge=0)
    """Rows of the safety memory that the Fisher information is averaged over. It takes as much room as the weights that
    adapters change; 0 makes none, and jobs with the method `ewc` are then not possible on this base."""
    max_answer_tokens: int = Field(default=64, ge=8, le=1024)
    eval_harmful: int | None = Field(default=None, ge=1)
    """Number of harmful evaluation prompts; None: all."""
    eval_lookalikes: int | None = Field(default=None, ge=1)
    """Number of look-alike evaluation prompts; None: all."""
    eval_max_new_tokens: int = Field(default=64, ge=8, le=2048)

    @property
    def artefacts(self) -> frozenset[Artefact]:
        """What a base prepared by this recipe has for methods to use."""
        found: set[Artefact] = {"memory", "gram"}
        if self.fisher_rows:
            found.add("fisher")
        if self.align or self.unaligned_twin is not None:
            found.add("unaligned_twin")
        return frozenset(found)

    @model_validator(mode="after")
    def _one_twin(self) -> Self:
        if self.align and self.unaligned_twin is not None:
            raise ValueError("A base that is aligned here needs no unaligned_twin: it is one itself before that.")
        return self


class TrainingDefaults(Value):
    """What "auto" means for jobs on a base."""

    learning_rate: float = Field(default=5e-4, gt=0.0, le=1.0)
    num_epochs: int = Field(default=1, ge=1, le=50)
    batch_size: int = Field(default=8, ge=1, le=256)
    lora_rank: Literal[8, 16, 32, 64] = 16
    quantisation: Quantisation = "none"
    """`nf4`: jobs train on the base in 4 bits (QLoRA), for bases that would not fit otherwise. The provider's choice,
    like the next: adapters are measured and served on the base as it is."""
    gradient_checkpointing: bool = False
    """Less memory for about a third more time; the adapter is the same."""


class CatalogueEntry(Value):
    """A base model that `unforgotten models add` knows by name."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    title: str
    source: str
    """hf:REPO@REVISION, path:DIR or wheel:NAME==VERSION#FILE (pieces in several wheels: joined by commas)"""
    licence: str
    recipe: PrepareRecipe
    defaults: TrainingDefaults = Field(default_factory=TrainingDefaults)
