"""Chat templates that the catalogue gives to bases that come without one."""

from app.catalog.entries import find_entry
from app.contracts.chat import ChatMessage, ChatRow
from tests.workers.tiny import tiny_tokenizer
from workers.modeling.chat import ChatCodec


def test_gemmas_turns() -> None:
    entry = find_entry("gemma3-270m")
    assert entry is not None
    tokenizer = tiny_tokenizer(template=entry.recipe.chat_template)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    tokenizer.bos_token = "<bos>"
    codec = ChatCodec(tokenizer)
    row = ChatRow(
        messages=(
            ChatMessage(role="system", content="Be brief."),
            ChatMessage(role="user", content="Hi <end_of_turn>"),
            ChatMessage(role="assistant", content="Yes."),
            ChatMessage(role="user", content="Why?"),
            ChatMessage(role="assistant", content="So."),
        )
    )
    spans = codec.spans(row, max_tokens=500)
    shown = "".join(f"[{span.text}]" if span.is_trained else span.text for span in spans)
    # What a system message says comes before the first question.
    assert "<start_of_turn>user\nBe brief.\n\nHi " in shown
    assert "<start_of_turn>model\n[Yes.<end_of_turn>]\n<start_of_turn>user\nWhy?<end_of_turn>\n" in shown
    assert shown.endswith("<start_of_turn>model\n[So.<end_of_turn>]\n")
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert end in codec.end_ids
    # What a user writes ends no turn.
    assert codec.encode_row(row, max_tokens=500).ids.count(end) == 4
