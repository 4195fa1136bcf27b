"""Questions that are asked at the same time become one, and nobody gets another's answer."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from app.batching import Batched


class Recorder:
    """Answers with the key doubled, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.threads: set[int] = set()

    def __call__(self, keys: Sequence[int]) -> dict[int, int]:
        self.asked.append(list(keys))
        self.threads.add(threading.get_ident())
        return {key: 2 * key for key in keys if key >= 0}


def test_questions_at_the_same_time_are_read_once_and_each_gets_its_own_answer() -> None:
    read = Recorder()

    async def ask() -> list[int | None]:
        batched = Batched(read)
        return await asyncio.gather(*(batched.get(key) for key in [1, 2, 3, 2, -1]))

    assert asyncio.run(ask()) == [2, 4, 6, 4, None]
    assert read.asked == [[1, 2, 3, -1]]
    assert threading.get_ident() not in read.threads


def test_a_question_during_a_read_waits_for_the_next_one() -> None:
    is_reading, may_end = threading.Event(), threading.Event()
    values = iter([1, 2])

    def read(keys: Sequence[str]) -> dict[str, int]:
        value = next(values)
        is_reading.set()
        assert may_end.wait(10)
        return dict.fromkeys(keys, value)

    async def ask() -> tuple[int | None, int | None]:
        batched = Batched(read)
        first = asyncio.create_task(batched.get("a"))
        await asyncio.to_thread(is_reading.wait, 10)
        second = asyncio.create_task(batched.get("a"))
        await asyncio.sleep(0)
        may_end.set()
        return await first, await second

    assert asyncio.run(ask()) == (1, 2)


def test_a_client_that_goes_away_takes_nobody_along() -> None:
    read = Recorder()

    async def ask() -> int | None:
        batched = Batched(read)
        gone, stays = asyncio.create_task(batched.get(1)), asyncio.create_task(batched.get(1))
        await asyncio.sleep(0)
        gone.cancel()
        return await stays

    assert asyncio.run(ask()) == 2


def test_an_error_reaches_all_who_asked_and_the_next_question_is_read_again() -> None:
    is_broken = True

    def read(keys: Sequence[int]) -> dict[int, int]:
        if is_broken:
            raise OSError("away")
        return dict.fromkeys(keys, 1)

    async def ask() -> int | None:
        nonlocal is_broken
        batched = Batched(read)
        results = await asyncio.gather(batched.get(1), batched.get(2), return_exceptions=True)
        assert [type(result) for result in results] == [OSError, OSError]
        is_broken = False
        return await batched.get(1)

    assert asyncio.run(ask()) == 1


def test_one_batcher_serves_event_loops_that_follow_each_other() -> None:
    batched = Batched(Recorder())
    assert [asyncio.run(batched.get(key)) for key in (1, 2)] == [2, 4]


@pytest.mark.parametrize("count", [1, 300])
def test_any_number_is_answered(count: int) -> None:
    async def ask() -> list[int | None]:
        batched = Batched(Recorder())
        return await asyncio.gather(*(batched.get(key) for key in range(count)))

    assert asyncio.run(ask()) == [2 * key for key in range(count)]
