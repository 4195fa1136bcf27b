"""Calls that wait for something outside, without the threads that every request needs.

Keys are looked up and jobs are read in the framework's threads, of which there are forty. A receiver that is silent, a
name server that does not answer or a large file that is put together would hold one of them for seconds or minutes, and
a few dozen such requests of one project all of them. So these calls have threads of their own, of which a project gets
a few at a time. What comes beyond them waits on the event loop, and is told to come again if that takes too long.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from anyio import CancelScope, CapacityLimiter, to_thread
from starlette.concurrency import run_in_threadpool

from app.auth.schemas import Tenant
from app.errors import BusyError, RateLimitError

_RETRY_SECONDS = 5.0
_LONGER = 1.5
"""Each pause between two questions is so many times the one before: however many ask, most threads are free."""

R = TypeVar("R")


class SlowCalls:
    """Calls of one kind, as many at a time as one process takes.

    Args:
        most: So many of all projects.
        most_of_a_project: So many of one.
        patience_seconds: How long a call waits for its turn.
    """

    def __init__(self, *, most: int, most_of_a_project: int, patience_seconds: float) -> None:
        self._most = most
        self._most_of_a_project = most_of_a_project
        self._patience_seconds = patience_seconds
        # A server has one event loop; tests have many, and what waits in one cannot be woken from another.
        self._lines: WeakKeyDictionary[asyncio.AbstractEventLoop, _Lines] = WeakKeyDictionary()

    async def run(self, tenant: Tenant, call: Callable[[], R], *, alone: str | None = None) -> R:
        """What the call returns, from a thread in the caller's context.

        Args:
            tenant: Whose call it is.
            call: Blocks for as long as it must.
            alone: Of the project's calls with the same name one runs at a time.

        Raises:
            RateLimitError: The project's own calls have not left it a place in time.
            BusyError: Those of all projects have not.
        """
        async with AsyncExitStack() as place:
            await self._take(place, tenant, alone)
            # As a task, which nobody cancels: the place is given back when the thread has ended, and not before.
            at_work = asyncio.create_task(_in_thread(call, place.pop_all()))
        # As in the framework's threads: what follows a request that is cancelled does not meet its thread at work. Only
        # a server that shuts down does not wait.
        with CancelScope(shield=True):
            await asyncio.shield(at_work)
        return at_work.result()

    async def _take(self, place: AsyncExitStack, tenant: Tenant, alone: str | None) -> None:
        """Waits for the project's turn first: what has a thread's place does not wait any more."""
        lines = self._lines.setdefault(asyncio.get_running_loop(), _Lines(self._most))
        project_id = tenant.project_id
        refusal: RateLimitError | BusyError
        try:
            async with asyncio.timeout(self._patience_seconds):
                if alone is not None:
                    # By project: nobody stands in the way of what is another's.
                    refusal = _too_many(f"Another request for {alone} is still being carried out.")
                    await place.enter_async_context(lines.of(project_id, alone, 1))
                refusal = _too_many("The project's earlier requests of this kind are still being carried out.")
                await place.enter_async_context(lines.of(project_id, None, self._most_of_a_project))
                refusal = BusyError("The service carries out as many such requests as it can: try again in a while.")
                await place.enter_async_context(lines.all)
        except TimeoutError:
            raise refusal from None


class _Lines:
    """Where calls wait for each other; for one event loop."""

    def __init__(self, most: int) -> None:
        self.all = asyncio.Semaphore(most)
        # A line is gone with the last one who stands in it.
        self._lines: WeakValueDictionary[tuple[str, str | None], asyncio.Semaphore] = WeakValueDictionary()

    def of(self, project_id: str, alone: str | None, most: int) -> asyncio.Semaphore:
        return self._lines.setdefault((project_id, alone), asyncio.Semaphore(most))


async def ask_until(ask: Callable[[], R], is_enough: Callable[[R], bool], *, seconds: float, pause_seconds: float) -> R:
    """The first answer that is enough, or the last one when the time is over.

    Args:
        ask: Is called in a thread, which is not held between two questions.
        is_enough: Whether that was what is waited for.
        seconds: How long to wait for it.
        pause_seconds: Before the second question; later pauses are longer.
    """
    deadline = time.monotonic() + seconds
    while True:
        answer = await run_in_threadpool(ask)
        left_seconds = deadline - time.monotonic()
        if left_seconds <= 0.0 or is_enough(answer):
            return answer
        await asyncio.sleep(min(pause_seconds, left_seconds))
        pause_seconds *= _LONGER


async def _in_thread(call: Callable[[], R], place: AsyncExitStack) -> R:
    async with place:
        # Any limiter but the framework's: there is a place already.
        return await to_thread.run_sync(call, limiter=CapacityLimiter(1))


def _too_many(what: str) -> RateLimitError:
    return RateLimitError(f"{what} Try again in a while.", retry_seconds=_RETRY_SECONDS)
