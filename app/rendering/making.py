"""How the model was made: the training with its curves, cost and time, and which things exactly."""

from collections.abc import Mapping, Sequence

from app.contracts.evaluation import Curve, Report, TrainingSummary
from app.contracts.objectives import Dpo
from app.contracts.report_table import percent_text
from app.contracts.value import Value
from app.rendering import figures
from app.rendering.document import Block, Bullets, Paragraph, Plot, Section, Table
from app.rendering.numbers import count_text, number_text, seconds_text, time_text

_FACTS = ("What", "Value")
_ELSEWHERE = "not known: the adapter was not trained here"
_NAMES = {
    "train_loss": "Loss",
    "valid_loss": "Loss on the validation file",
    "train_accuracy": "Token accuracy",
    "valid_mean_token_accuracy": "Token accuracy on the validation file",
}
_NAMES_OF_PREFERENCES = {
    **_NAMES,
    "train_accuracy": "Pairs with the preferred answer ahead",
    "valid_mean_token_accuracy": "Pairs with the preferred answer ahead, in the validation file",
}
_TOGETHER = {"train_loss": "valid_loss", "train_accuracy": "valid_mean_token_accuracy"}
"""Curves that are drawn into one figure: the training's and the validation's."""


def training(report: Report) -> Section | None:
    """Settings, counters and curves; None for an adapter that was made elsewhere."""
    summary = report.training
    blocks: list[Block] = []
    if summary is not None:
        blocks.append(Table("The training run", _FACTS, tuple(_training_facts(summary))))
        if report.provenance.continued_from is not None:
            blocks.append(Paragraph(_continued(report.provenance.continued_from)))
        if summary.notes:
            blocks.append(Bullets(tuple(summary.notes)))
        if summary.counters:
            rows = tuple((name, number_text(value)) for name, value in sorted(summary.counters.items()))
            blocks.append(Table("Counters of objective and method at the end", ("Counter", "Value"), rows))
    if report.curves:
        is_of_preferences = summary is not None and isinstance(summary.objective, Dpo)
        blocks += _curves(report.curves, _NAMES_OF_PREFERENCES if is_of_preferences else _NAMES)
    return Section("training", "What did the training do?", tuple(blocks)) if blocks else None


def cost(report: Report) -> Section:
    """Where the time went."""
    found = report.cost
    trained = report.training.seconds if report.training is not None else None
    training_seconds = found.training_seconds if found is not None else trained
    total = report.evaluation_seconds if found is None else found.evaluation_seconds
    rows = [("Training", seconds_text(training_seconds)), ("Evaluation", seconds_text(total))]
    if training_seconds:
        rows.append(("Evaluation as a share of the training's time", percent_text(total / training_seconds)))
    if found is not None:
        of_base = seconds_text(found.base_seconds) if found.base_seconds else "none: kept from an earlier job"
        rows.append(("Of that for the base's answers", of_base))
        rows += [(f"Of that for {name}", seconds_text(seconds)) for name, seconds in found.parts.items()]
    return Section("cost", "Cost and time", (Table("Where the time went", ("Part", "Time"), tuple(rows)),))


def not_run(report: Report) -> Section | None:
    """Benchmarks without a result."""
    if not report.benchmarks_not_run:
        return None
    note = Paragraph("A benchmark without a result says nothing: neither that there is harm nor that there is none.")
    items = tuple(f"{left.name}: {left.reason}" for left in report.benchmarks_not_run)
    return Section("not-run", "Not run", (Bullets(items), note))


def provenance(report: Report) -> Section:
    """Versions and hashes."""
    found = report.provenance
    facts = [
        ("Report", f"{report.job_id}, version {report.report_version} of the format"),
        ("Made at", time_text(report.created_at)),
        ("Base", f"{found.base} ({found.base_hash})"),
        ("Prepared base", found.prepared_hash),
        *([("Training went on from", found.continued_from)] if found.continued_from else []),
        *([("That one's archive, SHA-256", found.start_adapter_sha256)] if found.start_adapter_sha256 else []),
        ("Training file, SHA-256", found.training_file_sha256 or _ELSEWHERE),
        *([("Adapter, SHA-256", found.adapter_sha256)] if found.adapter_sha256 else []),
        ("Chat template, SHA-256", found.chat_template_sha256),
        ("Seed", _ELSEWHERE if found.seed is None else str(found.seed)),
        *((f"Version of {name}", version) for name, version in sorted(found.versions.items())),
    ]
    return Section("provenance", "Versions and hashes", (Table("Which things, exactly", _FACTS, tuple(facts)),))


def _continued(model: str) -> str:
    return (
        f"Training went on from {model}. Safety was held to the aligned base and is measured against it, not against "
        "where this training began: what the earlier training changed is counted in."
    )


def _training_facts(summary: TrainingSummary) -> list[tuple[str, str]]:
    average = [] if summary.ema is None else [("Average over the steps", "yes"), *_settings("Average's", summary.ema)]
    merge = [] if summary.merge is None else [("Merge", summary.merge.name), *_settings("Merge's", summary.merge)]
    objective = summary.objective
    return [
        ("Objective", objective.name),
        *_settings("Objective's", objective),
        ("Method", summary.method.name),
        *_settings("Setting", summary.method),
        *average,
        *merge,
        (
            f"{objective.rows_are.capitalize()}, epochs, steps",
            f"{count_text(summary.num_rows)}, {summary.num_epochs}, {count_text(summary.num_steps)}",
        ),
        ("Trained tokens", count_text(summary.trained_tokens)),
        ("Replayed tokens", count_text(summary.replayed_tokens)),
        ("Processed tokens", count_text(summary.processed_tokens)),
        ("Loss, first and last", f"{summary.first_loss:.3f}, {summary.last_loss:.3f}"),
    ]


def _settings(what: str, config: Value) -> list[tuple[str, str]]:
    """One row a setting; those of an inner object by their path, as in a request."""
    rows = []
    for name, value in config.model_dump(exclude={"name"}).items():
        inner = {f"{name}.{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
        rows += [(f"{what} {path}", "not set" if part is None else str(part)) for path, part in inner.items()]
    return rows


def _curves(curves: Sequence[Curve], names: Mapping[str, str]) -> list[Block]:
    known = {curve.name: curve for curve in curves if curve.steps}
    if not known:
        return []
    rows = tuple(
        (
            names.get(name, name),
            *(number_text(value, 4) for value in (c.values[0], c.values[-1], min(c.values), max(c.values))),
        )
        for name, c in known.items()
    )
    header = ("Curve", "First", "Last", "Least", "Most")
    second = {_TOGETHER[name] for name in known if name in _TOGETHER}
    groups = [
        [known[part] for part in (name, _TOGETHER.get(name)) if part in known] for name in known if name not in second
    ]
    return [*(_curve_plot(group, names) for group in groups), Table("Curves in numbers", header, rows)]


def _curve_plot(group: Sequence[Curve], names: Mapping[str, str]) -> Plot:
    first = group[0]
    named = [curve.model_copy(update={"name": names.get(curve.name, curve.name)}) for curve in group]
    ends = "; ".join(
        f"{curve.name} from {number_text(curve.values[0], 4)} at step {curve.steps[0]} to "
        f"{number_text(curve.values[-1], 4)} at step {curve.steps[-1]}"
        for curve in named
    )
    return Plot(names.get(first.name, first.name), f"{ends}.", figures.curves(named))
