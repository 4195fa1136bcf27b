"""Bodies of requests on their way to whoever takes them piece by piece, in a thread beside the one that receives."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

from anyio import CancelScope

_PIECES_AHEAD = 3
"""So many pieces may wait, a quarter of a megabyte each, so that neither thread waits for the other every time."""
_PIECES_A_TURN = 16
"""Then others have a turn: of clients that send as fast as they can each would keep its thread to the end."""
# Threads of their own, so that uploads leave those of the other routes alone.
_THREADS = ThreadPoolExecutor(16, thread_name_prefix="receiving")


async def receive(pieces: AsyncIterator[bytes], feed: Callable[[bytes], None]) -> None:
    """Calls `feed` with one piece after the other, in a thread; nothing is fed any more when this returns or raises.

    Raises:
        Exception: What `feed` raised; no more than a few further pieces have been read then.
    """
    feeding = _Feeding(feed)
    try:
        async for piece in pieces:
            if piece:
                await feeding.put(piece)
        await feeding.finish()
    finally:
        # Also when the client went away: what follows may not meet the thread at work.
        with CancelScope(shield=True):
            await feeding.stop()


class _Feeding:
    """Pieces that wait, and the thread that works while there are any."""

    def __init__(self, feed: Callable[[bytes], None]) -> None:
        self._feed = feed
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Semaphore(_PIECES_AHEAD)
        self._lock = Lock()
        self._waiting: deque[bytes] = deque()
        self._is_working = False
        self._work: asyncio.Task[None] | None = None
        self._error: BaseException | None = None

    async def put(self, piece: bytes) -> None:
        """Returns as soon as the piece can wait."""
        await self._room.acquire()
        with self._lock:
            if self._error is not None:
                raise self._error
            self._waiting.append(piece)
            is_idle, self._is_working = not self._is_working, True
        if is_idle:
            await self._ended_work()
            self._work = asyncio.create_task(self._take_turns())

    async def finish(self) -> None:
        """Waits until all is fed. Raises what feeding raised."""
        await self._ended_work()
        if self._error is not None:
            raise self._error

    async def stop(self) -> None:
        """Waits until nothing is fed any more."""
        with self._lock:
            self._waiting.clear()
        await self._ended_work()

    async def _ended_work(self) -> None:
        if self._work is not None:
            # Awaited itself, it would be cancelled with whoever waits, and its thread would go on unseen.
            await asyncio.wait([self._work])

    async def _take_turns(self) -> None:
        try:
            while await self._loop.run_in_executor(_THREADS, self._turn):
                pass
        except BaseException as error:
            # Whatever it is: nobody may wait for a thread that has ended, or take what it was fed for the whole.
            self._error = error
            self._room.release()

    def _turn(self) -> bool:
        """Feeds some of what waits. Returns whether there may be more."""
        for _ in range(_PIECES_A_TURN):
            with self._lock:
                if not self._waiting:
                    self._is_working = False
                    return False
                piece = self._waiting.popleft()
            try:
                self._feed(piece)
            except Exception as error:
                with self._lock:
                    self._error = error
                    self._waiting.clear()
            self._loop.call_soon_threadsafe(self._room.release)
        return True
