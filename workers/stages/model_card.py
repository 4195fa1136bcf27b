"""The README.md in an adapter archive."""

from pathlib import Path
from typing import Any

from app.contracts.evaluation import Report
from app.contracts.modifiers import with_modifiers
from app.rendering.escaping import escape_markdown
from app.rendering.markdown import to_sections

_USE = """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({base!r})
model = PeftModel.from_pretrained(model, {folder!r})
tokenizer = AutoTokenizer.from_pretrained(".")
```
"""


def model_card(report: Report, record: dict[str, Any]) -> str:
    """Markdown: what this is, how to load it, what was measured.

    Args:
        report: The job's report.
        record: The prepared base's record (prepared.json).
    """
    is_aligned = bool(record["recipe"]["align"])
    lines = [
        "---",
        "library_name: peft",
        f"base_model: {report.provenance.base}",
        "tags: [lora, safety, unforgotten]",
        "---",
        f"# {escape_markdown(report.model)}",
        "",
        _what(report),
        "",
        "## Loading",
        "",
    ]
    if is_aligned:
        lines += [
            _two_bases(report, public_name(record["source"])),
            "",
            _USE.format(base=_loadable(record["source"]), folder="for_original_base"),
        ]
    else:
        lines += [
            f"The adapter is for `{public_name(record['source'])}`.",
            "",
            _USE.format(base=_loadable(record["source"]), folder="."),
        ]
    rank = "the rank in adapter_config.json"
    lines += [
        f"Servers need a maximum LoRA rank of at least {rank} (vLLM: `--max-lora-rank`).",
        "",
        to_sections(report),
    ]
    return "\n".join(lines) + "\n"


def public_name(source: str) -> str:
    """What to load the original base by: the hub's name for `hf:` sources, else the source itself.

    Of a `path:` source only the folder's name is told: tenants learn no paths of the provider's machine.
    """
    kind, _, rest = source.partition(":")
    if kind == "path":
        return Path(rest).name
    return rest.split("@", 1)[0] if kind == "hf" else source


def _loadable(source: str) -> str:
    """What stands in the example: only the hub's names can be loaded as they are."""
    return public_name(source) if source.startswith("hf:") else "FOLDER_OF_THE_BASE"


def _what(report: Report) -> str:
    training = report.training
    if training is None:
        return f"A LoRA adapter for `{report.provenance.base}`."
    how = with_modifiers(f"the method `{training.method.name}`", training.ema, training.merge)
    origin = report.provenance.continued_from
    start = "" if origin is None else f", going on from `{origin}`"
    return (
        f"A LoRA adapter for `{report.provenance.base}`, trained{start} with {how} on {training.num_rows} "
        f"{training.objective.rows_are} ({training.num_epochs} epochs)."
    )


def _two_bases(report: Report, source: str) -> str:
    return (
        f"This folder's adapter starts from the provider's *aligned* base (theta_safe, `{report.provenance.base}`, "
        f"hash `{report.provenance.base_hash[:16]}`). `for_original_base/` holds the same model relative to the public "
        f"weights (`{source}`): the alignment's and this job's updates concatenated. It is the same up to the "
        "rounding of theta_safe's weights: hardly anything in float32; in bfloat16 or float16 the merged weights were "
        "rounded, and answers can differ from the measured ones here and there."
    )
