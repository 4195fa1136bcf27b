"""What a training run is asked to do, fully resolved: no "auto" is left in here."""

from typing import Literal, Self

from pydantic import Field, model_validator

from app.contracts.methods import Artefact, Der, MethodConfig, methods_for
from app.contracts.modifiers import Ema, MergeConfig
from app.contracts.objectives import Objective, Supervised
from app.contracts.value import Value, invalid_combination

_MERGES_OF_THEIR_OWN = ("magmax", "safelora")
"""Methods that rewrite the update after training, counted from the unaligned base."""

Quantisation = Literal["none", "nf4"]
Rank = Literal[1, 2, 4, 8, 16, 32, 64, 128]


class LoraPlan(Value):
    """Shape of the adapter. Ranks are those that common servers load without extra flags."""

    rank: Rank = 16
    alpha: int = Field(default=32, ge=1, le=1024)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)

    @property
    def scaling(self) -> float:
        """The update of a weight is scaling * B A."""
        return self.alpha / self.rank


class TrainingPlan(Value):
    """One fine-tuning run. Same base, data and plan give the same adapter, bit for bit on CPU."""

    objective: Objective = Field(default_factory=Supervised)
    """What training makes better on the user's rows, which are of its kind: conversations, or preference pairs."""
    method: MethodConfig = Field(default_factory=Der)
    ema: Ema | None = None
    """An average over the steps is shipped instead of the last state."""
    merge: MergeConfig | None = None
    """What is done with the update after training."""
    lora: LoraPlan = Field(default_factory=LoraPlan)
    num_epochs: int = Field(default=1, ge=1, le=50)
    batch_size: int = Field(default=8, ge=1, le=256)
    """User rows (of preferences: pairs) an optimizer step."""
    learning_rate: float = Field(default=5e-4, gt=0.0, le=1.0)
    warmup_ratio: float = Field(default=0.03, ge=0.0, lt=1.0)
    """Share of the steps over which the learning rate rises linearly; then it falls on a cosine to a tenth."""
    weight_decay: float = Field(default=0.0, ge=0.0, le=1.0)
    max_gradient_norm: float = Field(default=1.0, gt=0.0)
    max_row_tokens: int = Field(default=2048, ge=8, le=131_072)
    """Longer rows are cut at the end; a row whose answer is cut off altogether is refused."""
    micro_batch_tokens: int = Field(default=4096, ge=8)
    """Most tokens in one forward; a step with more is accumulated over several. A longer row goes alone, and so do the
    two rows of a pair, whose loss needs both."""
    checkpoint_every_steps: int = Field(default=50, ge=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 where the device multiplies it fast, else fp32. Adapter and optimizer are fp32 always."""
    quantisation: Quantisation = "none"
    """`nf4`: the base's linear layers are held in 4 bits while the adapter is trained (QLoRA). Needs bitsandbytes."""
    gradient_checkpointing: bool = False
    """Activations are computed again in the backward pass instead of being kept: less memory, about a third more time,
    the same numbers."""
    seed: int = Field(default=0, ge=0, le=2**31 - 1)

    @property
    def needs(self) -> list[Artefact]:
        """Prepared artefacts of the base that this run cannot do without."""
        parts = (self.method, self.ema, self.merge)
        return sorted({artefact for part in parts if part is not None for artefact in part.needs})

    @model_validator(mode="after")
    def _combination_makes_sense(self) -> Self:
        if self.objective.name not in self.method.objectives:
            raise invalid_combination(
                "method",
                f"«{self.method.name}» changes the supervised loss itself, and {self.objective.name} has another one: "
                f"use one of {', '.join(methods_for(self.objective.name))}.",
            )
        if self.merge is not None and not can_be_merged(self.method.name, self.merge.name):
            raise invalid_combination(
                "merge",
                f"«{self.method.name}» is itself a merge with the alignment's change: combine it with wise_ft or with "
                f"nothing, not with {self.merge.name}.",
            )
        return self


def can_be_merged(method: str, merge: str) -> bool:
    """Whether what this method makes can be given to this merge; an average over the steps goes with everything."""
    return method not in _MERGES_OF_THEIR_OWN or merge == "wise_ft"
