"""The live board of `make run`: a table on a terminal, a line every few seconds elsewhere."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from services.core.times import iso_seconds
from services.local.supervised import Service
from services.platform.postgres import Pool, transaction

PLAIN_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Numbers:
    """What the platform has done so far."""

    taken_at: datetime
    readings: int = 0
    readings_per_s: int = 0
    refused: int = 0
    watermark: datetime | None = None
    closed_until: dict[int, datetime] = field(default_factory=dict)
    windows_closed: int = 0
    parts_delivered: int = 0
    parts_waiting: int = 0
    rows_delivered: int = 0

    @property
    def watermark_lag(self) -> timedelta | None:
        """How far the arrival clock is behind the wall clock."""
        return None if self.watermark is None else max(self.taken_at - self.watermark, timedelta())


async def take_numbers(pool: Pool, now: datetime, before: Numbers | None) -> Numbers:
    """Read the numbers from the tables. Raises Unavailable."""
    async with transaction(pool) as connection:
        progress = await connection.fetchrow(
            "SELECT coalesce(sum(stored_count), 0)::bigint, coalesce(sum(refused_count), 0)::bigint, "
            "CASE WHEN bool_and(watermark IS NOT NULL) THEN min(watermark) END FROM ingest_progress"
        )
        closed = await connection.fetch("SELECT resolution_minutes, closed_until FROM window_closed ORDER BY 1")
        windows: int = await connection.fetchval(
            "SELECT count(*) FROM (SELECT DISTINCT resolution_minutes, window_start FROM window_closing) AS closed"
        )
        parts = await connection.fetchrow(
            "SELECT count(*) FILTER (WHERE state = 'delivered'), count(*) FILTER (WHERE state = 'waiting'), "
            "coalesce(sum(row_count) FILTER (WHERE state = 'delivered'), 0)::bigint FROM export_part"
        )
    if progress is None or parts is None:
        raise RuntimeError("an aggregate always has a row")
    readings, refused, watermark = progress
    seconds = (now - before.taken_at).total_seconds() if before else 0
    rate = round((readings - before.readings) / seconds) if before and seconds > 0 else 0
    return Numbers(
        taken_at=now,
        readings=readings,
        readings_per_s=rate,
        refused=refused,
        watermark=watermark,
        closed_until=dict(tuple(row) for row in closed),
        windows_closed=windows,
        parts_delivered=parts[0],
        parts_waiting=parts[1],
        rows_delivered=parts[2],
    )


class Board:
    """Shows numbers, processes and addresses; `note` adds a line about something that happened."""

    def __init__(self, console: Console, addresses: Sequence[tuple[str, str]]) -> None:
        self._console = console
        self._addresses = addresses
        self._events: deque[str] = deque(maxlen=6)
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._last_plain: datetime | None = None

    def __enter__(self) -> "Board":
        if self._live is not None:
            self._live.start()
        else:
            for name, address in self._addresses:
                self._line(f"{name}: {address}")
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def note(self, event: str, now: datetime) -> None:
        """Show that something happened."""
        if self._live is None:
            self._line(f"{iso_seconds(now)} {event}")
        else:
            self._events.append(f"{now:%H:%M:%S} {event}")

    def show(self, numbers: Numbers, services: Sequence[Service]) -> None:
        """Show the present state."""
        if self._live is not None:
            self._live.update(self._picture(numbers, services), refresh=True)
            return
        if self._last_plain is None or (numbers.taken_at - self._last_plain).total_seconds() >= PLAIN_EVERY_S:
            self._last_plain = numbers.taken_at
            self._line(_plain(numbers))

    def _line(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)

    def _picture(self, numbers: Numbers, services: Sequence[Service]) -> Panel:
        facts = Table.grid(padding=(0, 2))
        for name, value in _facts(numbers):
            facts.add_row(Text(name, style="bold"), value)
        processes = Table(box=None, padding=(0, 2), header_style="bold")
        for heading in ("process", "state", "restarts", "health"):
            processes.add_column(heading)
        for service in services:
            style = "green" if service.process.is_running else "red"
            state = Text(service.state, style=style)
            processes.add_row(service.name, state, str(service.restarts), service.health_address)
        places = Table.grid(padding=(0, 2))
        for name, address in self._addresses:
            places.add_row(Text(name, style="bold"), Text(address, overflow="fold"))
        parts: list[Table | Text] = [facts, Text(), processes, Text(), places]
        if self._events:
            parts += [Text(), Text("\n".join(self._events), style="yellow")]
        return Panel(Group(*parts), title="Meterpost", subtitle="Ctrl-C ends everything", title_align="left")


def _facts(numbers: Numbers) -> list[tuple[str, str]]:
    closed = "  ".join(f"{minutes} min {until:%H:%M}" for minutes, until in numbers.closed_until.items())
    return [
        ("readings stored", f"{numbers.readings:,}  ({numbers.readings_per_s:,}/s)"),
        ("readings refused", f"{numbers.refused:,}"),
        ("arrival clock", _clock(numbers)),
        ("windows closed", f"{numbers.windows_closed:,}  until {closed}" if closed else "none yet"),
        ("parts delivered", f"{numbers.parts_delivered:,} with {numbers.rows_delivered:,} rows"),
        ("parts waiting", f"{numbers.parts_waiting:,}"),
    ]


def _clock(numbers: Numbers) -> str:
    lag = numbers.watermark_lag
    if numbers.watermark is None or lag is None:
        return "no reading has arrived yet"
    return f"{iso_seconds(numbers.watermark)}  (lag {lag.total_seconds():,.0f} s)"


def _plain(numbers: Numbers) -> str:
    return f"{iso_seconds(numbers.taken_at)} " + " | ".join(f"{name}: {value}" for name, value in _facts(numbers))
