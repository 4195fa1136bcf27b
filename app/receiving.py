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
        Exception: What `feed` raised, as soon as it did: nobody waits for the next piece.
    """
    feeding = _Feeding(feed)
    try:
        with feeding.reading:
            async for piece in pieces:
                if piece:
                    await feeding.put(piece)
        await feeding.finish()
    finally:
        await feeding.stop()


class _Feeding:
    """Pieces that wait, and the thread that works while there are any."""

    def __init__(self, feed: Callable[[bytes], None]) -> None:
        self.reading = CancelScope()
        """Cancelled once `feed` raises: a client that sends a bad piece and then nothing is answered at once."""
        self._feed = feed
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Semaphore(_PIECES_AHEAD)
        self._has_ended = asyncio.Event()
        """A hint to look again at `_is_working`: by the time it is set there may be work anew."""
        self._lock = Lock()
        self._waiting: deque[bytes] = deque()
        self._is_working = False
        self._error: BaseException | None = None

    async def put(self, piece: bytes) -> None:
        """Returns as soon as the piece can wait. Raises what feeding raised."""
        await self._room.acquire()
        with self._lock:
            if self._error is not None:
                raise self._error
            self._waiting.append(piece)
            if not self._is_working:
                _THREADS.submit(self._turn)
                self._is_working = True

    async def finish(self) -> None:
        """Waits until all is fed. Raises what feeding raised."""
        while self._is_working:
            self._has_ended.clear()
            await self._has_ended.wait()
        if self._error is not None:
            raise self._error

    async def stop(self) -> None:
        """Waits until nothing is fed any more, however often it is cancelled: what follows may not meet the thread at
        work."""
        with self._lock:
            self._waiting.clear()
        cancelled: asyncio.CancelledError | None = None
        with CancelScope(shield=True):
            while self._is_working:
                self._has_ended.clear()
                try:
                    await self._has_ended.wait()
                except asyncio.CancelledError as error:
                    cancelled = error
        if cancelled is not None:
            raise cancelled

    def _turn(self) -> None:
        """Feeds some of what waits, then lines up again behind the others if there is more."""
        try:
            if self._fed_and_has_more():
                _THREADS.submit(self._turn)
                return
        except BaseException as error:
            # Whatever it is: nobody may wait for a thread that has ended, or take what it was fed for the whole.
            with self._lock:
                self._error = error
                self._waiting.clear()
                self._is_working = False
            self._loop.call_soon_threadsafe(self.reading.cancel)
        self._loop.call_soon_threadsafe(self._has_ended.set)

    def _fed_and_has_more(self) -> bool:
        for _ in range(_PIECES_A_TURN):
            with self._lock:
                if not self._waiting:
                    self._is_working = False
                    return False
                piece = self._waiting.popleft()
            self._feed(piece)
            self._loop.call_soon_threadsafe(self._room.release)
        return True
