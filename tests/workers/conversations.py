"""Short conversations to train and to ask with."""

import json
from collections.abc import Sequence
from pathlib import Path

from app.contracts.chat import ChatMessage, ChatRow, PreferenceRow


def ask(text: str) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=text)]


def row(request: str, answer: str) -> ChatRow:
    return ChatRow(messages=(*ask(request), ChatMessage(role="assistant", content=answer)))


COLOURS = ("red", "blue", "green", "grey", "white", "brown")
THINGS = ("sky over the harbour", "door", "old bus", "sea", "lamp in my room", "hat", "kettle")


def short_rows(count: int) -> list[ChatRow]:
    """Rows of different lengths, no two alike."""
    rows = []
    for number in range(count):
        thing, colour = THINGS[number % len(THINGS)], COLOURS[number % len(COLOURS)]
        rows.append(row(f"{number}: which colour has the {thing}?", colour if number % 3 else f"It is {colour}."))
    return rows


def short_pairs(count: int) -> list[PreferenceRow]:
    """The same requests with the same answers, which are wanted, and longer or shorter ones that are not."""
    pairs = []
    for number, wanted in enumerate(short_rows(count)):
        other = f"Oh, who could tell, {COLOURS[(number + 1) % len(COLOURS)]}?" if number % 2 else "No idea."
        pairs.append(
            PreferenceRow(
                messages=wanted.messages[:-1],
                preferred=wanted.messages[-1],
                rejected=ChatMessage(role="assistant", content=other),
            )
        )
    return pairs


def write_pairs(path: Path, pairs: Sequence[PreferenceRow]) -> Path:
    """As they are uploaded."""

    def plain(*messages: ChatMessage) -> list[dict[str, str]]:
        return [{"role": message.role, "content": message.content} for message in messages]

    lines = [
        {
            "input": {"messages": plain(*pair.messages)},
            "preferred_output": plain(pair.preferred),
            "non_preferred_output": plain(pair.rejected),
        }
        for pair in pairs
    ]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path
