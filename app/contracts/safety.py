"""What somebody asks for about safety, as JSON, becomes the configurations of a plan.

One reading for `POST /v1/fine_tuning/jobs` and the command line: unknown names and settings, wrong types (nothing is
taken for a number but a number), bounds and combinations are refused with the place and what to do instead.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar, cast, get_args

from pydantic import ValidationError

from app.contracts.gate import GatePolicy, OnFail
from app.contracts.methods import METHOD_CONFIGS, Der, MethodConfig
from app.contracts.modifiers import MERGE_CONFIGS, Ema, MergeConfig
from app.contracts.objectives import SUPERVISED, Objective
from app.contracts.plan import TrainingPlan
from app.contracts.value import INVALID_COMBINATION, Value

V = TypeVar("V", bound=Value)

_MAX_SHOWN: Final = 64
"""Characters of a name that a client made up which are repeated to it."""


class SafetyRefused(ValueError):
    """A wish that cannot be honoured.

    Args:
        message: What is wrong and what to do about it, beside the path.
        path: Names from the `safety` object down to the setting that is at fault.
        code: For programs: `unknown_method`, `unknown_merge`, `unknown_benchmark`, `unknown_parameter`,
            `missing_required_parameter`, `invalid_type`, `invalid_value` or `invalid_combination`.
    """

    def __init__(self, message: str, path: Sequence[str], code: str = "invalid_value") -> None:
        super().__init__(message)
        self.message = message
        self.path = tuple(path)
        self.code = code


class Safety(NamedTuple):
    """How a model's safety is kept."""

    method: MethodConfig = Der()
    ema: Ema | None = None
    merge: MergeConfig | None = None


def safety_from(
    method: str,
    settings: Mapping[str, object],
    *,
    ema: object = None,
    merge: object = None,
    objective: Objective = SUPERVISED,
) -> Safety:
    """A method with its settings, what is averaged, and what is merged afterwards.

    Args:
        method: One of METHOD_CONFIGS.
        settings: The method's, by name.
        ema: true, or the settings of an average over the steps; nothing, null or false for none.
        merge: The name and the settings of a merge in one object; nothing or null for none.
        objective: What is trained: not every method goes with every one.

    Raises:
        SafetyRefused: Anything about them is wrong, or they make no sense together.
    """
    safety = Safety(_method(method, settings), _ema(ema), _merge(merge))
    try:
        TrainingPlan(method=safety.method, ema=safety.ema, merge=safety.merge, objective=objective)
    except ValidationError as error:
        raise _refused(error, {}, ()) from error
    return safety


def stricter(provider: GatePolicy, asked: object, benchmarks: Sequence[str]) -> GatePolicy:
    """The provider's policy with what a tenant asks of it, each rule as it is or stricter.

    Args:
        provider: The service's own.
        asked: Fields of a policy by name; nothing or null changes nothing. `require_benchmarks` adds to the provider's.
        benchmarks: Names of those that the service runs.

    Raises:
        SafetyRefused: Something in it is wrong, or looser than the provider's.
    """
    if asked is None:
        return provider
    if not isinstance(asked, Mapping):
        what = 'Give the bounds that are to be stricter as an object: {"max_harmful_rate": 0.1}.'
        raise SafetyRefused(what, ("gate",), "invalid_type")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in asked.items()}
    wanted = _validated(GatePolicy, given, ("gate",), "the gate")
    for field in given:
        _require_stricter(field, getattr(provider, field), getattr(wanted, field))
    changed = {field: getattr(wanted, field) for field in given}
    if "require_benchmarks" in changed:
        unknown = next((name for name in wanted.require_benchmarks if name not in benchmarks), None)
        if unknown is not None:
            what = f"This service does not run {unknown[:_MAX_SHOWN]}. It runs: {', '.join(benchmarks)}."
            raise SafetyRefused(what, ("gate", "require_benchmarks"), "unknown_benchmark")
        changed["require_benchmarks"] = tuple(dict.fromkeys((*provider.require_benchmarks, *wanted.require_benchmarks)))
    return provider.model_copy(update=changed)


