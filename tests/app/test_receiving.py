"""Pieces of a body are fed in order in another thread, which never outlives whoever waits for it."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor

import anyio
import pytest

from app import receiving
from app.receiving import receive

TIMEOUT = 30.0

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Source:
    """A body that knows how many of its pieces were read."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces
        self.num_read = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            self.num_read += 1
            yield piece
            await asyncio.sleep(0)


class Feed:
    """Takes pieces, one after the other, when it may."""

    def __init__(self) -> None:
        self.fed: list[bytes] = []
        self.may_go_on = threading.Event()
        self.has_begun = threading.Event()
        self.is_inside = False

    def __call__(self, piece: bytes) -> None:
        self.is_inside = True
        self.has_begun.set()
        assert self.may_go_on.wait(TIMEOUT)
        time.sleep(0.001)
        self.fed.append(piece)
        self.is_inside = False


def numbered(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


async def test_every_piece_is_fed_in_order() -> None:
    found: list[bytes] = []
    pieces = numbered(100)
    await receive(aiter(Source([b"", *pieces, b""])), found.append)
    assert found == pieces


async def test_pieces_that_come_slowly_are_fed_as_they_come() -> None:
    found: list[bytes] = []
    loop, is_fed = asyncio.get_running_loop(), asyncio.Event()

    def feed(piece: bytes) -> None:
        found.append(piece)
        loop.call_soon_threadsafe(is_fed.set)

    async def slow() -> AsyncIterator[bytes]:
        for piece in numbered(5):
            is_fed.clear()
            yield piece
            with anyio.fail_after(TIMEOUT):
                await is_fed.wait()

    await receive(slow(), feed)
    assert found == numbered(5)


async def test_what_is_raised_ends_it_and_the_rest_is_not_read() -> None:
    found: list[bytes] = []
    source = Source(numbered(1000))

    def feed(piece: bytes) -> None:
        if piece == b"3":
            raise ValueError("three")
        found.append(piece)

    with pytest.raises(ValueError, match="three"):
        await receive(aiter(source), feed)
    assert found == numbered(3)
    assert source.num_read < 20


async def test_what_the_last_piece_raises_is_raised() -> None:
    def feed(piece: bytes) -> None:
        if piece == b"4":
            raise ValueError("four")

    with pytest.raises(ValueError, match="four"):
        await receive(aiter(Source(numbered(5))), feed)


@pytest.mark.parametrize("place", range(5))
async def test_what_is_raised_is_told_though_nothing_more_comes(place: int) -> None:
    has_ended: list[bool] = []

    async def stalled() -> AsyncIterator[bytes]:
        try:
            for piece in numbered(place + 1):
                yield piece
            await asyncio.sleep(2 * TIMEOUT)
        finally:
            has_ended.append(True)

    def feed(piece: bytes) -> None:
        if piece == b"%d" % place:
            raise ValueError("bad")

    with anyio.fail_after(TIMEOUT), pytest.raises(ValueError, match="bad"):
        await receive(stalled(), feed)
    assert has_ended
    # Nothing of how the source was interrupted is left to whoever goes on.
    await asyncio.sleep(0)
    current = asyncio.current_task()
    assert current is not None
    assert current.cancelling() == 0


@pytest.mark.parametrize("count", [1, 50])
async def test_a_thread_that_ends_in_any_way_is_not_waited_for(count: int) -> None:
    class Stop(BaseException):
        pass

    def feed(_: bytes) -> None:
        raise Stop

    with anyio.fail_after(TIMEOUT), pytest.raises(Stop):
        await receive(aiter(Source(numbered(count))), feed)


async def test_the_source_is_not_read_far_ahead() -> None:
    feed, source = Feed(), Source(numbered(50))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(receive(aiter(source), feed))
        await asyncio.to_thread(feed.has_begun.wait, TIMEOUT)
        await asyncio.sleep(0.05)
        assert source.num_read <= receiving._PIECES_AHEAD + 1
        feed.may_go_on.set()
        await task
    assert feed.fed == numbered(50)


async def test_nothing_is_fed_after_a_body_that_breaks_off() -> None:
    feed = Feed()

    async def broken() -> AsyncIterator[bytes]:
        yield b"0"
        yield b"1"
        await asyncio.to_thread(feed.has_begun.wait, TIMEOUT)
        feed.may_go_on.set()
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        await receive(broken(), feed)
    assert not feed.is_inside
    fed = list(feed.fed)
    await asyncio.sleep(0.02)
    assert feed.fed == fed


@pytest.mark.parametrize("kind", ["task", "scope"])
@pytest.mark.parametrize("is_waiting_for_the_end", [False, True])
async def test_nothing_is_fed_after_it_was_cancelled(kind: str, *, is_waiting_for_the_end: bool) -> None:
    feed = Feed()
    source = Source(numbered(2 if is_waiting_for_the_end else 50))
    scope = anyio.CancelScope()
    was_inside: list[bool] = []

    async def request() -> None:
        with scope:
            try:
                await receive(aiter(source), feed)
            finally:
                was_inside.append(feed.is_inside)

    task = asyncio.create_task(request())
    await asyncio.to_thread(feed.has_begun.wait, TIMEOUT)
    await asyncio.sleep(0.01)
    if kind == "task":
        task.cancel()
    else:
        scope.cancel()
    await asyncio.sleep(0.02)
    assert not task.done()
    feed.may_go_on.set()
    await asyncio.wait([task])
    assert was_inside == [False]
    assert feed.fed == [b"0"]


async def test_nothing_is_fed_after_it_was_cancelled_again_and_again() -> None:
    feed = Feed()
    was_inside: list[bool] = []

    async def request() -> None:
        try:
            await receive(aiter(Source(numbered(50))), feed)
        finally:
            was_inside.append(feed.is_inside)

    task = asyncio.create_task(request())
    await asyncio.to_thread(feed.has_begun.wait, TIMEOUT)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.01)
    assert not task.done()
    feed.may_go_on.set()
    await asyncio.wait([task])
    assert task.cancelled()
    assert was_inside == [False]
    assert feed.fed == [b"0"]


