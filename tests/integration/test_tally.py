"""The numbers of the board: the same as counting everything anew, without looking at what is old."""

import random
from datetime import UTC, datetime, timedelta

from services.local.tally import Numbers, Tally
from services.platform.postgres import Pool

T0 = datetime(2026, 11, 20, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
BUCKETS = 3
JOBS = (1, 2)


class Instance:
    """Windows that close bucket by bucket and parts that go out in order, at random speeds."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._rng = random.Random(5)
        self._frontier = {(resolution, bucket): T0 for resolution in (1, 60) for bucket in range(BUCKETS)}
        self._parts: dict[int, list[tuple[datetime, int]]] = {job: [] for job in JOBS}
        self._slots = dict.fromkeys(JOBS, T0)

    async def step(self) -> None:
        for key in self._rng.sample(sorted(self._frontier), 3):
            await self._close(*key, self._rng.randrange(4))
        for job in JOBS:
            if not self._parts[job] and self._rng.random() < 0.8:
                await self._freeze(job, self._rng.randrange(1, 4))
            await self._deliver(job, self._rng.randrange(4))

    async def _close(self, resolution: int, bucket: int, windows: int) -> None:
        for _ in range(windows):
            start = self._frontier[resolution, bucket]
            if self._rng.random() < 0.7:
                await self._pool.execute(
                    "INSERT INTO window_closing VALUES ($1, $2, $3, $2, 1, 1, '', '{}')", resolution, start, bucket
                )
            self._frontier[resolution, bucket] = start + resolution * MINUTE
        reached = min(self._frontier[resolution, other] for other in range(BUCKETS))
        await self._pool.execute(
            "INSERT INTO window_closed VALUES ($1, $2, $3) "
            "ON CONFLICT (resolution_minutes) DO UPDATE SET closed_until = excluded.closed_until",
            *(resolution, T0, reached),
        )

    async def _freeze(self, job: int, parts: int) -> None:
        await self._pool.execute(
            "INSERT INTO export_job_progress (organization_id, job_id, transport, destination, seen_version, "
            "next_slot_start, next_resolution_minutes) VALUES (1, $1, 'https', '', 1, $2, 60) ON CONFLICT DO NOTHING",
            *(job, T0),
        )
        slot = self._slots[job] = self._slots[job] + 60 * MINUTE
        self._parts[job] = [(slot, part) for part in range(1, parts + 1)]
        await self._pool.executemany(
            "INSERT INTO export_part (organization_id, job_id, slot_start, part, first_measured_at, first_meter_id, "
            "row_count, byte_count, sha256) VALUES (1, $1, $2, $3, $2, 1, $4, 1, '')",
            [(job, slot, part, self._rng.randrange(1, 2_000)) for _, part in self._parts[job]],
        )

    async def _deliver(self, job: int, parts: int) -> None:
        sent, self._parts[job] = self._parts[job][:parts], self._parts[job][parts:]
        await self._pool.executemany(
            "UPDATE export_part SET state = 'delivered' WHERE job_id = $1 AND slot_start = $2 AND part = $3",
            [(job, *part) for part in sent],
        )


async def counted_anew(pool: Pool) -> tuple[int, ...]:
    row = await pool.fetchrow(
        """
        SELECT (SELECT count(*) FROM (SELECT DISTINCT resolution_minutes, window_start FROM window_closing) w),
               count(*) FILTER (WHERE state = 'delivered'), count(*) FILTER (WHERE state = 'waiting'),
               coalesce(sum(row_count) FILTER (WHERE state = 'delivered'), 0)::bigint
        FROM export_part
        """
    )
    assert row is not None
    return tuple(row)


def shown(numbers: Numbers) -> tuple[int, ...]:
    return numbers.windows_closed, numbers.parts_delivered, numbers.parts_waiting, numbers.rows_delivered


async def test_running_totals_are_those_of_counting_everything(pool: Pool) -> None:
    instance, often, seldom = Instance(pool), Tally(), Tally()
    assert shown(await often.take(pool, T0)) == (0, 0, 0, 0)
    for number in range(1, 61):
        await instance.step()
        assert shown(await often.take(pool, T0 + number * MINUTE)) == await counted_anew(pool)
        if number % 13 == 0:
            assert shown(await seldom.take(pool, T0 + number * MINUTE)) == await counted_anew(pool)
    assert min((await counted_anew(pool))[:2]) > 50


async def test_what_can_change_no_more_is_not_looked_at_again(pool: Pool) -> None:
    instance, tally = Instance(pool), Tally()
    for _ in range(30):
        await instance.step()
    before = shown(await tally.take(pool, T0))
    closed = await pool.execute(
        "DELETE FROM window_closing w USING window_closed c "
        "WHERE w.resolution_minutes = c.resolution_minutes AND w.window_start < c.closed_until"
    )
    parts = await pool.execute(
        "DELETE FROM export_part p WHERE slot_start < (SELECT max(slot_start) FROM export_part newest "
        "WHERE newest.job_id = p.job_id AND newest.state = 'delivered')"
    )
    assert "DELETE 0" not in {closed, parts}
    assert shown(await tally.take(pool, T0 + MINUTE)) == before


async def test_readings_come_with_their_rate(pool: Pool) -> None:
    tally = Tally()
    insert = (
        "INSERT INTO ingest_progress (topic, partition, next_offset, watermark, epoch, owner, stored_count, "
        "refused_count) VALUES ('readings.bridge', 0, 1, $1, 1, 'test', $2, 3) "
        "ON CONFLICT (topic, partition) DO UPDATE SET stored_count = excluded.stored_count"
    )
    await pool.execute(insert, T0, 100)
    first = await tally.take(pool, T0 + MINUTE)
    assert (first.readings, first.readings_per_s, first.refused, first.watermark) == (100, 0, 3, T0)
    assert first.watermark_lag == MINUTE
    await pool.execute(insert, T0, 700)
    second = await tally.take(pool, T0 + 2 * MINUTE)
    assert (second.readings, second.readings_per_s) == (700, 10)
