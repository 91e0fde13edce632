"""Writes under way: each behind the one before, and none forgotten, whatever ends them."""

import asyncio
import gc
from collections.abc import Callable

from services.ingest.in_flight import InFlight
from services.ingest.store import Turn


class Writes:
    """Writes that wait for their turn and then to be let go, and what became of them."""

    def __init__(self) -> None:
        self.let_go = asyncio.Event()
        self.ended: list[str] = []

    def named(self, name: str, error: Exception | None = None) -> "Callable[[Turn], asyncio.Future[None]]":
        async def write(turn: Turn) -> None:
            try:
                await turn()
                await self.let_go.wait()
                _end_with(error)
            except BaseException as met:
                self.ended.append(f"{name}: {type(met).__name__}")
                raise
            self.ended.append(name)

        return lambda turn: asyncio.ensure_future(write(turn))


def _end_with(error: Exception | None) -> None:
    if error is not None:
        raise error


async def test_writes_end_in_order_and_two_at_most_are_under_way() -> None:
    writes, in_flight = Writes(), InFlight()
    for name in ("first", "second"):
        in_flight.start(writes.named(name))
    room = asyncio.ensure_future(in_flight.has_room())
    done, _pending = await asyncio.wait({room}, timeout=0.05)
    assert not done
    writes.let_go.set()
    await room
    in_flight.start(writes.named("third"))
    await in_flight.finish()
    assert writes.ended == ["first", "second", "third"]


async def test_a_failure_reaches_whoever_finishes_and_nobody_else_is_told() -> None:
    """The younger ones fail with the oldest; what they raise is looked at, so the event loop reports nothing."""
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context))
    writes, in_flight = Writes(), InFlight()
    in_flight.start(writes.named("first", ValueError("the first")))
    in_flight.start(writes.named("second"))
    writes.let_go.set()
    try:
        await in_flight.finish()
    except ValueError as error:
        told = str(error)  # the error itself would keep everything in memory
    assert told == "the first"
    assert writes.ended == ["first: ValueError", "second: ValueError"]
    await in_flight.abandon()
    del in_flight
    gc.collect()
    assert reported == []


async def test_who_is_cancelled_while_it_finishes_can_still_abandon_them() -> None:
    """As at a stop deadline: no write may go on behind the back of the one who ended it."""
    writes, in_flight = Writes(), InFlight()
    in_flight.start(writes.named("first"))
    in_flight.start(writes.named("second"))
    finishing = asyncio.ensure_future(in_flight.finish())
    await asyncio.wait({finishing}, timeout=0.05)
    finishing.cancel()
    await asyncio.wait({finishing})
    await in_flight.abandon()
    assert sorted(writes.ended) == ["first: CancelledError", "second: CancelledError"]
