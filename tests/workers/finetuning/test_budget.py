import math

import pytest
import torch

from workers.finetuning.budget import BudgetedWeight


class TestByHand:
    """A budget of 0.5 over 100 steps: alpha starts at 2, each step keeps 7/8 of the sums, the aim is 0.85 * 0.5."""

    def test_alpha_falls_slowly_while_nothing_drifts(self) -> None:
        """Behind the pace by all of it: log(alpha) - 0.05."""
        weight = BudgetedWeight(0.5, 100)
        assert weight.alpha == 2.0
        weight.observe(0, 0.0, 10)
        assert weight.smoothed == 0.0
        assert weight.alpha == pytest.approx(2.0 * math.exp(-0.05))

    def test_alpha_rises_with_the_excess_and_at_once_in_proportion_to_it(self) -> None:
        """The sums are 7/8 * 0 + 30 * 1 and 7/8 * 10 + 30: an average of 30 / 38.75 = 0.774194, which is 1.821632 of
        the aim of 0.425. So log(alpha) rises by 0.05 * 0.821632 from ln 2 - 0.05, and alpha is 1.821632 times that.
        """
        weight = BudgetedWeight(0.5, 100)
        weight.observe(0, 0.0, 10)
        weight.observe(1, 1.0, 30)
        assert weight.smoothed == pytest.approx(0.774194, rel=1e-5)
        assert weight.alpha == pytest.approx(2.0 * math.exp(0.0410816 - 0.05) * 1.821632, rel=1e-5)

    def test_alpha_stays_between_pace_and_aim(self) -> None:
        """At step 25, half of the way to where the pace is whole: a quarter of the aim is 0.10625."""
        weight = BudgetedWeight(0.5, 100)
        weight.observe(25, 0.11, 10)
        assert weight.alpha == 2.0
        behind = BudgetedWeight(0.5, 100)
        behind.observe(25, 0.10, 10)
        assert behind.alpha == pytest.approx(2.0 * math.exp(-0.05 * (1.0 - 0.10 / 0.10625)))

    def test_alpha_is_not_lowered_in_the_last_steps(self) -> None:
        weight = BudgetedWeight(0.5, 100)
        weight.observe(85, 0.01, 10)
        assert weight.alpha == 2.0

    def test_a_step_changes_alpha_by_a_bounded_amount_and_all_of_them_too(self) -> None:
        weight = BudgetedWeight(0.5, 100)
        weight.observe(0, 1e6, 10)
        assert weight.alpha == pytest.approx(2.0 * math.exp(0.05 * 2.0) * 3.0)
        for step in range(200):
            weight.observe(step, 1e6, 10)
        assert weight.alpha == pytest.approx(2.0 * 30.0 * 3.0)
        idle = BudgetedWeight(0.5, 10_000)
        for step in range(5_000):
            idle.observe(step, 0.0, 10)
        assert idle.alpha == pytest.approx(2.0 / 1e3)

    @pytest.mark.parametrize(("num_steps", "rate"), [(5, 0.3), (20, 0.2), (50, 0.08), (100, 0.05), (2000, 0.05)])
    def test_short_runs_change_it_faster(self, num_steps: int, rate: float) -> None:
        weight = BudgetedWeight(0.5, num_steps)
        weight.observe(0, 0.0, 10)
        assert weight.alpha == pytest.approx(2.0 * math.exp(-rate))

    def test_rare_rows_that_are_far_off_do_not_raise_it_for_good(self) -> None:
        """The mean is the aim: nine steps in ten are at half of it, the tenth at five and a half times as much."""
        weight = BudgetedWeight(0.5, 4000)
        logs = []
        for step in range(2000, 3000):
            weight.observe(step, 0.425 * (5.5 if step % 10 == 0 else 0.5), 10)
            logs.append(weight.state()[0].item())
        assert max(logs) - min(logs) < 0.7


RATE = 0.03


