"""What a training run is asked to do, fully resolved: no "auto" is left in here."""

from typing import Literal

from pydantic import Field

from app.contracts.methods import Der, MethodConfig
from app.contracts.value import Value


class LoraPlan(Value):
    """Shape of the adapter. Ranks are those that common servers load without extra flags."""

    rank: Literal[1, 2, 4, 8, 16, 32, 64, 128] = 16
    alpha: int = Field(default=32, ge=1, le=1024)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)


class TrainingPlan(Value):
    """One fine-tuning run. Same base, data and plan give the same adapter, bit for bit on CPU."""

    method: MethodConfig = Field(default_factory=Der)
    lora: LoraPlan = Field(default_factory=LoraPlan)
    num_epochs: int = Field(default=1, ge=1, le=50)
    batch_size: int = Field(default=8, ge=1, le=256)
    """User rows an optimizer step."""
    learning_rate: float = Field(default=5e-4, gt=0.0, le=1.0)
    warmup_ratio: float = Field(default=0.03, ge=0.0, lt=1.0)
    """Share of the steps over which the learning rate rises linearly; then it falls on a cosine to a tenth."""
    weight_decay: float = Field(default=0.0, ge=0.0, le=1.0)
    max_gradient_norm: float = Field(default=1.0, gt=0.0)
    max_row_tokens: int = Field(default=2048, ge=8, le=131_072)
    """Longer rows are cut at the end; a row whose answer is cut off altogether is refused."""
    micro_batch_tokens: int = Field(default=4096, ge=8)
    """Most tokens in one forward; a step with more is accumulated over several."""
    checkpoint_every_steps: int = Field(default=50, ge=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 where the device multiplies it fast, else fp32. Adapter and optimizer are fp32 always."""
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
