"""The base of every contract: a frozen value that refuses what it does not know."""

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """Frozen, strict about names: an unknown setting is an error, never an option accepted and ignored."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(), use_attribute_docstrings=True
    )
