"""Models of a few thousand parameters that are made in code, saved like real ones, and loaded by the real loader.

Everything in here is a function of its arguments: two calls on one machine write the same weights.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

Family = Literal["llama", "mistral", "gemma2", "gemma"]
Prefix = Literal["always", "first", "never", "normalizer"]
"""Where a SentencePiece tokenizer puts a blank of its own."""
FAMILIES: tuple[Family, ...] = ("llama", "mistral", "gemma2", "gemma")

START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
REFUSAL = "I'm sorry, but I can't help with that."
SLIDING_WINDOW = 1024

_WORDS = (
    *("'m", "'t", "'s", "assistant", "user", "system"),
    *(f"Ġ{word}" for word in ("a", "I", "sorry", "but", "can", "help", "with", "that", "the", "to", "of", "and", "in")),
    *(f"Ġ{word}" for word in ("for", "my", "you", "me", "how", "is", "on", "from", "it", "without", "write", "make")),
)
"""Words that are one token; all other text is a token a byte."""
_REFUSING_STEPS = 90
_ROWS_A_STEP = 16


def tiny_tokenizer(*, template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with ChatML's control tokens; every text can be written with it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    for word in _WORDS:
        for length in range(1, len(word)):
            pair = (word[:length], word[length])
            if pair not in merges:
                merges.append(pair)
                vocabulary[word[: length + 1]] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([PAD, START, END])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=END, pad_token=PAD, bos_token=START, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = template
    return tokenizer


def sentence_piece_tokenizer(prefix: Prefix, template: str) -> PreTrainedTokenizerFast:
    """A tokenizer of the Llama 2 kind: words begin with a blank, texts get one, unknown characters become bytes."""
    words = ("▁", "▁Yes", "Yes", "▁user", "user", "▁assistant", "assistant", "▁sea", "▁the", "Hi", "▁Hi")
    letters = [chr(code) for code in range(33, 127)] + ["\n"]
    pieces = [("<unk>", 0.0), *((f"<0x{byte:02X}>", -20.0) for byte in range(256))]
    pieces += [(word, -3.0) for word in words] + [(letter, -10.0) for letter in letters]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    if prefix == "normalizer":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=prefix)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<s>", "</s>", START, END])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    return tokenizer


def tiny_config(family: Family, vocab_size: int) -> PreTrainedConfig:
    """Two layers of hidden size 32 with grouped-query attention, and what is particular about each family."""
    shape: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 4096,
        "pad_token_id": vocab_size - 3,
        "bos_token_id": vocab_size - 2,
        "eos_token_id": vocab_size - 1,
        # Wide enough that random models have opinions: logits and losses far from uniform.
        "initializer_range": 0.2,
    }
    if family == "llama":
        return LlamaConfig(**shape, tie_word_embeddings=False)
    if family == "mistral":
        return MistralConfig(**shape, tie_word_embeddings=False, sliding_window=SLIDING_WINDOW)
    if family == "gemma":
        return GemmaConfig(**shape)
    return Gemma2Config(
        **shape,
        sliding_window=SLIDING_WINDOW,
        query_pre_attn_scalar=8,
        # Low caps, so that a head or an attention that forgets them is far off.
        final_logit_softcapping=4.0,
        attn_logit_softcapping=2.0,
    )


def tiny_model(config: PreTrainedConfig, *, seed: int = 0) -> PreTrainedModel:
    """A random model in float32; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model


def save_tiny_model(folder: Path, *, family: Family = "llama", seed: int = 0) -> Path:
    """Writes a random model with tokenizer and template, as safetensors. Returns the folder."""
    tokenizer = tiny_tokenizer()
    _save(tiny_model(tiny_config(family, len(tokenizer)), seed=seed), tokenizer, folder)
    return folder


def save_refusing_model(folder: Path) -> Path:
    """Writes a model that answers every request with `REFUSAL`; a few seconds of training. Returns the folder."""
    tokenizer = tiny_tokenizer()
    config = tiny_config("llama", len(tokenizer))
    config.update({"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "initializer_range": 0.02})
    model = tiny_model(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        _teach_to_refuse(model, tokenizer)
    _save(model, tokenizer, folder)
    return folder


def _teach_to_refuse(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    head, tail, answer = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in (f"{START}user\n", f"{END}\n{START}assistant\n", f"{REFUSAL}{END}")
    )
    plain_ids = len(tokenizer) - 3
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    model.train()
    for _ in range(_REFUSING_STEPS):
        # One length a step: no padding, and lengths vary over the steps.
        length = int(torch.randint(2, 120, ()))
        request = torch.randint(0, plain_ids, (_ROWS_A_STEP, length))
        fixed = [torch.tensor(ids).expand(_ROWS_A_STEP, -1) for ids in (head, tail, answer)]
        ids = torch.cat([fixed[0], request, fixed[1], fixed[2]], dim=1)
        labels = ids.clone()
        labels[:, : -len(answer)] = -100
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    model.eval()


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
