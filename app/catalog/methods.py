"""What `GET /v1/safety/methods` says: methods, the average, and the merges, straight from their contracts."""

from typing import get_args

from app.catalog.schemas import MethodKind, SafetyMethod
from app.contracts.methods import DEFAULT_METHOD, METHOD_CONFIGS, MethodConfig, MethodSettings
from app.contracts.modifiers import MERGE_CONFIGS, Ema, MergeConfig
from app.contracts.objectives import ObjectiveName
from app.contracts.plan import can_be_merged

_EMA = Ema.model_fields["name"].default


def safety_methods() -> list[SafetyMethod]:
    """Methods first, then what is combined with one."""
    methods, merges = list(METHOD_CONFIGS), list(MERGE_CONFIGS)
    entries = [
        _entry(
            name,
            config,
            kind="method",
            combines_with=[_EMA, *(merge for merge in merges if can_be_merged(name, merge))],
            example={"method": name},
        )
        for name, config in METHOD_CONFIGS.items()
    ]
    ema = {"method": DEFAULT_METHOD, _EMA: True}
    entries.append(_entry(_EMA, Ema, kind="modifier", combines_with=[*methods, *merges], example=ema))
    entries += [
        _entry(
            name,
            config,
            kind="merge",
            combines_with=[*(method for method in methods if can_be_merged(method, name)), _EMA],
            example={"method": DEFAULT_METHOD, "merge": {"name": name}},
        )
        for name, config in MERGE_CONFIGS.items()
    ]
    return entries


def _entry(
    name: str,
    config: type[MethodConfig | Ema | MergeConfig],
    *,
    kind: MethodKind,
    combines_with: list[str],
    example: dict[str, object],
) -> SafetyMethod:
    return SafetyMethod(
        name=name,
        kind=kind,
        description=" ".join((config.__doc__ or name).split()),
        is_default=name == DEFAULT_METHOD,
        needs=list(config.needs),
        method_types=list(config.objectives if issubclass(config, MethodSettings) else get_args(ObjectiveName)),
        combines_with=combines_with,
        example=example,
        settings=config.model_json_schema(),
    )
