"""Models and safety methods as clients see them."""

from typing import Any, Literal

from pydantic import BaseModel

from app.contracts.methods import Artefact
from app.contracts.objectives import ObjectiveName

MethodKind = Literal["method", "modifier", "merge"]


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
    referenced_by: list[str] = []
    """The project's jobs that went on from it, the newest first (the first twenty): they and their models stay."""


class SafetyMethod(BaseModel):
    """A way to keep the model's safety, and what can be set about it."""

    name: str
    object: Literal["safety.method"] = "safety.method"
    kind: MethodKind
    """A job has one method; a modifier and a merge can be combined with it."""
    description: str
    is_default: bool
    needs: list[Artefact]
    """What the base must have been prepared with."""
    method_types: list[ObjectiveName]
    """Values of a job's `method.type` that it can be combined with."""
    combines_with: list[str]
    """Names of what it can be asked for together with."""
    example: dict[str, Any]
    """The `safety` of a job that asks for it, with default settings."""
    settings: dict[str, Any]
    """JSON schema of its settings and the constant `name`: a method's stand in `safety.hyperparameters`, without the
    name; the modifier's in `safety.ema`, without the name; a merge's in `safety.merge`."""


class SafetyMethodList(BaseModel):
    """Every method, then the modifier and the merges."""

    object: Literal["list"] = "list"
    data: list[SafetyMethod]
