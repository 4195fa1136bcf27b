"""From a request to a plan: every "auto" resolved, every setting checked, nothing left to guess."""

import secrets
from collections.abc import Mapping
from typing import Any

from app.contracts.bases import TrainingDefaults
from app.contracts.evaluation_plan import EvaluationPlan
from app.contracts.gate import GatePolicy
from app.contracts.objectives import SUPERVISED, Dpo, Objective, ObjectiveName
from app.contracts.plan import LoraPlan, TrainingPlan
from app.contracts.protection import AUTO, Protection
from app.contracts.safety import Safety, SafetyRefused, safety_from, stricter
from app.contracts.value import INVALID_COMBINATION
from app.errors import InvalidRequestError, UnsupportedError
from app.jobs.schemas import (
    DpoHyperparameters,
    DpoMethod,
    Hyperparameters,
    JobCreate,
    SafetyRequest,
    SupervisedMethod,
)

_LEARNING_RATES: Mapping[ObjectiveName, float] = {"supervised": 1.0, "dpo": 0.1}
"""Shares of the base's learning rate, which is one for answers. A preference is about the sum of an answer's
log-probabilities, which a step moves by as much as all its tokens together: on SmolLM2-135M ten steps of four pairs at
the base's own rate moved two answers 17 nats apart, and 1 nat at a tenth, with no fewer of the unseen pairs right (11
and 12 of 16)."""


def resolve_plan(request: JobCreate, defaults: TrainingDefaults) -> tuple[TrainingPlan, dict[str, Any]]:
    """The plan, and OpenAI's hyperparameters of the job's method as numbers to show.

    Raises:
        InvalidRequestError: A setting is unknown, out of bounds, or not supported.
    """
    asked, path = _hyperparameters(request)
    objective, extra = _objective(asked)
    multiplier = 1.0 if asked.learning_rate_multiplier is None else asked.learning_rate_multiplier
    usual_rate = defaults.learning_rate * _LEARNING_RATES[objective.name]
    learning_rate = usual_rate * multiplier
    if not 0.0 < learning_rate <= 1.0:
        what = f"The learning rate would be {learning_rate:g}: this base's is {usual_rate:g}, and 1 the most."
        raise InvalidRequestError(what, param=f"{path}.learning_rate_multiplier")
    shown = {
        **extra,
        "batch_size": asked.batch_size or defaults.batch_size,
        "learning_rate_multiplier": multiplier,
        "n_epochs": asked.n_epochs or defaults.num_epochs,
    }
    safety = _safety(request.safety, objective)
    plan = TrainingPlan(
        objective=objective,
        method=safety.method,
        ema=safety.ema,
        merge=safety.merge,
        lora=LoraPlan(rank=defaults.lora_rank, alpha=2 * defaults.lora_rank),
        num_epochs=shown["n_epochs"],
        batch_size=shown["batch_size"],
        learning_rate=learning_rate,
        quantisation=defaults.quantisation,
        gradient_checkpointing=defaults.gradient_checkpointing,
        seed=secrets.randbelow(2**31) if request.seed is None else request.seed,
    )
    return plan, shown


def _hyperparameters(request: JobCreate) -> tuple[Hyperparameters, str]:
    """What was asked for (of preferences: DpoHyperparameters), and the path under which it was."""
    if request.integrations:
        raise UnsupportedError("Integrations are not supported: leave them out.", param="integrations")
    method = request.method
    if method is None:
        return request.hyperparameters or Hyperparameters(), "hyperparameters"
    if method.type == "reinforcement":
        what = (
            "Reinforcement fine-tuning needs graders, and this service has none: use the method supervised, or dpo. "
            "How safety is kept is chosen under safety.method."
        )
        raise UnsupportedError(what, param="method.type")
    for other in ("supervised", "dpo", "reinforcement"):
        if other != method.type and getattr(method, other) is not None:
            what = f"method.type is {method.type}: leave {other} out, or ask for it."
            raise InvalidRequestError(what, param=f"method.{other}", code=INVALID_COMBINATION)
    chosen: SupervisedMethod | DpoMethod | None = method.dpo if method.type == "dpo" else method.supervised
    inner = None if chosen is None else chosen.hyperparameters
    if inner is not None and request.hyperparameters is not None:
        what = f"Give hyperparameters or method.{method.type}.hyperparameters, not both."
        raise InvalidRequestError(what, param="hyperparameters")
    if inner is not None:
        return inner, f"method.{method.type}.hyperparameters"
    outer = request.hyperparameters or Hyperparameters()
    return DpoHyperparameters(**dict(outer)) if method.type == "dpo" else outer, "hyperparameters"


def _objective(asked: Hyperparameters) -> tuple[Objective, dict[str, Any]]:
    """What is trained, and its own hyperparameters as numbers to show."""
    if not isinstance(asked, DpoHyperparameters):
        return SUPERVISED, {}
    objective = Dpo() if asked.beta is None else Dpo(beta=asked.beta)
    return objective, {"beta": objective.beta}


def resolve_protection(request: SafetyRequest | None, gate: GatePolicy, evaluation: EvaluationPlan) -> Protection:
    """How the job is guarded.

    Args:
        request: What the client asks for.
        gate: The service's policy.
        evaluation: What the service measures models on.

    Raises:
        InvalidRequestError: The gate that is asked for is looser than the service's, or makes no sense.
    """
    if request is None:
        return Protection(gate=gate)
    try:
        policy = stricter(gate, request.gate, evaluation.names)
    except SafetyRefused as refused:
        raise _invalid(refused) from refused
    is_auto = request.method == AUTO
    return Protection(
        is_auto=is_auto,
        chosen_by="auto" if is_auto else "request",
        drop_flagged_rows=request.drop_flagged_rows,
        gate=policy,
    )


def _safety(request: SafetyRequest | None, objective: Objective) -> Safety:
    if request is None:
        return Safety()
    try:
        if request.method == AUTO:
            _require_nothing_beside_auto(request)
            return Safety()
        return safety_from(
            request.method, request.hyperparameters, ema=request.ema, merge=request.merge, objective=objective
        )
    except SafetyRefused as refused:
        raise _invalid(refused) from refused


def _require_nothing_beside_auto(request: SafetyRequest) -> None:
    asked = {
        "hyperparameters": bool(request.hyperparameters),
        "ema": request.ema is not None and request.ema is not False,
        "merge": request.merge is not None,
    }
    for name, is_there in asked.items():
        if is_there:
            what = f"With the method auto the pre-flight chooses everything: leave {name} out, or name a method."
            raise SafetyRefused(what, (name,), INVALID_COMBINATION)


def _invalid(refused: SafetyRefused) -> InvalidRequestError:
    param = ".".join(("safety", *refused.path))
    is_value = refused.code in ("invalid_type", "invalid_value")
    message = f"Invalid value for {param}: {refused.message}" if is_value else refused.message
    return InvalidRequestError(message, param=param, code=refused.code)
