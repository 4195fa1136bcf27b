"""A conversation: the only form in which text enters training and evaluation."""

from typing import Literal

from pydantic import Field

from app.contracts.value import Value

Role = Literal["system", "user", "assistant"]


class ChatMessage(Value):
    """One message."""

    role: Role
    content: str
    weight: Literal[0, 1] | None = None
    """Assistant messages only: 0 leaves the message out of training."""


class ChatRow(Value):
    """One row of a training file: a conversation that ends with the assistant."""

    messages: tuple[ChatMessage, ...] = Field(min_length=1)


class PreferenceRow(Value):
    """One row of a preference file: a conversation that waits for an answer, one that is wanted and one that is not."""

    messages: tuple[ChatMessage, ...] = Field(min_length=1)
    """Ends with the user."""
    preferred: ChatMessage
    rejected: ChatMessage
