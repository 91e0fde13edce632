"""The SQL of jobs: finding the due ones, claiming, releasing, stopping."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import asyncpg
import msgspec

from services.delivery.health_store import hold, stop_held, stop_occasion
from services.delivery.job_health import HealthRules
from services.delivery.model import Busy, Claim, Job, JobKey, Pause, Request, Version
from services.delivery.planning import Plan
from services.platform.errors import Superseded
from services.platform.kept_rows import need_rows
from services.platform.postgres import Connection, Pool, transaction

# A job that nobody follows yet; the rest of a crowd of new jobs has its turn at the next look.
MAX_ADOPTED = 500
# As many runs as a job can plan ahead (settings); counting more of them would tell nothing.
MAX_COUNTED = 10_000
NOTHING_BUSY = Busy()

# Up to where slots are due, by resolution; those of catalogs, which have none, by the platform's clock.
_DUE_UNTIL = """
SELECT resolution_minutes, closed_until FROM window_closed
UNION ALL
SELECT 0::smallint, max(watermark) FROM ingest_progress HAVING max(watermark) IS NOT NULL
"""

# Jobs that rest and whose next slot's windows are closed now.
_WAKE_DUE = f"""
UPDATE export_job_progress p SET next_attempt_at = $2
FROM (SELECT r.organization_id, r.job_id
      FROM ({_DUE_UNTIL}) c
      JOIN export_job_progress r ON r.next_resolution_minutes = c.resolution_minutes
                                AND r.next_slot_end <= c.closed_until
      WHERE r.transport = $1 AND r.next_attempt_at IS NULL AND r.stopped_at IS NULL
      FOR UPDATE OF r SKIP LOCKED) d
WHERE p.organization_id = d.organization_id AND p.job_id = d.job_id
"""  # noqa: S608 - put together from constants

CATALOG_INCOMPLETE = "catalog_incomplete"
"""Why a job stopped whose run has rows of which the catalog lacked a name when the run was planned."""

# Stopped jobs that somebody resumed since. What was added to the catalog meanwhile must reach the runs that lacked it.
_WAKE_RESUMED = f"""
WITH woken AS (
    UPDATE export_job_progress p
    SET next_attempt_at = $2, stopped_at = NULL, stopped_reason = NULL, stopped_detail = NULL,
        failing_since = NULL, failed_run_count = 0, told = CASE told WHEN 'paused' THEN 'failing' ELSE told END
    FROM (SELECT r.organization_id, r.job_id, r.stopped_reason
          FROM export_job_progress r JOIN export_job j ON j.job_id = r.job_id AND j.resumed_at > r.stopped_at
          WHERE r.transport = $1 AND r.stopped_at IS NOT NULL
          FOR UPDATE OF r SKIP LOCKED) d
    WHERE p.organization_id = d.organization_id AND p.job_id = d.job_id
    RETURNING p.organization_id, p.job_id, d.stopped_reason
), pinned_anew AS (
    UPDATE export_run t SET catalog_revision = c.revision
    FROM woken, catalog_revision c
    WHERE t.organization_id = woken.organization_id AND t.job_id = woken.job_id AND t.state = 'planned'
      AND woken.stopped_reason = '{CATALOG_INCOMPLETE}'
)
UPDATE export_part t SET failed_in_a_row = 0, next_attempt_at = NULL
FROM woken
WHERE t.organization_id = woken.organization_id AND t.job_id = woken.job_id AND t.state = 'waiting'
"""  # noqa: S608 - put together from constants

# Jobs of which somebody asked something since; one that is being worked on hears of it when it is released. Give-ups
# are left out: they need no turn of the job.
_WAKE_REQUESTED = """
UPDATE export_job_progress p SET next_attempt_at = $2
FROM (SELECT r.organization_id, r.job_id
      FROM export_job_progress r
      JOIN (SELECT organization_id, job_id, max(request_id) AS request_id FROM export_request
            WHERE kind <> 'give_up' GROUP BY 1, 2) q
        ON q.organization_id = r.organization_id AND q.job_id = r.job_id AND q.request_id > r.seen_request
      WHERE r.transport = $1 AND r.stopped_at IS NULL AND r.lease_owner IS NULL AND r.next_slot_end IS NOT NULL
        AND (r.next_attempt_at IS NULL OR r.next_attempt_at > $2)
      FOR UPDATE OF r SKIP LOCKED) d
