"""Questions that are asked at the same time become one.

Hundreds of clients poll their jobs. A thread and a transaction for each poll cost several times what the framework
does, so polls that arrive closely after each other wait for one question about all of them. A lone one waits a
millisecond longer than it had to; the more there are, the less each one costs.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Generic, TypeVar

from starlette.concurrency import run_in_threadpool

K = TypeVar("K")
V = TypeVar("V")

LARGEST_BATCH = 256
GAP_SECONDS = 0.001
"""Without a new question for so long, those that are there are asked ..."""
MOST_SECONDS = 0.02
"""... and at the latest after this time."""


class Batched(Generic[K, V]):
    """Asks `read` off the event loop, once at a time. An answer is never older than the question.

    Args:
        read: Answers for some keys, in a thread; a key that it leaves out has none.
    """

    def __init__(self, read: Callable[[Sequence[K]], Mapping[K, V]]) -> None:
        self._read = read
        self._waiting: dict[K, list[asyncio.Future[V | None]]] = {}
        self._reader: asyncio.Task[None] | None = None

    async def get(self, key: K) -> V | None:
        """The answer for a key, or None. Raises what `read` raises."""
        loop = asyncio.get_running_loop()
        # Each has a future of its own: a client that goes away must not cancel the others'.
        answer: asyncio.Future[V | None] = loop.create_future()
        self._waiting.setdefault(key, []).append(answer)
        if self._reader is None or self._reader.done():
            self._reader = loop.create_task(self._answer_all())
        return await answer

    async def _answer_all(self) -> None:
        while self._waiting:
            await self._gather()
            # Taken out before the database is asked: whoever comes later gets what is true later.
            batch = {key: self._waiting.pop(key) for key in list(self._waiting)[:LARGEST_BATCH]}
            try:
                found = await run_in_threadpool(self._read, list(batch))
            except Exception as error:
                for answer in _unanswered(chain.from_iterable(batch.values())):
                    answer.set_exception(error)
                continue
            for key, answers in batch.items():
                for answer in _unanswered(answers):
                    answer.set_result(found.get(key))

    async def _gather(self) -> None:
        now = asyncio.get_running_loop().time
        deadline = now() + MOST_SECONDS
        num_seen = 0
        while num_seen < len(self._waiting) < LARGEST_BATCH and now() < deadline:
            num_seen = len(self._waiting)
            await asyncio.sleep(GAP_SECONDS)


def _unanswered(answers: Iterable[asyncio.Future[V | None]]) -> list[asyncio.Future[V | None]]:
    """Without those whose clients went away."""
    return [answer for answer in answers if not answer.done()]
