"""One method, one file; this is the register."""

from app.contracts.methods import Der, NoMethod
from app.contracts.value import Value
from workers.finetuning.method import Method
from workers.finetuning.methods.der import DarkExperienceReplay
from workers.finetuning.methods.none import PlainFineTuning

_METHODS: dict[type[Value], type[Method]] = {
    Der: DarkExperienceReplay,
    NoMethod: PlainFineTuning,
}


def build_method(config: Value) -> Method:
    """The method that a configuration asks for."""
    return _METHODS[type(config)](config)