def train(
    budget: float, num_steps: int, *, noise: float, slope: float = 1.0, epochs_of: int = 0
) -> tuple[float, float]:
    """Adam on slope / 2 (x - 2)^2 + alpha / 2 x^2 with the loop's falling rate. Returns final D = x^2 / 2, and alpha.

    Args:
        budget: For D, which is 2 where the task alone would go.
        num_steps: Length of the run.
        noise: Standard deviation of the logarithm of what is measured, and relative one of the task's slope.
        slope: How steep the task is.
        epochs_of: Steps after which the task's slope halves, as with rows that are seen again; 0: never.
    """
    generator = torch.Generator().manual_seed(num_steps)
    x = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.AdamW([x], lr=RATE, weight_decay=0.0)
    weight = BudgetedWeight(budget, num_steps)
    for step in range(num_steps):
        of_task, of_memory = (1.0 + noise * torch.randn(2, generator=generator)).tolist()
        measured = math.exp(noise * float(torch.randn((), generator=generator)) - noise**2 / 2)
        alpha, at = weight.alpha, float(x.detach())
        steepness = slope * 0.5 ** (step // epochs_of) if epochs_of else slope
        x.grad = torch.tensor([of_task * steepness * (at - 2.0) + alpha * abs(of_memory) * at])
        torch.nn.utils.clip_grad_norm_([x], 1.0)
        optimizer.param_groups[0]["lr"] = RATE * (0.1 + 0.45 * (1.0 + math.cos(math.pi * step / num_steps)))
        optimizer.step()
        weight.observe(step, measured * at**2 / 2, 300)
    return float(x.detach()) ** 2 / 2, weight.alpha


class TestOnAQuadratic:
    """The least of a task's loss within a budget of drift, where both are known."""

    @pytest.mark.parametrize("num_steps", [20, 60, 200, 1000])
    @pytest.mark.parametrize("budget", [0.05, 0.2])
    @pytest.mark.parametrize("noise", [0.0, 0.4])
    def test_the_bound_is_held_at_the_end_of_any_run(self, noise: float, budget: float, num_steps: int) -> None:
        final, _ = train(budget, num_steps, noise=noise)
        assert final <= budget

    @pytest.mark.parametrize("budget", [0.02, 0.2, 1.0])
    def test_long_runs_find_the_multiplier(self, budget: float) -> None:
        """At D = x^2 / 2 the slopes balance where 2 - x = alpha x: alpha = 2 / x - 1, at the aim's x."""
        final, alpha = train(budget, 1000, noise=0.0)
        assert 0.8 * budget < final <= 0.9 * budget
        assert alpha == pytest.approx(2.0 / math.sqrt(2.0 * 0.85 * budget) - 1.0, rel=0.1)

    @pytest.mark.parametrize("slope", [0.03, 30.0])
    def test_the_scale_of_the_task_does_not_matter(self, slope: float) -> None:
        final, alpha = train(0.2, 1000, noise=0.05, slope=slope)
        assert 0.5 * 0.2 < final <= 0.2
        assert alpha == pytest.approx(slope * (2.0 / math.sqrt(2.0 * final) - 1.0), rel=0.3)

    @pytest.mark.parametrize("epochs", [1, 2, 4])
    def test_it_is_held_where_the_task_weakens_from_epoch_to_epoch(self, epochs: int) -> None:
        final, _ = train(0.1, 40 * epochs, noise=0.3, epochs_of=40)
        assert final <= 0.1

    def test_a_budget_that_does_not_bind_leaves_the_task_alone(self) -> None:
        final, alpha = train(20.0, 1000, noise=0.2)
        assert final == pytest.approx(2.0, rel=0.02)
        assert alpha < 1e-2


def test_goes_on_from_its_state() -> None:
    whole, before = BudgetedWeight(0.1, 50), BudgetedWeight(0.1, 50)
    drifts = [0.004 * step**1.5 for step in range(50)]
    for step, drift in enumerate(drifts):
        whole.observe(step, drift, 100 + step)
    for step, drift in enumerate(drifts[:20]):
        before.observe(step, drift, 100 + step)
    after = BudgetedWeight(0.1, 50)
    after.load_state(before.state())
    assert (after.alpha, after.smoothed) == (before.alpha, before.smoothed)
    for step, drift in enumerate(drifts[20:], start=20):
        after.observe(step, drift, 100 + step)
    assert (after.alpha, after.smoothed) == (whole.alpha, whole.smoothed)
