"""The live board of `make run`: a table on a terminal, a line every few seconds elsewhere."""

from collections import deque
from collections.abc import Sequence
from datetime import datetime

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from services.core.times import iso_seconds
from services.local.supervised import Service
from services.local.tally import Numbers

PLAIN_EVERY_S = 5.0


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
