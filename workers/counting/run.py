"""A file in, its tokens counted and its first rows shown."""

from typing import Literal, NamedTuple

from app.contracts.chat import ChatRow, PreferenceRow
from app.contracts.chat_file import read_any_rows
from app.contracts.counting import CountProblem, CountResult, CountSpec, PreviewRow, TokenCounts, TokenSpan
from workers.modeling.chat import ChatCodec
from workers.modeling.errors import ModelingError
from workers.modeling.text_parts import configured_row_limit, load_text_parts

Answer = Literal["preferred", "non_preferred"]


def count(spec: CountSpec) -> CountResult:
    """Encodes rows exactly as training does.

    Raises:
        InvalidChatFileError: A line is bad.
        TemplateError: The model's tokenizer or template cannot be used for training.
    """
    parts = load_text_parts(spec.model_dir)
    limit = configured_row_limit(parts.config, spec.max_row_tokens)
    sums = _Sums(limit)
    previews: list[PreviewRow] = []
    problem = None
    for number, (line, row) in enumerate(read_any_rows(spec.file)):
        is_shown = number < spec.num_previews
        if not is_shown and (spec.is_preview_only or problem is not None):
            break
        if is_shown:
            previews += [preview(parts.codec, line, conversation, limit) for conversation in _conversations(row)]
        if problem is None and not spec.is_preview_only:
            problem = sums.add(parts.codec, line, row)
    has_counts = problem is None and not spec.is_preview_only
    return CountResult(counts=sums.result() if has_counts else None, problem=problem, previews=tuple(previews))


class _Conversation(NamedTuple):
    row: ChatRow
    answer: Answer | None


def _conversations(row: ChatRow | PreferenceRow) -> list[_Conversation]:
    if isinstance(row, ChatRow):
        return [_Conversation(row, None)]
    return [_Conversation(row.preferred_row, "preferred"), _Conversation(row.rejected_row, "non_preferred")]


def preview(codec: ChatCodec, line: int, conversation: _Conversation, limit: int) -> PreviewRow:
    """A row with what is trained of it."""
    row, answer = conversation
    try:
        encoded = codec.encode_row(row, max_tokens=limit)
    except ModelingError as error:
        return PreviewRow(
            line=line,
            answer=answer,
            num_tokens=0,
            num_trained_tokens=0,
            is_cut=False,
            spans=(),
            problem=str(error),
        )
    return PreviewRow(
        line=line,
        answer=answer,
        num_tokens=len(encoded.ids),
        num_trained_tokens=len(encoded.positions),
        is_cut=encoded.is_cut,
        spans=tuple(TokenSpan(**span._asdict()) for span in codec.spans(row, max_tokens=limit)),
        problem=None,
    )


class _Sums:
    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._num_rows = 0
        self._num_tokens = 0
        self._num_trained = 0
        self._num_cut = 0
        self._longest = 0

    def add(self, codec: ChatCodec, line: int, row: ChatRow | PreferenceRow) -> CountProblem | None:
        """Counts a row; what is wrong with it, where it cannot be trained on."""
        try:
            encoded = [codec.encode_row(found.row, max_tokens=self._limit) for found in _conversations(row)]
        except ModelingError as error:
            return CountProblem(line=line, message=str(error))
        self._num_rows += 1
        self._num_tokens += sum(len(found.ids) for found in encoded)
        self._num_trained += sum(len(found.positions) for found in encoded)
        self._num_cut += sum(found.is_cut for found in encoded)
        self._longest = max(self._longest, *(len(found.ids) for found in encoded))
        return None

    def result(self) -> TokenCounts:
        return TokenCounts(
            num_rows=self._num_rows,
            num_tokens=self._num_tokens,
            num_trained_tokens=self._num_trained,
            num_cut_rows=self._num_cut,
            longest_row_tokens=self._longest,
            row_limit=self._limit,
        )
