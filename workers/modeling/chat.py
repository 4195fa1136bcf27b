"""The one way from a conversation to token ids, for training and for generation alike.

A conversation is rendered with the model's own chat template and tokenised once. The trained span of an assistant
message is everything after its generation prompt up to and including the token that ends the turn, so the model
learns to stop. For each such span the tokens before it must equal what generation would be prompted with; a
template where they differ is refused, because training and evaluation would then not see the same text.

Tools go through the template's own argument for them. Many templates ignore it, and the model would be trained to call
tools that it was never told of: rows with tools are refused there.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple

from app.contracts.chat import ChatMessage, ChatRow, Tool, ToolCall
from workers.modeling.errors import RowRefused, TemplateError

_MARK = "\ue0f1"
"""A private-use character no model is trained on; removed from the text itself."""
_PROBE = (ChatMessage(role="user", content="Hi"), ChatMessage(role="assistant", content="Yes"))
_PROBE_FUNCTION = {
    "name": "look_up_tide",
    "description": "High water at a harbour.",
    "parameters": {"type": "object", "properties": {"harbour": {"type": "string", "description": "Its name."}}},
}
_PROBE_TOOL = Tool(name="look_up_tide", definition=json.dumps({"type": "function", "function": _PROBE_FUNCTION}))
# Nine letters and digits: one family of templates takes no other ids.
_PROBE_CALL = ToolCall(id="tide00001", name="look_up_tide", arguments='{"harbour": "Whitby"}')
_PROBE_OF_TOOLS = (
    ChatMessage(role="user", content="Hi"),
    ChatMessage(role="assistant", content="", tool_calls=(_PROBE_CALL,)),
    ChatMessage(role="tool", content="At noon.", tool_call_id=_PROBE_CALL.id),
    ChatMessage(role="assistant", content="Yes"),
)
_SHOWN_OF_TOOLS = {
    "what a tool is for": "High water at a harbour.",
    "calls of tools": "Whitby",
    "what tools have answered": "At noon.",
}


class EncodedRow(NamedTuple):
    """A tokenised conversation. `is_trained[t]` says whether token t is a target (predicted from the one before)."""

    ids: tuple[int, ...]
    is_trained: tuple[bool, ...]
    is_cut: bool
    """True when tokens beyond the limit were dropped."""

    @property
    def num_trained(self) -> int:
        return sum(self.is_trained)

    @property
    def positions(self) -> tuple[int, ...]:
        """Positions whose hidden state predicts a trained token, the one after."""
        return tuple(p for p in range(len(self.ids) - 1) if self.is_trained[p + 1])

    @property
    def targets(self) -> tuple[int, ...]:
        """The trained tokens that are predicted; as long as `positions`."""
        return tuple(self.ids[p + 1] for p in self.positions)


class Span(NamedTuple):
    """A stretch of a row's text: all of its tokens are trained, or none."""

    text: str
    num_tokens: int
    is_trained: bool


