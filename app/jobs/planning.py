"""From a request to a plan: every "auto" resolved, every setting checked, nothing left to guess."""

import secrets
from typing import Any

from pydantic import ValidationError

from app.contracts.bases import TrainingDefaults
from app.contracts.methods import DEFAULT_METHOD, METHOD_CONFIGS, MethodConfig
from app.contracts.plan import LoraPlan, TrainingPlan
from app.errors import InvalidRequestError, UnsupportedError, invalid_parameters
from app.jobs.schemas import Hyperparameters, JobCreate, SafetyRequest


def resolve_plan(request: JobCreate, defaults: TrainingDefaults) -> tuple[TrainingPlan, dict[str, Any]]:
    """The plan, and OpenAI's three hyperparameters as numbers to show.

    Raises:
        InvalidRequestError: A setting is unknown, out of bounds, or not supported.
    """
    asked, path = _hyperparameters(request)
    multiplier = 1.0 if asked.learning_rate_multiplier is None else asked.learning_rate_multiplier
    learning_rate = defaults.learning_rate * multiplier
    if not 0.0 < learning_rate <= 1.0:
        what = (
            f"The learning rate would be {learning_rate:g}: this base's is {defaults.learning_rate:g}, and 1 the most."
        )
        raise InvalidRequestError(what, param=f"{path}.learning_rate_multiplier")
    shown = {
        "batch_size": asked.batch_size or defaults.batch_size,
        "learning_rate_multiplier": multiplier,
        "n_epochs": asked.n_epochs or defaults.num_epochs,
    }
    plan = TrainingPlan(
        method=_safety_method(request.safety),
        lora=LoraPlan(rank=defaults.lora_rank, alpha=2 * defaults.lora_rank),
        num_epochs=shown["n_epochs"],
        batch_size=shown["batch_size"],
        learning_rate=learning_rate,
        seed=secrets.randbelow(2**31) if request.seed is None else request.seed,
    )
    return plan, shown


def _hyperparameters(request: JobCreate) -> tuple[Hyperparameters, str]:
    """What was asked for, and the path under which it was."""
    if request.integrations:
        raise UnsupportedError("Integrations are not supported: leave them out.", param="integrations")
    method = request.method
    if method is None:
        return request.hyperparameters or Hyperparameters(), "hyperparameters"
    if method.type != "supervised" or method.dpo is not None or method.reinforcement is not None:
        what = "Only the method supervised is supported; how safety is kept is chosen under safety.method."
        raise UnsupportedError(what, param="method.type")
    inner = method.supervised.hyperparameters if method.supervised else None
    if inner is not None and request.hyperparameters is not None:
        what = "Give hyperparameters or method.supervised.hyperparameters, not both."
        raise InvalidRequestError(what, param="hyperparameters")
    if inner is not None:
        return inner, "method.supervised.hyperparameters"
    return request.hyperparameters or Hyperparameters(), "hyperparameters"


def _safety_method(request: SafetyRequest | None) -> MethodConfig:
    name = DEFAULT_METHOD if request is None else request.method
    config = METHOD_CONFIGS.get(name)
    if config is None:
        what = f"Unknown safety method. Use one of: {', '.join(METHOD_CONFIGS)}."
        raise InvalidRequestError(what, param="safety.method", code="unknown_method")
    settings = {} if request is None else request.hyperparameters
    allowed = [field for field in config.model_fields if field != "name"]
    unknown = next((key for key in settings if key not in allowed), None)
    if unknown is not None:
        names = ", ".join(allowed) if allowed else "none"
        what = f"Unknown setting of the method {name}. Allowed: {names}."
        raise InvalidRequestError(what, param=f"safety.hyperparameters.{unknown[:64]}", code="unknown_parameter")
    try:
        return config.model_validate(settings)
    except ValidationError as error:
        raise invalid_parameters(error.errors(), prefix=("safety", "hyperparameters")) from error
