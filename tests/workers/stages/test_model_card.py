import pytest

from workers.stages.model_card import public_name


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
