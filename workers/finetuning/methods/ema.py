"""Exponential moving average: the adapter that is shipped is an average over the training, not its last state.

Source: Kim et al. 2025, arXiv 2508.12531: theta_ema <- eta * theta_ema + (1 - eta) * theta after each optimizer step,
    started at the aligned model; theta_ema is shipped.
Idea: an average follows the training slowly and ends between the aligned base and the last state, without the last
    steps' noise. It is one more copy of the trained parameters, and training does not see it, so it combines with any
    method.
Hooks: prepare, begin, after_step, finish, state, load_state, counters, notes.
Differences: what is averaged are the trained parameters, as in the paper; here these are A and B of the adapter, each
    for itself. The product of the two averages is not the average of the products B A, which would have no low rank
    and take a copy of every weight; the two are close as long as A moves little from its random start.
    The average starts where training starts, at the aligned base (B = 0) or at the adapter that training goes on from,
    so there is no bias to correct. A fixed eta
    would ship nearly the aligned base after a short run; by default it is 1 - 5 / steps, an average over about
    the last fifth, in which the start keeps a share of e^-5 = 0.7 % at most. Up to 5 steps that is 0: the last state.
    Validation during the training measures the running state, not the average.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch

from app.contracts.modifiers import Ema
from app.contracts.value import Value
from workers.finetuning.method import Method, MethodContext

REACH = 1 / 5
"""Share of the steps over which the average reaches by default: what is older has weights below 1 / e."""
LARGE_START_SHARE = 0.1
"""From here on the report says how much of the start is still in the average."""


def default_decay(num_steps: int) -> float:
    """The decay of a run of so many steps."""
    return 1.0 - 1.0 / max(1.0, num_steps * REACH)


class ParameterAverage(Method):
    """average <- decay * average + (1 - decay) * parameters after each step; the average is shipped."""

    name: ClassVar[str] = "ema"

    def __init__(self, config: Value) -> None:
        assert isinstance(config, Ema)
        super().__init__(config)
        self._config = config
        self._decay = 0.0
        self._num_steps = 0
        self._parameters: Mapping[str, torch.Tensor] = {}
        self._average: dict[str, torch.Tensor] = {}
        self._distance: float | None = None

    def prepare(self, context: MethodContext) -> None:
        self._num_steps = context.num_steps
        self._decay = default_decay(context.num_steps) if self._config.decay is None else self._config.decay
        self._parameters = context.backbone.parameters

    def begin(self) -> None:
        if self._decay > 0.0:
            self._average = {name: p.detach().clone() for name, p in self._parameters.items()}

    def after_step(self, step: int) -> None:
        for name, average in self._average.items():
            average.lerp_(self._parameters[name].detach(), 1.0 - self._decay)

    def finish(self) -> None:
        with torch.no_grad():
            squares = [(self._parameters[name] - average).square().sum() for name, average in self._average.items()]
            self._distance = float(sum(squares)) ** 0.5
            for name, average in self._average.items():
                self._parameters[name].copy_(average)

    def state(self) -> dict[str, torch.Tensor]:
        return self._average

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        for name, average in self._average.items():
            average.copy_(state[name])

    def counters(self) -> dict[str, float]:
        """The decay; at the end also the L2 distance of the average from the last state."""
        end = {} if self._distance is None else {"ema_distance": self._distance}
        return {"ema_decay": self._decay, **end}

    def notes(self) -> list[str]:
        if self._decay == 0.0:
            return ["The decay of the average is 0: the last state is shipped, as without ema."]
        share = self._decay**self._num_steps
        if share >= LARGE_START_SHARE:
            return [f"After {self._num_steps} steps, {share:.0%} of the average is still the start: lower ema's decay."]
        return []
