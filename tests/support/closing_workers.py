"""Workers of windowing that a test drives and kills, and edits of the catalog that it makes meanwhile."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import pytest

from services.core.conversion import Conversion, convert
from services.core.times import floor_to
from services.core.windows import DEFAULT_GRACE, RESOLUTIONS_MINUTES, opening
from services.platform.kafka import Partition
from services.platform.postgres import Pool
from services.windowing.settings import WindowingSettings
from services.windowing.store import WindowStore
from tests.support.closing import MINUTE, TOPICS, Row, configure

CRASH_POINTS = ("windowing.claimed", "windowing.bucket_written", "windowing.bucket_closed")


class Died(Exception):  # noqa: N818 - not an error: a process ends
    """A worker was killed."""


@contextmanager
def dying_at(point: str) -> Iterator[None]:
    """End whoever passes a crash point. The server rolls back what is not committed, as it does for a lost client."""

    def die(name: str) -> None:
        if name == point:
            raise Died(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("services.windowing.store.crash_point", die)
        yield


def new_worker(pool: Pool, buckets: int) -> WindowStore:
    """Return a worker as a process begins: with nothing but the tables."""
    settings: dict[str, Any] = {
        "buckets": buckets,
        "kafka_bootstrap_servers": "127.0.0.1:9",
        "database_url": "postgresql://nobody@127.0.0.1/x",
    }
    return WindowStore(pool, WindowingSettings(**settings), TOPICS)


async def close(worker: WindowStore, resolution: int, clock: datetime, partitions: Sequence[Partition]) -> None:
    """Let a worker close what is due of a resolution, opening it when all partitions have been heard of."""
    progress = await worker.progress()
    arrivals = [progress[key].first_arrival for key in partitions if key in progress]
    heard = [arrival for arrival in arrivals if arrival is not None]
    if len(heard) == len(partitions):
        first = min(heard)
        await worker.open({one: opening(first, one, DEFAULT_GRACE) for one in RESOLUTIONS_MINUTES})
    for key in sorted(worker.keys):
        if key.resolution_minutes == resolution:
            # Told too much: the tables decide.
            await worker.advance(key, clock + timedelta(days=1))
    await worker.move_closed(resolution)


class Edits:
    """What the meters' pulses count for since when; at first as `meters` says."""

    def __init__(self, meters: dict[int, Conversion], moduli: dict[int, int]) -> None:
        self._meters = meters
        self._moduli = moduli
        self._since: dict[int, dict[datetime, Conversion]] = {meter: {} for meter in meters}
        self._revision = 1

    @staticmethod
    async def forget(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        """Take all edits back."""
        await connection.execute("DELETE FROM meter_configuration WHERE revision > 1")
        await connection.execute("UPDATE catalog_revision SET revision = 1")

    async def make(
        self, connection: "asyncpg.Connection[asyncpg.Record]", meter: int, units_per_pulse: Decimal, clock: datetime
    ) -> None:
        """Edit a meter from the next minute on."""
        self._revision += 1
        valid_from = floor_to(clock, MINUTE) + MINUTE
        conversion = replace(self._meters[meter], units_per_pulse=units_per_pulse)
        self._since[meter][valid_from] = conversion
        modulus = self._moduli.get(meter)
        async with connection.transaction():
            await connection.execute("UPDATE catalog_revision SET revision = $1", self._revision)
            await configure(
                connection, meter, conversion, valid_from=valid_from, revision=self._revision, modulus=modulus
            )

    def is_edited(self, row: Row) -> bool:
        """Tell whether an edit was in force at the start of a row's window."""
        return any(valid_from <= row.window_start for valid_from in self._since[row.meter_id])

    def converted(self, row: Row) -> Row:
        """Return the row by the configuration in force at the start of its window."""
        if not self.is_edited(row):
            return row
        edits = self._since[row.meter_id]
        newest = max(valid_from for valid_from in edits if valid_from <= row.window_start)
        energy_wh, volume = convert(row.pulses, edits[newest])
        return row._replace(energy_wh=energy_wh, volume=volume)
