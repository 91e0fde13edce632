"""What every transport promises."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from services.core.parts import PartFormat
from services.core.retry import Answer
from services.core.schedule import Slot


@dataclass(frozen=True, slots=True)
class OutgoingPart:
    """A part on its way: its bytes and what a receiver may want to know of them."""

    part_id: str
    """The same on each attempt, with the same bytes."""
    job_id: int
    run_id: str
    part: int
    parts: int
    slot: Slot
    resolution_minutes: int
    row_count: int
    sha256: bytes
    file_name: str
    body: bytes
    is_manifest: bool = False
    """The last part of a run: what the others are. Its rows are those of the whole run."""
    resend_count: int = 0
    """How often the run was sent again on request; ids and bytes stay the same."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long a destination may take."""

    connect: timedelta
    total: timedelta
    words: timedelta = timedelta(seconds=2)
    """How long its words are waited for once its answer is known: they are for people only."""


class Destination(Protocol):
    """One job's server, as its settings name it."""

    @property
    def address(self) -> str:
        """`host:port`; attempts are counted and bounded by it."""
        ...

    async def send(self, part: OutgoingPart) -> Answer:
        """Make one attempt; return within the total deadline. Raises nothing: every failure is an answer."""
        ...


class Transport(Protocol):
    """One way of reaching customers' servers; one object a process, with its pooled connections."""

    @property
    def part_format(self) -> PartFormat:
        """How parts look and where they are cut."""
        ...

    def destination(self, settings: Mapping[str, Any]) -> Destination:
        """Return the server that a job's settings name. Raises UserError where they are of no use."""
        ...

    async def aclose(self) -> None:
        """Close every connection."""
        ...
