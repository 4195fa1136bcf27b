"""What the health endpoints say."""

from typing import Literal

from pydantic import BaseModel


class Check(BaseModel):
    """One part that jobs need."""

    ok: bool
    detail: str


class Health(BaseModel):
    """The whole: ready when every check is."""

    status: Literal["ok", "ready", "not_ready"]
    checks: dict[str, Check] = {}
