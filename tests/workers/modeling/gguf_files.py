"""A tiny model as a GGUF file, and that in a wheel, as models travel in package registries."""

import json
import zipfile
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from tests.workers.tiny import CHATML, END, PAD, START
from workers.modeling.loading import LoadedModel, load

CONTROL, NORMAL = 3, 1
"""Token types of the format."""


def write_gguf(model_dir: Path, path: Path, *, quantised: bool) -> None:
    """Writes a tiny Llama with tokenizer and template; `quantised`: matrices in 8-bit blocks."""
    loaded = load(model_dir, precision="fp32")
    writer = gguf.GGUFWriter(path, "llama")
    _write_shape(writer, loaded)
    _write_tokenizer(writer, loaded)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, loaded.model.config.num_hidden_layers)
    for name, weight in loaded.model.state_dict().items():
        target = f"{names.get_name(name.removesuffix('.weight'))}.weight"
        array = _interleaved(loaded, name, weight.numpy())
        if quantised and array.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(target, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(target, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_wheel(folder: Path, name: str, version: str, gguf_file: Path) -> None:
    """Writes NAME-VERSION-py3-none-any.whl with the model inside."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", "")
        wheel.write(gguf_file, f"{name}/{gguf_file.name}")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def _write_shape(writer: gguf.GGUFWriter, loaded: LoadedModel) -> None:
    config = loaded.model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)


def _write_tokenizer(writer: gguf.GGUFWriter, loaded: LoadedModel) -> None:
    tokenizer = loaded.codec.tokenizer
    ids = tokenizer.get_vocab()
    tokens = sorted(ids, key=lambda token: int(ids[token]))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in (PAD, START, END) else NORMAL for token in tokens])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(CHATML)


def _interleaved(loaded: LoadedModel, name: str, weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """GGUF has a Llama's query and key rows in the order of the first rotary implementation."""
    config = loaded.model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return weight
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))
