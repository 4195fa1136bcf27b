"""The weight of a replay term, found while training so that the model's drift ends near a budget.

Minimising the task's loss subject to D <= budget is a saddle point: descent on the parameters with loss + alpha * D,
ascent on alpha with D - budget. The ascent is multiplicative here (by the relative excess), so that one setting fits
every model and unit. It aims; that the bound is held at the end is bound.py's part. The rest is about aiming well in a
run of any length:

- Start: alpha = 1 / budget. At the budget the term then weighs one nat, about as the task's loss does.
- Lag: D is measured on a few rows, so it is averaged over the latest steps; an excess of that average over the aim also
  raises alpha at once, in proportion (the penalty of an augmented Lagrangian), which damps the swing of a lagging dual.
- Rare rows: most steps draw rows that have hardly drifted, few draw one that has drifted a hundred times as far. Alpha
  moves by the same rate both ways and in proportion to the excess, so that it rests where the mean is at the aim; a
  slower or logarithmic way down would let every such row raise it for good.
- Pace: a model starts at D = 0 and needs many steps to drift; an alpha lowered all the while would be far too small
  when it gets there. So alpha is lowered only where D is behind a pace: a share of the aim that grows with the square
  of the way, as drift does that nothing holds, and is whole from the middle of the run. Between pace and aim it stays.
- End: in the last steps alpha is not lowered any more; a falling learning rate leaves no time to make up for it.
- Margin: what is aimed at is a little below the budget, for the noise of the measurement.
- Limits: a step's change is bounded, and alpha too. At a high learning rate D may be above the budget whatever alpha
  is, for steps are too long; the term alone would then be trained on, and go on to be when the rate has fallen.
"""

import math

import torch

MARGIN = 0.85
"""Share of the budget that is aimed at."""
FULL_FROM = 0.5
"""Share of the steps after which the pace is the whole aim."""
LEAST_PACE = 0.02
HELD_FROM = 0.85
"""Share of the steps after which alpha is not lowered any more."""
SMOOTHED_STEPS = (2.0, 8.0)
"""Reach of the average: a tenth of the run, within these."""
RATE = 0.05
"""Change of log(alpha) in a step, for each unit of relative excess over the aim, or of what is missing to the pace;"""
RATE_IN_ALL, FASTEST = 4.0, 0.3
"""in runs so short that it comes to less than the first over all steps, that much; up to the second in a step."""
MOST = 2.0
"""Units of excess that count."""
HIGHEST, LOWEST = 30.0, 1e3
"""How far alpha may go from its start, as factors up and down. At the upper end the whole budget weighs 30 nats, and
while there is excess up to 1 + MOST times that."""


class BudgetedWeight:
    """Dual ascent on alpha. Steps count from 0."""

    def __init__(self, budget: float, num_steps: int) -> None:
        self.budget = budget
        self._num_steps = num_steps
        shortest, longest = SMOOTHED_STEPS
        self._kept = 1.0 - 1.0 / max(shortest, min(longest, num_steps / 10))
        self._rate = min(FASTEST, max(RATE, RATE_IN_ALL / num_steps))
        self._start = self._log_alpha = -math.log(budget)
        # Sums over the past in which each step counts less than the next one: of divergences, of paces, of tokens.
        # Their ratios are averages without a bias towards the start.
        self._divergence = self._pace = self._tokens = 0.0

    @property
    def alpha(self) -> float:
        """The weight for the next step."""
        return math.exp(self._log_alpha) * (1.0 + min(MOST, max(0.0, self._excess)))

    @property
    def smoothed(self) -> float:
        """Mean divergence a token over the latest steps."""
        return self._divergence / self._tokens if self._tokens else 0.0

    def observe(self, step: int, divergence: float, tokens: int) -> None:
        """Takes the mean divergence over a step's replayed tokens, at the parameters from before the step."""
        way = min(1.0, step / (FULL_FROM * self._num_steps))
        self._divergence = self._kept * self._divergence + tokens * divergence
        self._pace = self._kept * self._pace + tokens * MARGIN * self.budget * max(LEAST_PACE, way**2)
        self._tokens = self._kept * self._tokens + tokens
        change = 0.0
        if self._excess > 0.0:
            change = self._rate * min(MOST, self._excess)
        elif self._divergence < self._pace and step < HELD_FROM * self._num_steps:
            change = self._rate * (self._divergence / self._pace - 1.0)
        highest, lowest = self._start + math.log(HIGHEST), self._start - math.log(LOWEST)
        self._log_alpha = min(highest, max(lowest, self._log_alpha + change))

    def state(self) -> torch.Tensor:
        """What must survive a checkpoint: float64 [4]."""
        return torch.tensor([self._log_alpha, self._divergence, self._pace, self._tokens], dtype=torch.float64)

    def load_state(self, state: torch.Tensor) -> None:
        """Restores what `state` returned."""
        self._log_alpha, self._divergence, self._pace, self._tokens = state.tolist()

    @property
    def _excess(self) -> float:
        """Of the average over the aim, relative to it."""
        return self.smoothed / (MARGIN * self.budget) - 1.0
