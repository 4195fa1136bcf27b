"""Short conversations to train and to ask with."""

from app.contracts.chat import ChatMessage, ChatRow


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
