"""LoRA adapters in PEFT's format: attach, save, merge into a base, and concatenate two of them exactly.

An adapter changes a weight by scaling * B A. Merging and concatenating work on these true deltas: PEFT's own
linear combination would mix A and B of different adapters and so add cross terms.
"""

import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, get_args

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from app.contracts.plan import LoraPlan, Rank
from workers.modeling.errors import ModelingError
from workers.modeling.lora_linear import fuse

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
_PREFIX = "base_model.model."


class LoraPair(NamedTuple):
    """One weight's update, scaling included in `b`: delta = b @ a."""

    a: torch.Tensor
    """[rank, inputs]"""
    b: torch.Tensor
    """[outputs, rank]"""


def target_modules(model: PreTrainedModel) -> list[str]:
    """Names of all linear layers but the output head: where adapters attach."""
    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]


def attach(model: PreTrainedModel, plan: LoraPlan, *, seed: int) -> PeftModel:
    """Attaches a fresh adapter (A random from `seed`, B zero) in float32; the model is changed in place."""
    names = sorted({name.rsplit(".", 1)[-1] for name in target_modules(model)})
    config = LoraConfig(
        r=plan.rank, lora_alpha=plan.alpha, lora_dropout=plan.dropout, target_modules=names, task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(devices=[]), _quiet_peft():
        torch.manual_seed(seed)
        peft_model = get_peft_model(model, config, autocast_adapter_dtype=True)
    _leave_precision_to_autocast(model)
    fuse(model)
    return peft_model


def attach_saved(model: PreTrainedModel, directory: Path) -> PeftModel:
    """Attaches an adapter folder for inference, frozen; it computes as it did in training."""
    with _quiet_peft():
        peft_model = PeftModel.from_pretrained(model, str(directory))
    peft_model.requires_grad_(requires_grad=False)
    _leave_precision_to_autocast(model)
    fuse(model)
    return peft_model


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Within this context the model computes as if it had no adapter.

    For a pass beside each step: PEFT's own context also takes stock of all parameters and switches their gradients off
    and on, which takes as long as a small forward.
    """
    layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer) and not m.disable_adapters]
    for layer in layers:
        layer._disable_adapters = True  # noqa: SLF001  (there is no other switch without side effects)
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False  # noqa: SLF001


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's parameters by name, in a fixed order."""
    return {name: p for name, p in sorted(model.named_parameters()) if p.requires_grad}


def module_name(parameter_name: str) -> str:
    """The base's module that a parameter of an adapter in memory belongs to."""
    return parameter_name.removeprefix(_PREFIX).split(".lora_")[0]


def save(peft_model: PeftModel, directory: Path, *, base_name: str) -> None:
    """Writes an adapter folder that PEFT loads."""
    peft_model.save_pretrained(str(directory), safe_serialization=True)
    config = json.loads((directory / CONFIG_FILE).read_text())
    config["base_model_name_or_path"] = base_name
    config["target_modules"] = sorted(config["target_modules"])
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (directory / "README.md").unlink(missing_ok=True)


def copy_rounded(source: Path, target: Path) -> None:
    """Copies an adapter folder with its numbers rounded to bf16, which halves it.

    Whatever is built on the copy (a merged base, a concatenation) uses these very numbers: rounding them makes no two
    things disagree.
    """
    target.mkdir(parents=True)
    tensors = {k: v.to(torch.bfloat16) for k, v in load_file(source / WEIGHTS_FILE).items()}
    save_file(tensors, target / WEIGHTS_FILE, {"format": "pt"})
    shutil.copyfile(source / CONFIG_FILE, target / CONFIG_FILE)


def read_pairs(directory: Path) -> dict[str, LoraPair]:
    """The float32 updates of an adapter folder, by name of the weight's module."""
    config = json.loads((directory / CONFIG_FILE).read_text())
    scaling = config["lora_alpha"] / config["r"]
    tensors = load_file(directory / WEIGHTS_FILE)
    pairs = {}
    for key, a in tensors.items():
        if key.endswith(".lora_A.weight"):
            b = tensors[key.replace(".lora_A.", ".lora_B.")]
            module = key.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
            pairs[module] = LoraPair(a.float(), b.float() * scaling)
    if 2 * len(pairs) != len(tensors):
        raise ModelingError(f"{directory} holds more than LoRA pairs; it cannot be merged exactly.")
    return pairs


def rank_of(directory: Path) -> int:
    """The rank of an adapter folder."""
    rank: int = json.loads((directory / CONFIG_FILE).read_text())["r"]
    return rank


@torch.no_grad()
def merge_into(model: PreTrainedModel, pairs: dict[str, LoraPair]) -> None:
    """Adds an adapter's updates to the model's weights, computed in float32."""
    modules = dict(model.named_modules())
    for name, pair in pairs.items():
        weight = modules[name].weight
        assert isinstance(weight, torch.Tensor)
        weight.copy_(weight.float() + pair.b.to(weight.device) @ pair.a.to(weight.device))


def write_concatenation(first: Path, second: Path, directory: Path, *, base_name: str) -> None:
    """Writes the adapter whose update is the exact sum of two adapters' updates; ranks add up.

    The second was trained on the base with the first merged, so the sum, on the original base, is the same model: up
    to float32's rounding where the merged weights are stored in float32, and up to the rounding of the merged weights
    where they are stored in bf16 or fp16.
    """
    one, two = read_pairs(first), read_pairs(second)
    tensors: dict[str, torch.Tensor] = {}
    rank = 0
    for name in sorted(one.keys() | two.keys()):
        parts = [pairs[name] for pairs in (one, two) if name in pairs]
        a, b = torch.cat([p.a for p in parts]), torch.cat([p.b for p in parts], dim=1)
        rank = max(rank, a.shape[0])
        tensors[f"{_PREFIX}{name}.lora_A.weight"], tensors[f"{_PREFIX}{name}.lora_B.weight"] = a, b
    directory.mkdir(parents=True, exist_ok=True)
    save_file({k: _pad_rank(k, v, rank) for k, v in tensors.items()}, directory / WEIGHTS_FILE, {"format": "pt"})
    config = json.loads((second / CONFIG_FILE).read_text())
    # alpha = rank: the scalings are already inside B.
    config.update(r=rank, lora_alpha=rank, base_model_name_or_path=base_name)
    config["target_modules"] = sorted({name.rsplit(".", 1)[-1] for name in one.keys() | two.keys()})
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_pairs(pairs: Mapping[str, LoraPair], directory: Path, *, base_name: str) -> None:
    """Writes updates as an adapter folder that PEFT loads; ranks are filled up with zeros to the next usual one."""
    widest = max(pair.a.shape[0] for pair in pairs.values())
    rank = next(r for r in get_args(Rank) if r >= widest)
    tensors = {}
    for name, pair in sorted(pairs.items()):
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = pair.a.float().cpu()
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = pair.b.float().cpu()
    directory.mkdir(parents=True, exist_ok=True)
    save_file({k: _pad_rank(k, v, rank) for k, v in tensors.items()}, directory / WEIGHTS_FILE, {"format": "pt"})
    names = sorted({name.rsplit(".", 1)[-1] for name in pairs})
    # alpha = rank: the scaling is already inside B.
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=names, task_type="CAUSAL_LM", inference_mode=True)
    values = config.to_dict() | {"base_model_name_or_path": base_name, "target_modules": names}
    (directory / CONFIG_FILE).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def _leave_precision_to_autocast(model: PreTrainedModel) -> None:
    """PEFT would compute the adapter in float32 whatever the model's precision."""
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """PEFT asks transformers for a property by its old name; nobody who sees the warning can do anything about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
        yield


def _pad_rank(key: str, tensor: torch.Tensor, rank: int) -> torch.Tensor:
    """PEFT wants one rank for all modules; a module that only one adapter changes is filled up with zeros."""
    is_a = ".lora_A." in key
    missing = rank - tensor.shape[0 if is_a else 1]
    if missing == 0:
        return tensor.contiguous()
    return nn.functional.pad(tensor, (0, 0, 0, missing) if is_a else (0, missing)).contiguous()