WHERE p.organization_id = d.organization_id AND p.job_id = d.job_id
"""

# Jobs that rest until a slot which a newer version may have moved.
_WAKE_EDITED = """
UPDATE export_job_progress p SET next_attempt_at = $2
FROM (SELECT r.organization_id, r.job_id
      FROM export_job_progress r
      JOIN (SELECT organization_id, job_id, max(version) AS version FROM export_job_version GROUP BY 1, 2) v
        ON v.organization_id = r.organization_id AND v.job_id = r.job_id AND v.version > r.seen_version
      WHERE r.transport = $1 AND r.next_attempt_at IS NULL AND r.stopped_at IS NULL AND r.next_slot_end IS NOT NULL
      FOR UPDATE OF r SKIP LOCKED) d
WHERE p.organization_id = d.organization_id AND p.job_id = d.job_id
"""

_NEW = f"""
SELECT j.organization_id, j.job_id, j.starts_at
FROM export_job j
WHERE j.deleted_at IS NULL AND j.job_id > $3
  AND NOT EXISTS (SELECT FROM export_job_progress p
                  WHERE p.organization_id = j.organization_id AND p.job_id = j.job_id)
  AND EXISTS (SELECT FROM export_job_version v
              JOIN ({_DUE_UNTIL}) c ON c.resolution_minutes = v.resolution_minutes
              WHERE v.organization_id = j.organization_id AND v.job_id = j.job_id AND v.transport = $1)
ORDER BY j.job_id LIMIT $2
"""  # noqa: S608 - put together from constants

# A catalog tells of no time before the day that the first window's follows: with that state measuring began.
_OPENED = """
SELECT resolution_minutes, greatest(opened_at, dropped_until) AS opened_at
FROM window_closed LEFT JOIN measurement_retention USING (resolution_minutes)
UNION ALL
SELECT 0::smallint, coalesce((SELECT min(opened_at) FROM window_closed), max(watermark)) - interval '24 hours'
FROM ingest_progress HAVING max(watermark) IS NOT NULL
"""

_ADOPT = """
INSERT INTO export_job_progress (organization_id, job_id, transport, destination, seen_version,
                                 next_slot_start, next_slot_end, next_resolution_minutes)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT DO NOTHING
"""

# The oldest first, whoever's; what has enough slots already is passed over.
_CLAIM = """
UPDATE export_job_progress p
SET lease_owner = $3, lease_until = $4, next_attempt_at = $4, epoch = p.epoch + 1
FROM (SELECT organization_id, job_id FROM export_job_progress
      WHERE transport = $1 AND next_attempt_at <= $2 AND destination <> ALL ($5::text[])
        AND organization_id || ' ' || destination <> ALL ($6::text[]) AND organization_id <> ALL ($7::integer[])
        AND (failing_since IS NULL OR NOT ($8::boolean OR organization_id = ANY ($9::integer[])))
      ORDER BY next_attempt_at LIMIT 1
      FOR UPDATE SKIP LOCKED) d
WHERE p.organization_id = d.organization_id AND p.job_id = d.job_id
RETURNING p.organization_id, p.job_id, p.epoch, p.destination, p.failing_since IS NOT NULL AS is_failing
"""

_SEVERAL_ORGANIZATIONS = """
SELECT min(organization_id) <> max(organization_id) FROM export_job_progress
WHERE transport = $1 AND next_slot_end IS NOT NULL AND stopped_at IS NULL
"""

_RENEW = """
UPDATE export_job_progress SET lease_until = $4, next_attempt_at = $4
WHERE organization_id = $1 AND job_id = $2 AND epoch = $3 AND lease_owner IS NOT NULL
"""

_RELEASE = """
UPDATE export_job_progress
SET lease_owner = NULL, lease_until = NULL, transport = $4, destination = $5,
    next_attempt_at = CASE WHEN stopped_at IS NULL THEN $6::timestamptz END
WHERE organization_id = $1 AND job_id = $2 AND epoch = $3
"""

_RETIRE = """
UPDATE export_job_progress
SET lease_owner = NULL, lease_until = NULL, next_attempt_at = NULL, next_slot_end = NULL
WHERE organization_id = $1 AND job_id = $2 AND epoch = $3
"""

_VERSIONS = """
SELECT organization_id, job_id, version, effective_from, name, data, frequency_minutes, resolution_minutes, site_ids,
       transport, transport_settings, manifest
FROM export_job_version JOIN unnest($1::integer[], $2::integer[]) AS k (organization_id, job_id)
  USING (organization_id, job_id)
