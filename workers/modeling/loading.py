"""From a folder to a model and its chat codec. Safetensors only, no remote code."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig, PreTrainedModel
from transformers.integrations import validate_bnb_backend_availability
from transformers.utils import logging as transformers_logging

from app.contracts.plan import Quantisation
from workers.modeling.chat import ChatCodec
from workers.modeling.errors import QuantisationUnavailable, SourceError
from workers.modeling.text_parts import load_codec

# Loading takes a second or two and happens several times a job: bars of it would bury what a user waits for.
transformers_logging.disable_progress_bar()

Precision = Literal["auto", "fp32", "bf16"]
_BLOCK = 64
"""Weights that share a scale in 4 bits."""


class LoadedModel(NamedTuple):
    """A model with the codec that belongs to it."""

    model: PreTrainedModel
    codec: ChatCodec


def load(
    directory: Path,
    *,
    precision: Precision = "auto",
    device: str | None = None,
    quantisation: Quantisation = "none",
) -> LoadedModel:
    """Loads a model folder for training or evaluation (weights frozen, evaluation mode).

    Args:
        directory: The model folder.
        precision: Of what is not quantised, and of what is computed.
        device: Where to; by default CUDA where there is one.
        quantisation: `nf4` holds all linear layers but the output head in 4 bits (QLoRA: NormalFloat with doubly
            quantised scales). Embeddings and head stay as they are.

    Raises:
        SourceError: The folder holds no model that may be loaded.
        QuantisationUnavailable: Quantised loading is not possible here; the model is never loaded unquantised instead.
    """
    if not (directory / "config.json").is_file():
        raise SourceError(f"{directory} has no config.json: it is not a model folder.")
    target = device or default_device()
    codec = load_codec(directory)
    dtype = resolve_precision(precision, target)
    model = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=dtype,
        trust_remote_code=False,
        local_files_only=True,
        use_safetensors=True,
        **(_nf4(target, dtype) if quantisation == "nf4" else {}),
    )
    if quantisation == "nf4":
        _keep_quantised(model)
    model.requires_grad_(requires_grad=False)
    model.eval()
    # Settings that a model ships (a repetition penalty, say) would leak into every greedy answer.
    model.generation_config = GenerationConfig()
    return LoadedModel(model if quantisation == "nf4" else model.to(target), codec)


def is_quantised(model: PreTrainedModel) -> bool:
    """Whether the model's linear layers are held in fewer bits than it computes in."""
    return bool(getattr(model, "is_quantized", False))


def default_device() -> str:
    """The device everything runs on: CUDA where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve_precision(precision: Precision, device: str) -> torch.dtype:
    """`auto` is bf16 where the device multiplies it natively, else fp32."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bf16" else torch.float32
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if _cpu_multiplies_bf16() else torch.float32


def _cpu_multiplies_bf16() -> bool:
    """Whether this CPU has bf16 dot products (AVX512_BF16 or AMX); elsewhere bf16 is emulated and slow."""
    return bool(torch.backends.mkldnn.is_available()) and (  # type: ignore[no-untyped-call]
        torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001  (torch offers no public name)
        or torch.cpu._is_amx_tile_supported()  # noqa: SLF001
    )


def autocast(model: PreTrainedModel) -> torch.autocast:
    """Mixed precision for a bf16 model with a float32 adapter; does nothing for a float32 model."""
    weight = model.get_input_embeddings().weight
    return torch.autocast(weight.device.type, dtype=torch.bfloat16, enabled=weight.dtype == torch.bfloat16)


def use_threads(num_threads: int) -> None:
    """Sets torch's CPU threads; 0 means all cores this process may run on."""
    torch.set_num_threads(num_threads or len(os.sched_getaffinity(0)))


def _nf4(device: str, dtype: torch.dtype) -> dict[str, Any]:
    """How transformers is asked for 4 bits; the weights go to the device, and are rounded there, as they are read."""
    for package in ("bitsandbytes", "accelerate"):
        if find_spec(package) is None:
            raise QuantisationUnavailable(
                f"Training on a base in 4 bits needs {package}: pip install 'unforgotten[quantised]'"
            )
    try:
        validate_bnb_backend_availability(raise_exception=True)
    except RuntimeError as error:
        raise QuantisationUnavailable(f"bitsandbytes does not support this machine's device: {error}") from error
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    place = torch.device("cuda", torch.cuda.current_device()) if device == "cuda" else torch.device(device)
    return {"quantization_config": config, "device_map": {"": place}}


def _keep_quantised(model: PreTrainedModel) -> None:
    """Checks that everything is in 4 bits that should be, and lets it stay as it is."""
    from bitsandbytes.nn import Linear4bit

    head = model.get_output_embeddings()
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    wrong = next((name for name, m in linears.items() if isinstance(m, Linear4bit) == (m is head)), None)
    if wrong is not None:
        what = "is" if linears[wrong] is head else "is not"
        raise QuantisationUnavailable(f"{type(model).__name__}: {wrong} {what} held in 4 bits, against what was asked.")
    odd = next((name for name, m in linears.items() if m is not head and m.in_features % _BLOCK), None)
    if odd is not None and model.device.type == "cpu":
        # Up to 0.50 at least; blocks that span rows get the scale of another one.
        raise QuantisationUnavailable(
            f"{odd} has {linears[odd].in_features} inputs: on a CPU, bitsandbytes misreads 4-bit weights whose rows "
            f"are no multiple of {_BLOCK}."
        )
    for module in linears.values():
        if isinstance(module, Linear4bit):
            # Else the first forward without gradients would lay the weights out anew, for another kernel that rounds
            # their scales: teacher and student would differ, and a resumed run from one that was never stopped.
            module.support_avx512bf16_for_cpu = False
