"""Settings of the safety-preserving methods: one frozen class a method, told apart by `name`.

`GET /v1/safety/methods` publishes these classes' JSON schemas as they are, so a docstring under a field is the
public documentation of that setting. Mathematics and scheduling live in workers/finetuning/methods.
"""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from app.contracts.value import Value


class NoMethod(Value):
    """Plain LoRA fine-tuning: the reference that every other method is compared with. Keeps no safety."""

    name: Literal["none"] = "none"


class Der(Value):
    """Dark Experience Replay (Buzzega et al. 2020): the model's logits on its own safe answers are held where
    the aligned base had them, by a squared error beside the task's loss."""

    name: Literal["der"] = "der"
    alpha: float = Field(default=3.0, ge=0.0, le=1000.0)
    """Weight of the replay term. The term is the squared logit error, mean over the vocabulary and over the
    replayed answer tokens; 0 turns replay off."""
    memory_rows_per_step: int = Field(default=8, ge=1, le=256)
    """Rows of safety memory that ride along with every optimizer step."""
    memory_size: int = Field(default=512, ge=8, le=100_000)
    """Rows of the base's safety memory to draw from (all of them, where it has fewer)."""


MethodConfig = Annotated[NoMethod | Der, Field(discriminator="name")]

METHOD_ADAPTER: TypeAdapter[NoMethod | Der] = TypeAdapter(MethodConfig)

METHOD_CONFIGS: dict[str, type[NoMethod] | type[Der]] = {"der": Der, "none": NoMethod}
"""Every method by name, in the order in which they are listed to users."""

DEFAULT_METHOD = "der"