def test_nothing_is_fed_after_the_loop_has_ended() -> None:
    feed = Feed()
    timer = threading.Timer(0.1, feed.may_go_on.set)

    async def main() -> None:
        task = asyncio.create_task(receive(aiter(Source(numbered(50))), feed))
        await asyncio.to_thread(feed.has_begun.wait, TIMEOUT)
        task.cancel()
        await asyncio.sleep(0)
        timer.start()
        # The loop's end cancels the task once more, and whatever else is under way.

    asyncio.run(main())
    assert not feed.is_inside
    assert feed.fed == [b"0"]


class TestThreads:
    @pytest.fixture(autouse=True)
    def one_thread(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(receiving, "_THREADS", ThreadPoolExecutor(1))
        monkeypatch.setattr(receiving, "_PIECES_A_TURN", 2)

    async def test_a_client_that_sends_nothing_holds_none(self) -> None:
        found: list[bytes] = []

        async def stuck() -> AsyncIterator[bytes]:
            yield b"a"
            await asyncio.sleep(TIMEOUT)

        task = asyncio.create_task(receive(stuck(), found.append))
        with anyio.fail_after(TIMEOUT / 2):
            await receive(aiter(Source(numbered(9))), found.append)
        assert set(found) == {b"a", *numbered(9)}
        task.cancel()
        await asyncio.wait([task])

    async def test_clients_that_send_fast_take_turns(self) -> None:
        found: list[bytes] = []

        def feed(piece: bytes) -> None:
            time.sleep(0.002)
            found.append(piece)

        async with asyncio.TaskGroup() as group:
            for name in (b"a", b"b"):
                group.create_task(receive(aiter(Source([name] * 30)), feed))
        # Both are under way long before either is through.
        assert {b"a", b"b"} == set(found[:10])
        assert found.count(b"a") == found.count(b"b") == 30
