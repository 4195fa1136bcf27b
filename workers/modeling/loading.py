"""From a folder to a model and its chat codec. Safetensors only, no remote code."""

import os
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from workers.modeling.chat import ChatCodec
from workers.modeling.errors import SourceError

# Loading takes a second or two and happens several times a job: bars of it would bury what a user waits for.
transformers_logging.disable_progress_bar()

Precision = Literal["auto", "fp32", "bf16"]


class LoadedModel(NamedTuple):
    """A model with the codec that belongs to it."""

    model: PreTrainedModel
    codec: ChatCodec


def load(directory: Path, *, precision: Precision = "auto", device: str | None = None) -> LoadedModel:
    """Loads a model folder for training or evaluation (weights frozen, evaluation mode).

    Raises:
        SourceError: The folder holds no model that may be loaded.
    """
    if not (directory / "config.json").is_file():
        raise SourceError(f"{directory} has no config.json: it is not a model folder.")
    target = device or default_device()
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=resolve_precision(precision, target),
        trust_remote_code=False,
        local_files_only=True,
        use_safetensors=True,
    )
    model.requires_grad_(requires_grad=False)
    model.eval()
    # Settings that a model ships (a repetition penalty, say) would leak into every greedy answer.
    model.generation_config = GenerationConfig()
    return LoadedModel(model.to(target), ChatCodec(tokenizer))


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