class ChatCodec:
    """A tokenizer together with its chat template."""

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise TemplateError(
                "The tokenizer has no chat template. Use an instruction-tuned model, or add a template."
            )
        if not tokenizer.is_fast:
            raise TemplateError("The tokenizer is a slow one; only tokenizers with a tokenizer.json are supported.")
        self.tokenizer = tokenizer
        self._control_tokens = tuple(
            sorted(set(tokenizer.all_special_tokens) | _added_control_tokens(tokenizer), key=len)
        )
        self.end_ids = self._find_end_ids()
        """Ids that end an answer."""

    @property
    def template_sha256(self) -> str:
        """Hash of the template's text (hex); recorded with every adapter."""
        return hashlib.sha256(str(self.tokenizer.chat_template).encode()).hexdigest()

    @property
    def pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.tokenizer.eos_token_id)

    @cached_property
    def why_no_tools(self) -> str | None:
        """Why rows with tools cannot be rendered, as a sentence; None where they can."""
        try:
            text = self._render(_PROBE_OF_TOOLS, (_PROBE_TOOL,), prompt=False)
        except TemplateError as error:
            return f"The model's chat template cannot render tools ({error})"
        left_out = [what for what, sign in _SHOWN_OF_TOOLS.items() if sign not in text]
        if not left_out:
            return None
        return (
            f"The model's chat template cannot render tools: it leaves out {' and '.join(left_out)}. Choose a base "
            "model that was made for tools, or write the tools into the messages as text."
        )

    def encode_prompt(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = ()) -> list[int]:
        """Ids that prompt the next assistant message.

        Raises:
            TemplateError: The template refuses the conversation, or cannot render its tools.
        """
        self._require_tools(messages, tools)
        return self._tokenise(self._render(messages, tools, prompt=True)).ids

    def encode_row(self, row: ChatRow, *, max_tokens: int) -> EncodedRow:
        """Ids and trained positions of a training row, cut at the end to `max_tokens`.

        Raises:
            RowRefused: Nothing is left to train on.
            TemplateError: The template treats this conversation differently in training and in generation.
        """
        _, tokens, is_trained = self._encode(row)
        ids, kept = tokens.ids[:max_tokens], is_trained[:max_tokens]
        if not any(kept):
            raise RowRefused(
                f"no token of the answer is left within {max_tokens} tokens: shorten the prompt or split the row"
            )
        return EncodedRow(tuple(ids), tuple(kept), is_cut=len(tokens.ids) > max_tokens)

    def spans(self, row: ChatRow, *, max_tokens: int) -> list[Span]:
        """The text of a training row as `encode_row` sees it, cut where trained and other tokens meet.

        Raises:
            TemplateError: See `encode_row`.
        """
        text, tokens, is_trained = self._encode(row)
        found: list[Span] = []
        start = 0
        for trained, group in groupby(range(min(max_tokens, len(tokens.ids))), key=is_trained.__getitem__):
            places = list(group)
            end = tokens.ends[places[-1]]
            found.append(Span(text[start:end], len(places), trained))
            start = end
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, control tokens left out."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _encode(self, row: ChatRow) -> tuple[str, "_Tokens", list[bool]]:
        """A row's text without marks, its tokens, and which of them are trained."""
        self._require_tools(row.messages, row.tools)
        messages = tuple(_without_leading_space(m) for m in row.messages)
        text = self._render(messages, row.tools, prompt=False)
        tokens = self._tokenise(text)
        is_trained = [False] * len(tokens.ids)
        for index, message in enumerate(messages):
            if message.role == "assistant" and message.weight != 0:
                self._mark_answer(messages, row.tools, index, tokens, text, is_trained)
        return text.replace(_MARK, ""), tokens, is_trained

    def _require_tools(self, messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> None:
        if not tools:
            return
        if self.why_no_tools is not None:
            raise TemplateError(self.why_no_tools)
        if self._render(messages, tools, prompt=False) == self._render(messages, (), prompt=False):
            raise TemplateError("The model's chat template leaves the tools out of this conversation.")

    def _mark_answer(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[Tool],
        index: int,
        tokens: "_Tokens",
        text: str,
        is_trained: list[bool],
    ) -> None:
        prompt = self._render(messages[:index], tools, prompt=True)
        done = self._render(messages[: index + 1], tools, prompt=False)
        if not text.startswith(done) or not done.startswith(prompt):
            raise TemplateError(
                "The chat template renders an answer differently inside a conversation than at its end; multi-turn "
                "rows cannot be trained with it. Use rows with a single answer."
            )
        prompt_tokens = self._tokenise(prompt)
        if tokens.ids[: len(prompt_tokens.ids)] != prompt_tokens.ids:
            raise TemplateError(
                "The tokenizer joins the prompt and the answer into one token, so training would see other tokens than "
                "generation does. Let the answer begin with a letter or digit."
            )
        first = len(prompt_tokens.ids)
        end = first
        while end < len(tokens.ids) and tokens.ends[end] <= len(done.replace(_MARK, "")):
            end += 1
        # Line breaks that the template puts after the end-of-turn token are never generated.
        last_end = max((i for i in range(first, end) if tokens.ids[i] in self.end_ids), default=None)
        stop = end if last_end is None else last_end + 1
        is_trained[first:stop] = [True] * (stop - first)

    def _render(self, messages: Sequence[ChatMessage], tools: Sequence[Tool], *, prompt: bool) -> str:
        plain = [self._message(message) for message in messages]
        definitions = [self._defused(json.loads(tool.definition)) for tool in tools] or None
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    plain, tools=definitions, tokenize=False, add_generation_prompt=prompt
                )
            )
        except Exception as error:  # a template is a program of its own: jinja2 errors, raise_exception(), KeyError
            raise TemplateError(f"The model's chat template refuses this conversation: {error}") from error

    def _message(self, message: ChatMessage) -> dict[str, Any]:
        """A message as templates expect it: a call's arguments are an object there."""
        found: dict[str, Any] = {"role": message.role, "content": self._defuse(message.content)}
        if message.tool_calls:
            found["tool_calls"] = [
                {
                    "id": self._defuse(call.id),
                    "type": "function",
                    "function": {"name": call.name, "arguments": self._defused(json.loads(call.arguments))},
                }
                for call in message.tool_calls
            ]
        if message.tool_call_id is not None:
            found["tool_call_id"] = self._defuse(message.tool_call_id)
        return found

    def _defused(self, value: Any) -> Any:
        """A JSON value with all of its strings defused, keys among them."""
        if isinstance(value, str):
            return self._defuse(value)
        if isinstance(value, dict):
            return {self._defuse(key): self._defused(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._defused(item) for item in value]
        return value

    def _defuse(self, content: str) -> str:
        """Puts a mark inside control tokens that a user typed, so that they are tokenised as plain text."""
        content = content.replace(_MARK, "")
        for token in self._control_tokens:
            if token and token in content:
                content = content.replace(token, token[:1] + _MARK + token[1:])
        return content

    def _tokenise(self, text: str) -> "_Tokens":
        """Ids and end offsets (characters, marks not counted); pieces on either side of a mark are separate.

        Where a tokenizer begins every text with a blank (SentencePiece), one comes after a mark: inside a control token
        that a user typed, and nowhere else.
        """
        ids: list[int] = []
        ends: list[int] = []
        offset = 0
        for piece in text.split(_MARK):
            encoded = self.tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True)
            ids.extend(encoded["input_ids"])
            ends.extend(offset + end for _, end in encoded["offset_mapping"])
            offset += len(piece)
        return _Tokens(ids, ends)

    def _find_end_ids(self) -> frozenset[int]:
        """Ids with which the template ends an answer: the first control token after it, and the tokenizer's EOS."""
        found = {self.tokenizer.eos_token_id} - {None}
        prompt = self._render(_PROBE[:1], (), prompt=True)
        done = self._render(_PROBE, (), prompt=False)
        tail = done[len(prompt) :] if done.startswith(prompt) else ""
        control = {self.tokenizer.convert_tokens_to_ids(t) for t in self._control_tokens}
        after = [i for i in self._tokenise(tail).ids if i in control]
        found.update(after[:1])
        if not after:
            raise TemplateError(
                "The chat template ends an answer with no control token: the model could never learn to stop."
            )
        return frozenset(int(i) for i in found)


class _Tokens(NamedTuple):
    ids: list[int]
    ends: list[int]


def _added_control_tokens(tokenizer: Any) -> set[str]:
    return {str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special}


def _without_leading_space(message: ChatMessage) -> ChatMessage:
    """Answers start with their first visible character: leading blanks would merge into the prompt's last token."""
    if message.role != "assistant":
        return message
    return message.model_copy(update={"content": message.content.replace(_MARK, "").lstrip()})