ORDER BY organization_id, job_id, version
"""

_COUNT_UNFINISHED = """
SELECT count(*) FROM (SELECT FROM export_run
                      WHERE organization_id = $1 AND job_id = $2 AND state IN ('planned', 'frozen') LIMIT $3) r
"""


_REQUESTS = """
SELECT q.request_id, q.kind, q.slot_start, q.range_start, q.range_end, a.planned_until
FROM export_request q LEFT JOIN export_request_result a USING (organization_id, job_id, request_id)
WHERE q.organization_id = $1 AND q.job_id = $2 AND q.request_id > $3 AND q.kind <> 'give_up'
ORDER BY q.request_id
"""


class NewJob(NamedTuple):
    """A job without progress yet."""

    key: JobKey
    starts_at: datetime
    versions: Sequence[Version]


class Adopted(NamedTuple):
    """A new job with its first slot and where it will go."""

    job: NewJob
    first: Plan
    destination: str


class Release(NamedTuple):
    """How a job is left: when (None: with its next slot), by which process and where to it goes on."""

    next_attempt_at: datetime | None
    transport: str
    destination: str


class JobStore:
    """Jobs of one transport. Every method raises Unavailable while PostgreSQL is away."""

    def __init__(self, pool: Pool, transport: str, instance: str, rules: HealthRules | None = None) -> None:
        self._pool = pool
        self._rules = rules or HealthRules()
        self._transport = transport
        self._instance = instance

    async def wake(self, now: datetime) -> None:
        """Make due the jobs whose next slot is closed and those that were resumed.

        Runs of a job that lacked names of the catalog pin its newest revision, unless they are frozen.
        """
        async with transaction(self._pool) as connection:
            await connection.execute(_WAKE_DUE, self._transport, now)
            await connection.execute(_WAKE_RESUMED, self._transport, now)

    async def wake_edited(self, now: datetime) -> None:
        """Make due the jobs that got a version or a request since they were last looked at."""
        async with transaction(self._pool) as connection:
            await connection.execute(_WAKE_EDITED, self._transport, now)
            await connection.execute(_WAKE_REQUESTED, self._transport, now)

    async def take_back(self, now: datetime) -> None:
        """Make due what an earlier process of the same name still holds; its results are refused from now on."""
        async with transaction(self._pool) as connection:
            await connection.execute(
                "UPDATE export_job_progress SET next_attempt_at = $3, epoch = epoch + 1, lease_owner = NULL, "
                "lease_until = NULL WHERE transport = $1 AND next_attempt_at IS NOT NULL AND lease_owner = $2",
                self._transport,
                self._instance,
                now,
            )

    async def new_jobs(self, after: int = 0) -> list[NewJob]:
        """Return jobs of this transport that have no progress yet, at most MAX_ADOPTED, in the order of their ids."""
        async with transaction(self._pool) as connection:
            found = await connection.fetch(_NEW, self._transport, MAX_ADOPTED, after)
            starts = {JobKey(row["organization_id"], row["job_id"]): row["starts_at"] for row in found}
            versions = await _versions(connection, list(starts)) if starts else {}
        return [NewJob(key, starts_at, versions[key]) for key, starts_at in starts.items()]

    async def opened_at(self) -> dict[int, datetime]:
        """Return from where on each resolution has rows to send.

        Windows before the first closing are empty by definition; later ones may have been dropped by retention.
        """
        async with transaction(self._pool) as connection:
            rows = await connection.fetch(_OPENED)
        return {row["resolution_minutes"]: row["opened_at"] for row in rows}

    async def adopt(self, adopted: Sequence[Adopted]) -> int:
        """Follow new jobs from their first slots on; they rest until those are closed. Return how many it were.

        A job whose first slot's rows were dropped meanwhile stays a new one; looked at again, it begins later.
        """
        async with transaction(self._pool) as connection:
            dropped_until = await need_rows(connection)
            kept = [
                one
                for one in adopted
                if one.first.next_slot.start
                >= dropped_until.get(one.first.next_version.resolution_minutes, one.first.next_slot.start)
            ]
            await connection.executemany(
                _ADOPT,
                [
                    (
                        *job.key,
                        first.next_version.transport,
                        destination,
                        job.versions[-1].version,
                        *first.next_slot,
                        first.next_version.resolution_minutes,
                    )
                    for job, first, destination in kept
                ],
            )
        return len(kept)

    async def has_several_organizations(self) -> bool:
        """Tell whether more than one organization has jobs that are followed."""
        async with transaction(self._pool) as connection:
            return bool(await connection.fetchval(_SEVERAL_ORGANIZATIONS, self._transport))

    async def claim(self, now: datetime, lease: timedelta, busy: Busy = NOTHING_BUSY) -> Claim | None:
        """Claim the job that has been due for the longest time, if there is one."""
        async with transaction(self._pool) as connection:
            row = await connection.fetchrow(
                _CLAIM,
                self._transport,
                now,
                self._instance,
                now + lease,
                list(busy.addresses),
                [f"{organization_id} {address}" for organization_id, address in busy.accounts],
                list(busy.organizations),
                busy.is_failing_busy,
                list(busy.failing_organizations),
            )
        if row is None:
            return None
        key = JobKey(row["organization_id"], row["job_id"])
        return Claim(key, row["epoch"], row["destination"], row["is_failing"])

    async def renew(self, claim: Claim, lease_until: datetime) -> None:
        """Keep the claim for longer. Without effect where it is over."""
        async with transaction(self._pool) as connection:
            await connection.execute(_RENEW, *claim.job, claim.epoch, lease_until)

    async def release(self, claim: Claim, release: Release) -> None:
        """Give the claim up. Without effect where it is over; a stopped job stays stopped."""
        async with transaction(self._pool) as connection:
            await connection.execute(
                _RELEASE, *claim.job, claim.epoch, release.transport, release.destination, release.next_attempt_at
            )

    async def stop(self, claim: Claim, at: datetime, reason: str, detail: str) -> None:
        """Stop the job until it is resumed. Raises Superseded."""
        async with transaction(self._pool) as connection:
            health = await hold(connection, claim)
            occasion = stop_occasion(at, reason, detail, health)
            await stop_held(connection, claim.job, health, occasion, self._rules)

    async def retire(self, claim: Claim) -> None:
        """Note that the job has been deleted: it is never due again."""
        async with transaction(self._pool) as connection:
            await connection.execute(_RETIRE, *claim.job, claim.epoch)

    async def load(self, claim: Claim) -> Job:
        """Return what is known of the job now."""
        key = claim.job
        async with transaction(self._pool) as connection:
            row = await connection.fetchrow(
                "SELECT j.deleted_at, p.next_slot_start, p.seen_version, p.seen_request "
                "FROM export_job_progress p JOIN export_job j USING (job_id) "
                "WHERE p.organization_id = $1 AND p.job_id = $2 AND p.epoch = $3",
                *key,
                claim.epoch,
            )
            if row is None:
                raise Superseded(f"job {key.job_id} is worked on by somebody else; epoch {claim.epoch} is over")
            versions = await _versions(connection, [key])
            pauses = await connection.fetch(
                "SELECT paused_from, resumed_from FROM export_job_pause WHERE organization_id = $1 AND job_id = $2 "
                "ORDER BY paused_from",
                *key,
            )
            closed = await connection.fetch(_DUE_UNTIL)
            unfinished = await connection.fetchval(_COUNT_UNFINISHED, *key, MAX_COUNTED)
            requests = await connection.fetch(_REQUESTS, *key, row["seen_request"])
        return Job(
            key,
            is_deleted=row["deleted_at"] is not None,
            planned_until=row["next_slot_start"],
            seen_version=row["seen_version"],
            versions=versions[key],
            pauses=[Pause(*pause) for pause in pauses],
            closed_until={row["resolution_minutes"]: row["closed_until"] for row in closed},
            unfinished_runs=unfinished,
            requests=[Request(*request) for request in requests],
        )


async def _versions(connection: Connection, keys: Sequence[JobKey]) -> dict[JobKey, list[Version]]:
    organizations, jobs = zip(*keys, strict=True)
    found: dict[JobKey, list[Version]] = {key: [] for key in keys}
    for row in await connection.fetch(_VERSIONS, organizations, jobs):
        found[JobKey(row["organization_id"], row["job_id"])].append(_version_from_row(row))
    return found


def _version_from_row(row: asyncpg.Record) -> Version:
    return Version(
        version=row["version"],
        effective_from=row["effective_from"],
        name=row["name"],
        data=row["data"],
        frequency_minutes=row["frequency_minutes"],
        resolution_minutes=row["resolution_minutes"],
        site_ids=None if row["site_ids"] is None else tuple(row["site_ids"]),
        transport=row["transport"],
        settings=msgspec.json.decode(row["transport_settings"], type=dict[str, Any]),
        has_manifest=row["manifest"],
    )
