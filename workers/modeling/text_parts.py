"""What of a model folder can be used without the model, and without torch: its codec, and how long a row may be."""

from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoConfig, AutoTokenizer

from workers.modeling.chat import ChatCodec

ATTENTION_LIMITS = {
    "sliding_window": "sliding window",
    "attention_chunk_size": "attention chunk",
    "max_position_embeddings": "context",
}
"""Settings of a model that bound how far its tokens see, and what they are called in messages."""


class TextParts(NamedTuple):
    """How a model's text becomes tokens."""

    codec: ChatCodec
    config: Any


def load_codec(directory: Path) -> ChatCodec:
    """The tokenizer and the chat template of a model folder.

    Raises:
        TemplateError: They cannot be used for training.
    """
    return ChatCodec(AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True))


def load_text_parts(directory: Path) -> TextParts:
    """Codec and configuration of a model folder.

    Raises:
        TemplateError: See `load_codec`.
    """
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    return TextParts(load_codec(directory), config)


def configured_row_limit(config: Any, asked: int) -> int:
    """Tokens that a row may have: as many as asked for, or as few as a model so configured can attend to."""
    limits: list[int | None] = [getattr(config, setting, None) for setting in ATTENTION_LIMITS]
    return min([asked, *(limit for limit in limits if limit is not None)])