def _require_stricter(field: str, provider: Any, asked: Any) -> None:
    if field == "require_benchmarks":
        return
    if field == "on_fail":
        order: Sequence[str] = get_args(OnFail)
        is_looser, bound = order.index(asked) < order.index(provider), f"at least as strict as «{provider}»"
    elif field == "min_prompts":
        is_looser, bound = asked < provider, f"{provider} or more"
    else:
        # None is no rule at all.
        is_looser = provider is not None and (asked is None or asked > provider)
        bound = f"{provider} or less"
    if is_looser:
        what = f"A job's gate can only be stricter than the service's: give {bound}, or leave {field} out."
        raise SafetyRefused(what, ("gate", field))


def _method(name: str, settings: Mapping[str, object]) -> MethodConfig:
    config = METHOD_CONFIGS.get(name)
    if config is None:
        what = f"Unknown safety method. Use one of: {', '.join(METHOD_CONFIGS)}."
        raise SafetyRefused(what, ("method",), "unknown_method")
    return _validated(config, settings, ("hyperparameters",), f"the method {name}")


def _ema(asked: object) -> Ema | None:
    if asked is None or asked is False:
        return None
    if asked is True:
        return Ema()
    if not isinstance(asked, Mapping):
        what = 'Give true for an average over the steps, or its settings as an object: {"decay": 0.9}.'
        raise SafetyRefused(what, ("ema",), "invalid_type")
    return _validated(Ema, asked, ("ema",), "ema")


def _merge(asked: object) -> MergeConfig | None:
    if asked is None:
        return None
    names = ", ".join(MERGE_CONFIGS)
    if not isinstance(asked, Mapping):
        what = f'Give a merge as an object with its name: {{"name": "wise_ft"}}. There are {names}.'
        raise SafetyRefused(what, ("merge",), "invalid_type")
    if "name" not in asked:
        raise SafetyRefused(f"Name the merge: one of {names}.", ("merge", "name"), "missing_required_parameter")
    name = asked["name"]
    config = MERGE_CONFIGS.get(name) if isinstance(name, str) else None
    if config is None:
        raise SafetyRefused(f"Unknown merge. Use one of: {names}.", ("merge", "name"), "unknown_merge")
    settings = {key: value for key, value in asked.items() if key != "name"}
    return _validated(config, settings, ("merge",), f"the merge {name}")


def _validated(config: type[V], given: Mapping[str, object], path: tuple[str, ...], what: str) -> V:
    allowed = [field for field in config.model_fields if field != "name"]
    unknown = next((key for key in given if key not in allowed), None)
    if unknown is not None:
        hint = f"Allowed: {', '.join(allowed)}." if allowed else f"{what[0].upper()}{what[1:]} has none: leave it out."
        message = f"Unknown setting of {what}. {hint}"
        raise SafetyRefused(message, (*path, unknown[:_MAX_SHOWN]), "unknown_parameter")
    try:
        return config.model_validate(dict(given), strict=True)
    except ValidationError as error:
        raise _refused(error, given, path) from error


def _refused(error: ValidationError, given: Mapping[str, object], path: tuple[str, ...]) -> SafetyRefused:
    """The first of pydantic's errors as ours; further ones are counted."""
    found = error.errors(include_url=False, include_input=False)
    first = found[0]
    kind, message = first["type"], first["msg"]
    place = (*path, *_place(first["loc"], kind, given))
    if kind == INVALID_COMBINATION:
        return SafetyRefused(message, (*place, first["ctx"]["setting"]), INVALID_COMBINATION)
    if kind == "extra_forbidden":
        return SafetyRefused(f"Unknown setting {place[-1]}.", place, "unknown_parameter")
    if kind == "missing":
        return SafetyRefused(f"Missing setting {place[-1]}.", place, "missing_required_parameter")
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return SafetyRefused(f"{message}{more}", place, "invalid_type" if kind.endswith("_type") else "invalid_value")


def _place(location: Sequence[int | str], kind: str, given: object) -> list[str]:
    """Where an error is in what was given: without the names by which pydantic tells a union's members apart."""
    place, value = [], given
    for index, part in enumerate(location):
        is_there = isinstance(value, Mapping) and part in value
        if is_there or (kind == "missing" and index == len(location) - 1):
            place.append(str(part)[:_MAX_SHOWN])
            value = cast("Mapping[Any, object]", value)[part] if is_there else None
    return place
