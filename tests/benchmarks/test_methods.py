from pathlib import Path

import pytest

from benchmarks.methods.__main__ import STEPS, Timed, summary
from benchmarks.methods.alone import measure_in_this_process
from benchmarks.methods.bench import Bench, Setting, Step
from benchmarks.methods.costs import Measured, Minimum, Target, compared, minima
from workers.data import DEMO_TRAINING_FILE

ROUNDS = 4


@pytest.fixture(scope="module")
def setting(tiny_base: Path) -> Setting:
    return Setting(tiny_base, DEMO_TRAINING_FILE, num_steps=ROUNDS, batch_size=3)


@pytest.fixture(scope="module")
def tokens(setting: Setting) -> dict[str, list[Step]]:
    """What the steps of every method go through the model with."""
    bench = Bench.of(setting)
    loops = {name: bench.loop_of(parts) for name, parts in STEPS.items()}
    with bench.training(list(loops.values())):
        found = {name: [bench.step(loop, n) for n in range(ROUNDS)] for name, loop in loops.items()}
        found["forward before training"] = [bench.teacher_passes(loops["none"], 0)]
        found["naive der"] = [bench.naive_step(loops["der"], n) for n in range(ROUNDS)]
        found["none on der's rows"] = [bench.plain_step(loops["none"], loops["der"], n) for n in range(ROUNDS)]
    return found


class TestTokens:
    """Every method sends through the model what its definition says, and nothing more."""

    def test_of_methods_without_a_second_forward_are_the_users(self, tokens: dict[str, list[Step]]) -> None:
        for name in ("ewc", "constrained_sft", "safelora", "magmax", "none + ema"):
            assert tokens[name] == tokens["none"]
        assert all(step.gradient_tokens > 0 and step.forward_tokens == 0 for step in tokens["none"])

    def test_of_replay_are_those_of_its_rows(self, tokens: dict[str, list[Step]], setting: Setting) -> None:
        user, memory = _total(tokens["none"]), _replayed(setting, draws=1)
        for name in ("der", "safeinstruct", "agem", "safegrad", "none on der's rows"):
            assert _total(tokens[name]) == user + memory, name
        assert _total(tokens["derpp"]) == user + _replayed(setting, draws=2)
        assert _total(tokens["refresh"]) == 2 * _total(tokens["derpp"])
        assert all(step.forward_tokens == 0 for name in ("der", "agem", "refresh") for step in tokens[name])

    def test_of_teachers_are_forward_alone(self, tokens: dict[str, list[Step]], setting: Setting) -> None:
        assert tokens["lwf"] == tokens["none"]
        (before,) = tokens["forward before training"]
        assert (before.forward_tokens, before.gradient_tokens) == (_total(tokens["none"]), 0)
        assert sum(s.forward_tokens for s in tokens["naive der"]) == _replayed(setting, draws=1)

    def test_of_lisa_are_the_memorys_in_its_turn(self, tokens: dict[str, list[Step]]) -> None:
        assert [step.is_memory_turn for step in tokens["lisa"]] == [True, False, False, False]
        assert tokens["lisa"][1:] == tokens["none"][1:]


class TestMinima:
    def test_are_those_that_the_steps_have(self, tokens: dict[str, list[Step]], setting: Setting) -> None:
        user = _total(tokens["none"]) / ROUNDS
        found = minima(Bench.of(setting), user, 0.25, range(ROUNDS))
        assert found["lwf"].value == 1.25
        for name in ("der", "derpp", "safeinstruct", "agem", "safegrad", "refresh"):
            assert found[name].value == pytest.approx(_total(tokens[name]) / ROUNDS / user), name

    def test_are_compared_with_what_the_target_says(self) -> None:
        """Twice a plain step's time for twice its tokens, where 1.6 would have done."""
        plain, one = Measured(1.0, 1.0, 1.0, 1.0, 100.0, 0.0), Measured(2.0, 2.0, 1.9, 2.1, 200.0, 0.0)
        minimum = Minimum("2", 1.6)
        assert compared(Target(1.05, "none"), one, plain, minimum) == 2.0
        assert compared(Target(1.05, "none in one epoch"), one._replace(before=0.25), plain, minimum) == 2.25
        assert compared(Target(1.05, "none per token"), one, plain, minimum) == 1.0
        assert compared(Target(1.05, "its passes"), one, plain, minimum) == 1.25


class TestSummary:
    def test_takes_medians_of_ratios_and_weighs_kinds_of_steps_by_their_share(self) -> None:
        """Plain steps of 1, 2, 1 and 1 s; the other's memory turn takes 3 times as long, the user's 1, 2 and 1.5."""
        plain = [Timed(seconds, Step(10, 0, is_memory_turn=False)) for seconds in (1.0, 2.0, 1.0, 1.0)]
        turns = [True, False, False, False]
        times = [
            Timed(seconds, Step(20, 4, is_memory_turn=turn))
            for seconds, turn in zip((3.0, 2.0, 2.0, 1.5), turns, strict=True)
        ]
        found = summary(times, plain)
        assert found.ratio == pytest.approx(0.25 * 3 + 0.75 * 1.5)
        assert found.seconds == pytest.approx(0.25 * 3 + 0.75 * 2)
        assert (found.gradient_tokens, found.forward_tokens) == (20, 4)


class TestAlone:
    def test_sees_what_a_method_holds_on_to(self, setting: Setting) -> None:
        found = measure_in_this_process({"method": {"name": "none"}, "merge": {"name": "ties"}}, setting, 1)
        assert found.training_bytes > 50_000_000
        assert found.release_bytes > 50_000_000
        assert found.release_seconds > 0.0


def _total(steps: list[Step]) -> int:
    return sum(step.gradient_tokens for step in steps)


def _replayed(setting: Setting, *, draws: int) -> int:
    """Tokens of the memory's rows, which are fewer than a draw: every draw has all of them."""
    memory = Bench.of(setting).memory
    assert len(memory.rows) < 8
    return ROUNDS * draws * sum(len(row.ids) for row in memory.rows)
