"""What a plan needs of its base and of its training file: refused at creation, not by a worker an hour later."""

from collections.abc import Mapping

from app.contracts.bases import PrepareRecipe
from app.contracts.datasets import DataFormat, FileValidation
from app.contracts.methods import METHOD_CONFIGS, Artefact, Lisa, MethodConfig, Replay, SafeLora, WithMemory
from app.contracts.modifiers import MERGE_CONFIGS, MergeConfig
from app.contracts.objectives import ObjectiveName
from app.contracts.plan import TrainingPlan
from app.errors import InvalidRequestError
from app.models import BaseModelRow, File

_LACKING: Mapping[Artefact, str] = {
    "memory": "a safety memory",
    "gram": "the Gram matrix of the output head",
    "fisher": "Fisher information of the base's weights, and its recipe has fisher_rows 0",
    "unaligned_twin": "what alignment changed in the base, and it was taken as safe without an unaligned_twin",
}
"""What an artefact is, and why a base may be without."""
_FORMATS: Mapping[ObjectiveName, tuple[DataFormat, ...]] = {
    "supervised": ("chat", "completion"),
    "dpo": ("preference",),
}


def require_artefacts(
    plan: TrainingPlan, model: str, recipe: PrepareRecipe, ready: Mapping[str, PrepareRecipe]
) -> None:
    """Refuses a plan whose method or merge needs what the base does not have (an average needs nothing).

    Args:
        plan: What is to be trained.
        model: Name of the base.
        recipe: How it was prepared.
        ready: Recipes of all bases that jobs can be made on, by name.

    Raises:
        InvalidRequestError: With the bases and the methods (or merges) that would do.
    """
    choices: dict[str, Mapping[str, type[MethodConfig | MergeConfig]]]
    choices = {"safety.method": METHOD_CONFIGS, "safety.merge.name": MERGE_CONFIGS}
    for (param, choice), part in zip(choices.items(), (plan.method, plan.merge), strict=True):
        lacking = None if part is None else next((need for need in part.needs if need not in recipe.artefacts), None)
        if part is None or lacking is None:
            continue
        others = [name for name, other in ready.items() if other.artefacts.issuperset(plan.needs)]
        bases = f"Bases that have it: {', '.join(others)}." if others else "No base that is ready has it."
        names = ", ".join(name for name, config in choice.items() if recipe.artefacts.issuperset(config.needs))
        what = f"«{part.name}» needs {_LACKING[lacking]}. {bases} On `{model}` you can choose from: {names}."
        raise InvalidRequestError(what, param=param, code="missing_artefact")


def require_format(objective: ObjectiveName, found: str, param: str) -> None:
    """Refuses a file whose rows the method of training cannot learn from.

    Raises:
        InvalidRequestError: With what the file holds and what would do.
    """
    if found in _FORMATS[objective]:
        return
    wanted = " or ".join(_FORMATS[objective])
    other = next(other for other, formats in _FORMATS.items() if found in formats)
    what = (
        f"The file is in the {found} format, and the method {objective} takes {wanted}. Name another file, or train "
        f"on this one with the method {other}."
    )
    raise InvalidRequestError(f"Invalid {param}: {what}", param=param, code="invalid_file_format")


def require_conversations(found: str, param: str) -> None:
    """Refuses a file of preferences where a model's loss is to be measured.

    Raises:
        InvalidRequestError: With what would do.
    """
    if found not in _FORMATS["supervised"]:
        wanted = " or ".join(_FORMATS["supervised"])
        what = f"The file is in the {found} format, and models are measured on {wanted}. Name another file."
        raise InvalidRequestError(f"Invalid {param}: {what}", param=param, code="invalid_file_format")


def require_readable(base: BaseModelRow, file: File, param: str) -> FileValidation:
    """What is known of a file whose rows the base's chat template can show to the model.

    Raises:
        InvalidRequestError: Rows have tools, and the template would leave them out.
    """
    validation = FileValidation.model_validate(file.validation)
    num_rows = validation.statistics.num_rows_with_tools
    # None: the base was prepared before anybody asked. Its jobs find out when they read the file.
    if num_rows and base.renders_tools is False:
        what = (
            f"{num_rows} rows of the file have tools, and the chat template of `{base.id}` does not show tools to the "
            "model. Choose a base model that was made for tools, or write them into the messages as text."
        )
        raise InvalidRequestError(f"Invalid {param}: {what}", param=param, code="tools_not_supported")
    return validation


def require_sense(plan: TrainingPlan, recipe: PrepareRecipe, num_rows: int) -> None:
    """Refuses settings that this base or this many training rows leave without effect, or the user without a step.

    Raises:
        InvalidRequestError: With what to change.
    """
    method = plan.method
    if isinstance(method, SafeLora) and method.projection == "orthogonal" and not recipe.align:
        what = (
            "The difference of two models that were made elsewhere spans every direction, so that an orthogonal "
            "projection onto it does nothing: use the projection paper, or a base that is aligned here."
        )
        raise _nonsense("projection", what)
    num_steps = plan.num_epochs * -(-num_rows // plan.batch_size)
    if isinstance(method, Lisa) and method.alignment_steps >= num_steps:
        what = (
            f"Training begins with {method.alignment_steps} steps on the safety memory, and {num_rows} rows make "
            f"{num_steps} steps in all: none would be on your rows. Give fewer alignment_steps or more epochs."
        )
        raise _nonsense("alignment_steps", what)
    _require_memory(method, recipe)


def _require_memory(method: MethodConfig, recipe: PrepareRecipe) -> None:
    """A base's memory has at most as many rows as prompts were asked to build it."""
    if isinstance(method, Replay) and method.memory_rows_per_step > recipe.memory_rows:
        what = f"This base has at most {recipe.memory_rows} rows of safety memory: give fewer memory_rows_per_step."
        raise _nonsense("memory_rows_per_step", what)
    if not isinstance(method, WithMemory) or method.memory_selection == "random":
        return
    if method.memory_size >= recipe.memory_rows:
        what = (
            f"There is nothing to select: this base has at most {recipe.memory_rows} rows of safety memory, and "
            f"memory_size is {method.memory_size}. Give a smaller memory_size, or leave memory_selection out."
        )
        raise _nonsense("memory_selection", what)


def _nonsense(setting: str, what: str) -> InvalidRequestError:
    return InvalidRequestError(what, param=f"safety.hyperparameters.{setting}", code="invalid_combination")
