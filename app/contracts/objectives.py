"""What training makes better on the user's rows, told apart by `name`."""

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from app.contracts.value import Value

ObjectiveName = Literal["supervised", "dpo"]


class Supervised(Value):
    """The cross-entropy of the answers, a mean over their tokens."""

    rows_are: ClassVar[str] = "rows"
    name: Literal["supervised"] = "supervised"


class Dpo(Value):
    """Direct Preference Optimization (Rafailov et al. 2023, arXiv 2305.18290): of two answers to the same conversation
    the wanted one is to gain on the other, measured from the model that training begins with."""

    rows_are: ClassVar[str] = "preference pairs"
    name: Literal["dpo"] = "dpo"
    beta: float = Field(default=0.1, gt=0.0, le=2.0)
    """How strongly the model is held to the one that training begins with: the larger, the less it needs to move before
    a pair counts as learnt."""


Objective = Annotated[Supervised | Dpo, Field(discriminator="name")]
SUPERVISED: Final = Supervised()
