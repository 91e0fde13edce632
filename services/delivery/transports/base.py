"""What every transport offers: where a job sends to, whether that works, and one attempt at sending a part there."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, NamedTuple, Protocol

from services.core.parts import PartFormat
from services.core.retry import Answer
from services.core.schedule import Slot
from services.platform.clock import Clock
from services.platform.hosted import HostedFolder
from services.platform.outbound import Outbound


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
    """NO_RESOLUTION: a catalog."""
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


class Means(NamedTuple):
    """What a transport is built with."""

    deadlines: Deadlines
    clock: Clock
    outbound: Outbound
    """Every connection is made through it, so that none leads where it must not."""
    hosted: HostedFolder | None = None
    """The folder that we host, if there is one."""


StepName = Literal["resolve", "reach", "trust", "log in", "write", "rename", "remove"]


class Step(NamedTuple):
    """One step of a connection test."""

    name: StepName
    passed: bool
    sentence: str
    """For people: what was found, or what failed and what to do about it."""
    host_key: str = ""
    """The key that an SFTP server showed and that is not approved, as `ssh-ed25519 AAAA…`; only where trust failed."""


class Receiver(Protocol):
    """Takes parts."""

    @property
    def address(self) -> str:
        """`host:port`; attempts are counted and bounded by it."""
        ...

    async def send(self, part: OutgoingPart) -> Answer:
        """Make one attempt; return within the total deadline. Raises nothing: every failure is an answer."""
        ...


class Destination(Receiver, Protocol):
    """One job's server, as its settings name it."""

    def check(self) -> AsyncIterator[Step]:
        """Try the connection in small steps, in their order, up to the first that fails. Sends no data of the job's.

        Each step is given as soon as it is known. Raises nothing; ends within the total deadline.
        """
        ...


class Transport(Protocol):
    """One way of reaching customers' servers; one object a process, with its pooled connections."""

    def part_format(self, settings: Mapping[str, Any]) -> PartFormat:
        """Return how a job's parts look and where they are cut. Raises UserError where the settings are of no use."""
        ...

    def destination(self, settings: Mapping[str, Any]) -> Destination:
        """Return the server that a job's opened settings name. Raises UserError where they are of no use."""
        ...

    async def aclose(self) -> None:
        """Close every connection."""
        ...
