"""A conversation: the only form in which text enters training and evaluation."""

from typing import Literal

from pydantic import Field

from app.contracts.value import Value

Role = Literal["system", "user", "assistant", "tool"]


class ToolCall(Value):
    """One call that the assistant makes."""

    id: str
    name: str
    arguments: str
    """A JSON object, as text."""


class Tool(Value):
    """A function that the assistant may call."""

    name: str
    definition: str
    """{"type": "function", "function": {...}} as text, as it was uploaded: templates show all of it to the model, so
    nothing may be dropped. Text stays frozen, which a schema's objects would not."""


class ChatMessage(Value):
    """One message."""

    role: Role
    content: str
    """Of an assistant that only calls tools it is empty."""
    weight: Literal[0, 1] | None = None
    """Assistant messages only: 0 leaves the message out of training."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Assistant messages only."""
    tool_call_id: str | None = None
    """Tool messages only: the call that this answers."""

    @property
    def text(self) -> str:
        """Everything that is said in the message, with the calls after the words."""
        calls = [f"{call.name} {call.arguments}" for call in self.tool_calls]
        return "\n".join([self.content, *calls] if self.content else calls)


class ChatRow(Value):
    """One row of a training file: a conversation that ends with the assistant."""

    messages: tuple[ChatMessage, ...] = Field(min_length=1)
    tools: tuple[Tool, ...] = ()

    @property
    def has_tools(self) -> bool:
        """Whether a template without tools would leave something of the row out. (Calls need tools.)"""
        return bool(self.tools)


class PreferenceRow(Value):
    """One row of a preference file: a conversation that waits for an answer, one that is wanted and one that is not."""

    messages: tuple[ChatMessage, ...] = Field(min_length=1)
    """Ends with the user, or with what tools have answered."""
    preferred: ChatMessage
    rejected: ChatMessage
    tools: tuple[Tool, ...] = ()

    @property
    def has_tools(self) -> bool:
        """See ChatRow."""
        return bool(self.tools)

    @property
    def preferred_row(self) -> ChatRow:
        """The conversation with the wanted answer, which alone is trained."""
        return self._answered(self.preferred)

    @property
    def rejected_row(self) -> ChatRow:
        """The conversation with the other answer."""
        return self._answered(self.rejected)

    def _answered(self, answer: ChatMessage) -> ChatRow:
        context = (m.model_copy(update={"weight": 0}) if m.role == "assistant" else m for m in self.messages)
        return ChatRow(messages=(*context, answer), tools=self.tools)
