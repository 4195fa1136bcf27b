from typing import Any

import pytest

from app.contracts.modifiers import Dare, Ema, MergeConfig, with_modifiers
from app.rendering.markdown import to_sections
from tests.app.rendering.sample import full_report, plain_report
from workers.stages.model_card import model_card, public_name

RECORD: dict[str, Any] = {"source": "hf:owner/model@0123abc", "recipe": {"align": True}}


def test_a_card_says_what_it_is_how_to_load_it_and_what_was_measured() -> None:
    card = model_card(full_report(), RECORD)
    assert "trained with the method `der` on 1000 rows (3 epochs)." in card
    assert "AutoModelForCausalLM.from_pretrained('owner/model')" in card
    assert card.rstrip().endswith(to_sections(full_report()).rstrip())
    headings = [line for line in card.split("\n") if line.startswith("# ")]
    assert headings[0] == "# ft:smollm2-135m-instruct:acme:ticket-router:7d1f0c52"
    assert card.index("**Withheld.**") < card.index("## Did safety change?")


def test_a_suffix_that_a_tenant_chose_is_shown_as_it_is() -> None:
    name = "ft:tiny:acme:_now_-__x__:7d1f"
    card = model_card(full_report().model_copy(update={"model": name}), RECORD)
    assert r"# ft:tiny:acme:\_now\_-\_\_x\_\_:7d1f" in card.split("\n")


def test_a_card_of_an_adapter_from_elsewhere_claims_no_training() -> None:
    card = model_card(plain_report(), RECORD)
    assert "A LoRA adapter for `smollm2-135m-instruct`.\n" in card
    assert "trained with" not in card


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("hf:owner/model@0123abc", "owner/model"),
        ("hf:owner/model", "owner/model"),
        ("path:/srv/secret place/model-1b", "model-1b"),
        ("wheel:llm==1.0#small.gguf", "wheel:llm==1.0#small.gguf"),
    ],
)
def test_a_tenant_is_told_what_to_load_and_no_path(source: str, name: str) -> None:
    assert public_name(source) == name


@pytest.mark.parametrize(
    ("ema", "merge", "words"),
    [
        (None, None, "method «ewc»"),
        (Ema(), None, "method «ewc» and an average over the steps"),
        (None, Dare(), "method «ewc» and a dare merge"),
        (Ema(), Dare(), "method «ewc», an average over the steps and a dare merge"),
    ],
)
def test_a_method_is_told_with_what_it_was_combined_with(
    ema: Ema | None, merge: MergeConfig | None, words: str
) -> None:
    assert with_modifiers("method «ewc»", ema, merge) == words
