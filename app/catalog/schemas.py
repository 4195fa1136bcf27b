"""Models and safety methods as clients see them."""

from typing import Any, Literal

from pydantic import BaseModel


class ModelObject(BaseModel):
    """OpenAI's model object."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(BaseModel):
    """Every model that the project can name."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


class ModelDeleted(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["model"] = "model"
    deleted: bool = True


class SafetyMethod(BaseModel):
    """A way to keep the model's safety, and what can be set about it."""

    name: str
    object: Literal["safety.method"] = "safety.method"
    description: str
    is_default: bool
    settings: dict[str, Any]
    """JSON schema of `safety.hyperparameters` (and the constant `name`)."""


class SafetyMethodList(BaseModel):
    """Every method."""

    object: Literal["list"] = "list"
    data: list[SafetyMethod]
