"""Parts that are rendered again, as those of long runs are: the next ones are rendered while one travels."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import structlog

from services.delivery.model import JobKey, RowRange, Run, Version
from services.platform.errors import MeterpostError

# Runs; each remembers a place, and one block of one of them may be under way.
MOST_RUNS = 1_000

log = structlog.get_logger()


class Rendered(NamedTuple):
    """Consecutive parts that were rendered and kept; `last` is the hash of the last one."""

    last: bytes
    following: RowRange | None
    """Where the next one begins; None: the run ends here."""


Render = Callable[[Run, Version, RowRange], Awaitable[Rendered | None]]


@dataclass(slots=True)
class _Place:
    rendered: Rendered
    under_way: asyncio.Task[None] | None = None


class ReadAhead:
    """Remembers how far runs were rendered again, and goes on by one block when its last part is taken."""

    def __init__(self, render: Render) -> None:
        self._render = render
        self._places: OrderedDict[tuple[JobKey, datetime], _Place] = OrderedDict()

    def note(self, run: Run, rendered: Rendered) -> None:
        """Take note of parts that were rendered."""
        self._places[run.job, run.slot.start] = _Place(rendered)
        if len(self._places) > MOST_RUNS:
            self._places.popitem(last=False)

    async def wait(self, run: Run) -> None:
        """Wait until the block that is under way for the run, if there is one, is rendered."""
        place = self._places.get((run.job, run.slot.start))
        if place is not None and place.under_way is not None:
            await asyncio.shield(place.under_way)

    def taken(self, run: Run, version: Version, sha256: bytes) -> None:
        """Take note that a part is on its way; begin with those behind it where nothing is rendered any more."""
        place = self._places.get((run.job, run.slot.start))
        if place is None or place.under_way is not None or place.rendered.last != sha256:
            return
        if place.rendered.following is None:
            del self._places[run.job, run.slot.start]
            return
        place.under_way = asyncio.create_task(self._go_on(run, version, place.rendered.following))

    async def _go_on(self, run: Run, version: Version, following: RowRange) -> None:
        try:
            rendered = await self._render(run, version, following)
        except MeterpostError as error:
            # Whoever needs the part will meet it, too, and is there to be told.
            log.debug("not_rendered_ahead", job=run.job.job_id, error=str(error))
            rendered = None
        except Exception:
            # Told once here: who waits must not meet it again and again when it is over.
            log.exception("not_rendered_ahead", job=run.job.job_id)
            rendered = None
        if rendered is None:
            self._places.pop((run.job, run.slot.start), None)
        else:
            self.note(run, rendered)
