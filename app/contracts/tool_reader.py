"""Tools that a conversation offers, and the calls that its assistant makes, read from a training file.

Strict, because a template shows all of it to the model: a call of a tool that is not offered, or arguments that are no
JSON object, would teach the model to write what no client can carry out.
"""

import json
import re

from app.contracts.chat import Tool, ToolCall
from app.contracts.datasets import LineCode
from app.contracts.line_findings import LineFindings, kind_of
from app.contracts.strict_json import StrictJsonError, strict_loads

MAX_TOOLS = 128

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_EXAMPLE = 'Write {"type": "function", "function": {"name": "...", "description": "...", "parameters": {...}}}.'
_CALL_EXAMPLE = 'Write {"id": "...", "type": "function", "function": {"name": "...", "arguments": "{...}"}}.'


def read_tools(value: object, path: str, found: LineFindings) -> tuple[Tool, ...]:
    """The tools of a row; null or an empty list stand for none."""
    if value is None:
        return ()
    if not isinstance(value, list):
        found.problem(path, LineCode.BAD_TOOLS, f"tools is {kind_of(value)}, not a list", _EXAMPLE)
        return ()
    if len(value) > MAX_TOOLS:
        found.problem(path, LineCode.BAD_TOOLS, f"there are more than {MAX_TOOLS} tools", "Offer fewer.")
        return ()
    tools: dict[str, Tool] = {}
    for index, item in enumerate(value):
        tool = _tool(item, f"{path}[{index}]", found)
        if tool is not None and tools.setdefault(tool.name, tool) is not tool:
            what = "a tool before this one has the same name"
            found.problem(f"{path}[{index}].function.name", LineCode.BAD_TOOLS, what, "Give each its own name.")
    return tuple(tools.values())


def read_calls(value: object, path: str, found: LineFindings) -> tuple[ToolCall, ...]:
    """The calls of an assistant message; null stands for none."""
    if value is None:
        return ()
    if not isinstance(value, list):
        what = f"tool_calls is {kind_of(value)}, not a list"
        found.problem(path, LineCode.BAD_MESSAGE, what, "List the calls, or leave tool_calls out.")
        return ()
    calls: dict[str, ToolCall] = {}
    for index, item in enumerate(value):
        call = _call(item, f"{path}[{index}]", found)
        if call is not None and calls.setdefault(call.id, call) is not call:
            what = "a call before this one has the same id"
            found.problem(f"{path}[{index}].id", LineCode.BAD_MESSAGE, what, "Give each call its own id.")
    return tuple(calls.values())


def _tool(value: object, path: str, found: LineFindings) -> Tool | None:
    function = _function(value, path, LineCode.BAD_TOOLS, _EXAMPLE, found)
    if function is None:
        return None
    name = _name(function, path, LineCode.BAD_TOOLS, found)
    for key, expected, what in (
        ("description", str, "a string"),
        ("parameters", dict, "an object with a JSON schema"),
        ("strict", bool, "true or false"),
    ):
        given = function.get(key)
        if given is not None and not isinstance(given, expected):
            message = f"{key} is {kind_of(given)}, not {what}"
            found.problem(f"{path}.function.{key}", LineCode.BAD_TOOLS, message, f"Write {what}, or leave it out.")
            return None
    definition = json.dumps(value, ensure_ascii=False)
    if name is None or not _all_characters(value, path, "the tool", found):
        return None
    return Tool(name=name, definition=definition)


def _call(value: object, path: str, found: LineFindings) -> ToolCall | None:
    function = _function(value, path, LineCode.BAD_MESSAGE, _CALL_EXAMPLE, found)
    if function is None or not isinstance(value, dict):
        return None
    name = _name(function, path, LineCode.BAD_MESSAGE, found)
    call_id = read_call_id(value.get("id"), f"{path}.id", found)
    found.extra_keys(value, frozenset({"id", "type", "function"}), path, "in the call")
    found.extra_keys(function, frozenset({"name", "arguments"}), f"{path}.function", "in the call")
    arguments = _arguments(function.get("arguments"), f"{path}.function.arguments", found)
    if name is None or call_id is None or arguments is None:
        return None
    return ToolCall(id=call_id, name=name, arguments=arguments)


def read_call_id(value: object, path: str, found: LineFindings) -> str | None:
    """What ties a tool's answer to its call."""
    if not isinstance(value, str) or not value.strip():
        what = "the call's id is blank" if isinstance(value, str) else f"the call's id is {kind_of(value)}"
        found.problem(path, LineCode.BAD_MESSAGE, what, "Give a call and its answer the same id, a string.")
        return None
    return value if found.characters(value, path, "the call's id") else None


def _function(value: object, path: str, code: LineCode, example: str, found: LineFindings) -> dict[str, object] | None:
    if not isinstance(value, dict):
        found.problem(path, code, f"it is {kind_of(value)}, not an object", example)
        return None
    if value.get("type") != "function":
        found.problem(f"{path}.type", code, 'the type is not "function"', example)
        return None
    function = value.get("function")
    if not isinstance(function, dict):
        found.problem(f"{path}.function", code, f"function is {kind_of(function)}, not an object", example)
        return None
    return function


def _name(function: dict[str, object], path: str, code: LineCode, found: LineFindings) -> str | None:
    name = function.get("name")
    if isinstance(name, str) and _NAME.fullmatch(name):
        return name
    fix = "Use 1 to 64 letters, digits, underscores and dashes."
    found.problem(f"{path}.function.name", code, "the function has no name that may be used", fix)
    return None


def _arguments(value: object, path: str, found: LineFindings) -> str | None:
    if not isinstance(value, str):
        what = f"arguments is {kind_of(value)}, not a string"
        found.problem(path, LineCode.BAD_MESSAGE, what, "Write the arguments' JSON object as a string.")
        return None
    try:
        read = strict_loads(value)
    except StrictJsonError as error:
        what = f"the string in arguments is not valid JSON: {error}"
        found.problem(path, LineCode.BAD_MESSAGE, what, "Write one JSON object in it.")
        return None
    if not isinstance(read, dict):
        what = f"the string in arguments holds {kind_of(read)}, not an object"
        found.problem(path, LineCode.BAD_MESSAGE, what, 'Write {"name": value, ...}; {} for none.')
        return None
    return value if _all_characters(read, path, "arguments", found) else None


def _all_characters(value: object, path: str, what: str, found: LineFindings) -> bool:
    """The rules for texts, for every string in a value; one finding at most, as they would share their path."""
    return found.characters("\n".join(_strings(value)), path, what)


def _strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in (key, *_strings(item))]
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    return []
