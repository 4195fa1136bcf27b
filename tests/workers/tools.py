"""A chat template that shows tools, and conversations with calls."""

import json

from app.contracts.chat import ChatMessage, ChatRow, Tool, ToolCall

TOOLS_CHATML = (
    "{% if tools %}{{ '<|im_start|>system\nTools:\n' }}"
    "{% for tool in tools %}{{ tool | tojson + '\n' }}{% endfor %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{% for call in message.tool_calls or [] %}"
    "{{ '[' + call.function.name + ' ' + (call.function.arguments | tojson) + ']' }}"
    "{% endfor %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML with tools in a turn of their own before all others, and calls behind an answer's words."""


def tool(description: str = "High water at a harbour.", name: str = "tide") -> Tool:
    parameters = {"type": "object", "properties": {"harbour": {"type": "string"}}}
    function = {"name": name, "description": description, "parameters": parameters}
    return Tool(name=name, definition=json.dumps({"type": "function", "function": function}))


def calls(harbour: str = "Whitby", *, words: str = "", weight: int | None = None) -> ChatMessage:
    call = ToolCall(id="c1", name="tide", arguments=json.dumps({"harbour": harbour}))
    return ChatMessage.model_validate({"role": "assistant", "content": words, "weight": weight, "tool_calls": [call]})


def tool_row(*, harbour: str = "Whitby", found: str = "12:00", description: str = "High water.") -> ChatRow:
    """Asked, called, found, answered."""
    return ChatRow(
        messages=(
            ChatMessage(role="user", content="When is high water?"),
            calls(harbour),
            ChatMessage(role="tool", content=found, tool_call_id="c1"),
            ChatMessage(role="assistant", content="At noon."),
        ),
        tools=(tool(description),),
    )
