"""In which order messages may stand: one system message at most, then user and assistant in turn. Between an assistant
that calls tools and its next message stand the tools' answers, one a call, in any order."""

from collections.abc import Sequence

from app.contracts.chat import ChatMessage, Role, Tool
from app.contracts.datasets import LineCode
from app.contracts.line_findings import LineFindings

_UNANSWERED = "Answer every call with a tool message that has its id."


def check_order(
    messages: Sequence[ChatMessage],
    tools: Sequence[Tool],
    path: str,
    found: LineFindings,
    *,
    is_parallel: bool = True,
) -> tuple[Role, ...]:
    """Finds the first message that stands in the wrong place.

    Args:
        messages: One at least.
        tools: What the row offers.
        path: Where the messages are.
        found: Receives the problem.
        is_parallel: Whether the assistant may make several calls at once.

    Returns:
        Who may speak next; nobody, where there is a problem.
    """
    expected: tuple[Role, ...] = ("system", "user")
    unanswered: set[str] = set()
    for index, message in enumerate(messages):
        place = f"{path}[{index}]"
        if message.role not in expected:
            what, fix = _out_of_order(messages, index, has_unanswered=bool(unanswered))
            found.problem(place, LineCode.BAD_ORDER, what, fix)
            return ()
        if message.role == "tool":
            if message.tool_call_id not in unanswered:
                what = "the tool message answers no call of the assistant's message before it, or one twice"
                found.problem(f"{place}.tool_call_id", LineCode.BAD_ORDER, what, _UNANSWERED)
                return ()
            unanswered.discard(message.tool_call_id)
        elif not check_calls(message, tools, place, found, is_parallel=is_parallel):
            return ()
        unanswered.update(call.id for call in message.tool_calls)
        expected = _after(message.role, has_unanswered=bool(unanswered))
    return expected


def check_calls(
    message: ChatMessage, tools: Sequence[Tool], place: str, found: LineFindings, *, is_parallel: bool
) -> bool:
    """Whether the row offers what the message calls."""
    names = {tool.name for tool in tools}
    for number, call in enumerate(message.tool_calls):
        if call.name not in names:
            what = "the call names a tool that the row does not offer"
            where = f"{place}.tool_calls[{number}].function.name"
            found.problem(where, LineCode.BAD_TOOLS, what, 'Put its definition in "tools", or correct the name.')
            return False
    if len(message.tool_calls) > 1 and not is_parallel:
        what = "the assistant makes several calls at once, and parallel_tool_calls is false"
        fix = "Make one call a message, or leave parallel_tool_calls out."
        found.problem(f"{place}.tool_calls", LineCode.BAD_MESSAGE, what, fix)
        return False
    return True


def _after(role: Role, *, has_unanswered: bool) -> tuple[Role, ...]:
    if has_unanswered:
        return ("tool",)
    match role:
        case "system" | "assistant":
            return ("user",)
        case "user" | "tool":
            return ("assistant",)


def _out_of_order(messages: Sequence[ChatMessage], index: int, *, has_unanswered: bool) -> tuple[str, str]:
    role = messages[index].role
    if has_unanswered:
        return "calls of the assistant are not answered before the next message", _UNANSWERED
    if role == "tool":
        return "the tool message follows no call of the assistant", _UNANSWERED
    if role == "system":
        return "a system message is not the first message", "Put one system message first."
    if index and role == messages[index - 1].role:
        return f"two {role} messages follow one another", "Join them into one message."
    fix = "Start with a user message (after the system message, if any)."
    return f"the conversation starts with the {role}", fix
