"""Which meters were silent or partial in a span of windows. Read only."""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, NamedTuple

from services.api.catalog_queries import AnyConnection

MeterState = Literal["silent", "partial", "complete"]


class MeterCompleteness(NamedTuple):
    """One meter, over the windows in which some device was to report it, none shorter than its cadence."""

    meter_id: int
    meter_name: str
    site_id: int
    site_name: str | None
    windows: int
    windows_present: int
    """Those with a row."""
    intervals_expected: int
    intervals_present: int
    last_window_start: datetime | None
    """Of the windows with a row."""

    @property
    def state(self) -> MeterState:
        """Whether it reported nothing, some, or everything."""
        if self.windows_present == 0:
            return "silent"
        return "complete" if self.intervals_present == self.intervals_expected else "partial"


class CompletenessTotals(NamedTuple):
    """All meters of the span together."""

    meters: int
    silent: int
    partial: int
    intervals_expected: int
    intervals_present: int


async def completeness_of(
    connection: AnyConnection,
    organization_id: int,
    resolution_minutes: int,
    start: datetime,
    end: datetime,
    site_id: int | None,
) -> list[MeterCompleteness]:
    """Return every meter that was to report in windows that start in [start, end), as the catalog is known now.

    In windows shorter than its cadence a meter is not to report: `meters_that_report_less_often` names those.
    """
    rows = await connection.fetch(
        """
        SELECT f.meter_id, c.name, f.site_id, d.name, f.windows, f.windows_present, f.intervals_expected,
               f.intervals_present, f.last_window_start
        FROM completeness($1, $2, $3, $4, (SELECT revision FROM catalog_revision), $5) f
        CROSS JOIN LATERAL (
            SELECT name FROM meter_configuration
            WHERE meter_id = f.meter_id AND valid_from < $4 ORDER BY valid_from DESC, revision DESC LIMIT 1) c
        LEFT JOIN LATERAL (
            SELECT name FROM site_description
            WHERE site_id = f.site_id AND valid_from < $4 ORDER BY valid_from DESC, revision DESC LIMIT 1) d ON true
        ORDER BY f.meter_id
        """,
        organization_id,
        resolution_minutes,
        start,
        end,
        None if site_id is None else [site_id],
    )
    return [MeterCompleteness(*row) for row in rows]


async def meters_that_report_less_often(
    connection: AnyConnection,
    organization_id: int,
    resolution_minutes: int,
    start: datetime,
    end: datetime,
    site_id: int | None,
) -> list[int]:
    """Return the meters whose cadence is longer than the resolution in some window that starts in [start, end).

    No reading of theirs fits into such a window, so nothing is expected of them there.
    """
    rows = await connection.fetch(
        """
        SELECT DISTINCT meter_id
        FROM reporting_stretches($1, $2, $3, $4, (SELECT revision FROM catalog_revision), $5)
        WHERE cadence_minutes > $2 ORDER BY meter_id
        """,
        organization_id,
        resolution_minutes,
        start,
        end,
        None if site_id is None else [site_id],
    )
    return [row["meter_id"] for row in rows]


def totals_of(meters: Sequence[MeterCompleteness]) -> CompletenessTotals:
    """Return the sums."""
    states = [meter.state for meter in meters]
    return CompletenessTotals(
        len(meters),
        states.count("silent"),
        states.count("partial"),
        sum(meter.intervals_expected for meter in meters),
        sum(meter.intervals_present for meter in meters),
    )


class ClosedSpan(NamedTuple):
    """Windows that start from `opened_at` to before `closed_until` are closed for every meter."""

    opened_at: datetime
    closed_until: datetime
    dropped_until: datetime | None
    """The rows of windows that start before this were dropped by retention; None: none was."""


async def closed_span(connection: AnyConnection, resolution_minutes: int) -> ClosedSpan | None:
    """Return which windows of a resolution are closed; None: none is."""
    row = await connection.fetchrow(
        "SELECT opened_at, closed_until, dropped_until FROM window_closed "
        "LEFT JOIN measurement_retention USING (resolution_minutes) WHERE resolution_minutes = $1",
        resolution_minutes,
    )
    return None if row is None else ClosedSpan(*row)
