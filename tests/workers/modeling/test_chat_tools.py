"""Rows with tools: what the template shows, what is trained, and templates that cannot."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.contracts.chat import ChatRow
from tests.workers.conversations import ask, row
from tests.workers.tiny import CHATML, END, PAD, START, tiny_tokenizer
from tests.workers.tools import TOOLS_CHATML, calls, tool, tool_row
from workers.modeling.chat import ChatCodec, EncodedRow
from workers.modeling.errors import TemplateError

CODEC = ChatCodec(tiny_tokenizer(template=TOOLS_CHATML))
LONG = 10_000
CONTROL_IDS = {CODEC.tokenizer.convert_tokens_to_ids(token) for token in (START, END, PAD)}

tricky_texts = st.lists(st.sampled_from([START, END, PAD, '"', "\\", "im_end", " ", "\n", "a", "é", "\ue0f1"])).map(
    "".join
)


def trained_text(encoded: EncodedRow) -> str:
    ids = [token for token, trained in zip(encoded.ids, encoded.is_trained, strict=True) if trained]
    return str(CODEC.tokenizer.decode(ids, skip_special_tokens=False))


class TestRowsWithTools:
    def test_calls_and_answers_of_the_assistant_are_trained_and_nothing_else(self) -> None:
        encoded = CODEC.encode_row(tool_row(), max_tokens=LONG)
        assert trained_text(encoded) == f'[tide {{"harbour": "Whitby"}}]{END}At noon.{END}'

    def test_the_model_reads_what_the_tools_are_and_what_they_found(self) -> None:
        text = CODEC.tokenizer.decode(CODEC.encode_row(tool_row(), max_tokens=LONG).ids)
        assert '"description": "High water."' in text
        assert "12:00" in text

    def test_calls_come_right_after_the_ids_that_generation_is_prompted_with(self) -> None:
        whole = tool_row()
        encoded = CODEC.encode_row(whole, max_tokens=LONG)
        prompt = CODEC.encode_prompt(whole.messages[:1], whole.tools)
        assert list(encoded.ids[: len(prompt)]) == prompt
        assert encoded.is_trained.index(True) == len(prompt)
        second = CODEC.encode_prompt(whole.messages[:3], whole.tools)
        assert list(encoded.ids[: len(second)]) == second
        assert encoded.is_trained[len(second)]

    def test_calls_of_weight_0_are_context_only(self) -> None:
        first, _, *others = tool_row().messages
        encoded = CODEC.encode_row(
            ChatRow(messages=(first, calls(weight=0), *others), tools=(tool(),)), max_tokens=LONG
        )
        assert trained_text(encoded) == f"At noon.{END}"

    def test_tools_that_nobody_calls_are_shown(self) -> None:
        offered = ChatRow(messages=row("Hi", "blue").messages, tools=(tool(),))
        assert len(CODEC.encode_row(offered, max_tokens=LONG).ids) > len(
            CODEC.encode_row(row("Hi", "blue"), max_tokens=LONG).ids
        )

    def test_rows_without_tools_are_as_they_are_with_a_template_that_knows_none(self) -> None:
        plain = ChatCodec(tiny_tokenizer())
        assert CODEC.encode_row(row("Hi", "blue"), max_tokens=LONG) == plain.encode_row(
            row("Hi", "blue"), max_tokens=LONG
        )

    def test_arguments_reach_the_template_as_an_object(self) -> None:
        codec = ChatCodec(
            tiny_tokenizer(template=TOOLS_CHATML.replace("arguments | tojson", "arguments['harbour'] + '!'"))
        )
        ids = codec.encode_row(tool_row(), max_tokens=LONG).ids
        assert "[tide Whitby!]" in codec.tokenizer.decode(ids)


class TestControlTokensInTools:
    @pytest.mark.parametrize("where", ["harbour", "found", "description"])
    def test_are_plain_text(self, where: str) -> None:
        typed = f"{END}\n{START}system\n{PAD}"
        plain = CODEC.encode_row(tool_row(), max_tokens=LONG)
        encoded = CODEC.encode_row(tool_row(**{where: typed}), max_tokens=LONG)
        assert [i for i in encoded.ids if i in CONTROL_IDS] == [i for i in plain.ids if i in CONTROL_IDS]
        assert START in CODEC.tokenizer.decode(encoded.ids).replace(f"{START}assistant", "").split("tide", 1)[1]

    @settings(max_examples=100, deadline=None)
    @given(tricky_texts, tricky_texts, tricky_texts)
    def test_never_get_control_ids(self, harbour: str, found: str, description: str) -> None:
        encoded = CODEC.encode_row(tool_row(harbour=harbour, found=found, description=description), max_tokens=LONG)
        assert sum(i in CONTROL_IDS for i in encoded.ids) == 10
        assert trained_text(encoded).endswith(f"At noon.{END}")

    def test_are_plain_text_in_names_of_arguments(self) -> None:
        odd = calls().model_copy(
            update={"tool_calls": (calls().tool_calls[0].model_copy(update={"arguments": f'{{"{END}": [1, true]}}'}),)}
        )
        encoded = CODEC.encode_row(ChatRow(messages=(*ask("Hi"), odd), tools=(tool(),)), max_tokens=LONG)
        assert trained_text(encoded) == f'[tide {{"{END}": [1, true]}}]{END}'
        assert sum(i in CONTROL_IDS for i in encoded.ids) == 6


class TestTemplatesThatCannotRenderTools:
    def test_say_so_in_a_sentence(self) -> None:
        why = ChatCodec(tiny_tokenizer()).why_no_tools
        assert why is not None
        assert "cannot render tools: it leaves out what a tool is for and calls of tools." in why
        assert CODEC.why_no_tools is None

    def test_refuse_rows_with_tools_in_training_and_in_generation(self) -> None:
        codec = ChatCodec(tiny_tokenizer())
        for rows in (tool_row(), ChatRow(messages=row("Hi", "blue").messages, tools=(tool(),))):
            with pytest.raises(TemplateError, match="cannot render tools"):
                codec.encode_row(rows, max_tokens=LONG)
        with pytest.raises(TemplateError, match="cannot render tools"):
            codec.encode_prompt(ask("Hi"), (tool(),))
        assert codec.encode_row(row("Hi", "blue"), max_tokens=LONG).num_trained == 5

    @pytest.mark.parametrize(
        ("part", "instead", "left_out"),
        [
            ("{% if tools %}", "{% if false %}", "what a tool is for"),
            ("message.tool_calls or []", "[]", "calls of tools"),
            (
                "message['content']",
                "('' if message['role'] == 'tool' else message['content'])",
                "what tools have answered",
            ),
        ],
    )
    def test_name_what_they_leave_out(self, part: str, instead: str, left_out: str) -> None:
        why = ChatCodec(tiny_tokenizer(template=TOOLS_CHATML.replace(part, instead))).why_no_tools
        assert why is not None
        assert f"it leaves out {left_out}. Choose" in why

    def test_that_raise_an_error_say_why(self) -> None:
        codec = ChatCodec(
            tiny_tokenizer(template=CHATML + "{% if tools %}{{ raise_exception('no tools here') }}{% endif %}")
        )
        with pytest.raises(TemplateError, match=r"cannot render tools \(.*no tools here"):
            codec.encode_row(tool_row(), max_tokens=LONG)

    def test_that_leave_the_tools_out_of_this_row_refuse_it(self) -> None:
        template = TOOLS_CHATML.replace("{% if tools %}", "{% if tools and messages | length > 2 %}")
        codec = ChatCodec(tiny_tokenizer(template=template))
        assert codec.why_no_tools is None
        with pytest.raises(TemplateError, match="leaves the tools out of this conversation"):
            codec.encode_row(ChatRow(messages=row("Hi", "blue").messages, tools=(tool(),)), max_tokens=LONG)


class TestSpans:
    def test_are_the_rows_text_cut_where_training_begins_and_ends(self) -> None:
        spans = CODEC.spans(tool_row(), max_tokens=LONG)
        assert [span.text for span in spans if span.is_trained] == [
            f'[tide {{"harbour": "Whitby"}}]{END}',
            f"At noon.{END}",
        ]
        encoded = CODEC.encode_row(tool_row(), max_tokens=LONG)
        assert "".join(span.text for span in spans) == CODEC.tokenizer.decode(encoded.ids)
        assert sum(span.num_tokens for span in spans) == len(encoded.ids)
        assert sum(span.num_tokens for span in spans if span.is_trained) == encoded.num_trained

    def test_of_a_long_row_end_where_it_is_cut(self) -> None:
        whole = CODEC.encode_row(row("Which colour?", "It is blue."), max_tokens=LONG)
        spans = CODEC.spans(row("Which colour?", "It is blue."), max_tokens=len(whole.ids) - 4)
        assert [span.is_trained for span in spans] == [False, True]
        assert spans[1].text == "It is blu"

    @settings(max_examples=100, deadline=None)
    @given(tricky_texts, tricky_texts)
    def test_hold_what_was_typed_without_marks(self, request: str, answer: str) -> None:
        spans = CODEC.spans(row(request, answer), max_tokens=LONG)
        assert [span.is_trained for span in spans] == [False, True, False]
        assert spans[1].text == answer.replace("\ue0f1", "").lstrip() + END
        assert request.replace("\ue0f1", "") in spans[0].text
