"""The SQL of a job's health: how it fares, its stops and the notices about it, inside the caller's transaction."""

from datetime import datetime

import msgspec

from services.delivery.job_health import Consequence, HealthRules, JobHealth, after_stop
from services.delivery.model import Claim, JobKey
from services.delivery.notices import Occasion, notice
from services.platform.errors import Superseded
from services.platform.postgres import Connection

# Not before the last resume, which another clock may have dated: it must not lift a stop that came after it.
_STOP = """
UPDATE export_job_progress
SET lease_owner = NULL, lease_until = NULL, next_attempt_at = NULL,
    stopped_at = GREATEST($3, (SELECT resumed_at FROM export_job WHERE job_id = $2)),
    stopped_reason = $4, stopped_detail = $5
WHERE organization_id = $1 AND job_id = $2
"""

_FARES = """
UPDATE export_job_progress SET failing_since = $3, failed_run_count = $4, told = $5
WHERE organization_id = $1 AND job_id = $2
"""

_ABOUT = """
SELECT o.name AS organization, j.job_id,
       (SELECT name FROM export_job_version v WHERE v.organization_id = $1 AND v.job_id = $2
        ORDER BY version DESC LIMIT 1) AS name,
       (SELECT count(*) FROM export_run r
        WHERE r.organization_id = $1 AND r.job_id = $2 AND r.state IN ('planned', 'frozen')) AS waiting_runs,
       (SELECT count(*) FROM export_run r
        WHERE r.organization_id = $1 AND r.job_id = $2 AND r.state = 'failed') AS failed_runs
FROM export_job j JOIN organization o USING (organization_id) WHERE j.job_id = $2
"""

_TELL = """
INSERT INTO notification (organization_id, job_id, channel, address, content, created_at, next_attempt_at)
SELECT $1, $2, told.channel, told.address, $3::jsonb, $4, $4
FROM notification_settings s
CROSS JOIN LATERAL (
    SELECT 'email' AS channel, address FROM unnest(s.emails) address
    UNION ALL SELECT 'webhook', s.webhook_url WHERE s.webhook_url IS NOT NULL) told
WHERE s.organization_id = $1
"""


async def hold(connection: Connection, claim: Claim) -> JobHealth:
    """Lock the job until the transaction ends. Raises Superseded where somebody else has claimed it since."""
    row = await connection.fetchrow(
        "SELECT failing_since, failed_run_count, told FROM export_job_progress "
        "WHERE organization_id = $1 AND job_id = $2 AND epoch = $3 FOR UPDATE",
        *claim.job,
        claim.epoch,
    )
    if row is None:
        raise Superseded(f"job {claim.job.job_id} is worked on by somebody else; epoch {claim.epoch} is over")
    return JobHealth(*row)


async def store_consequence(
    connection: Connection, job: JobKey, consequence: Consequence, occasion: Occasion, rules: HealthRules
) -> None:
    """Store how a job that the transaction holds fares now, and whom to tell of it."""
    await connection.execute(_FARES, *job, *consequence.health)
    if consequence.news is not None:
        about = await connection.fetchrow(_ABOUT, *job)
        if about is not None:
            content = msgspec.json.encode(notice(occasion, dict(about), rules)).decode()
            await connection.execute(_TELL, *job, content, occasion.at)


async def stop_held(
    connection: Connection, job: JobKey, health: JobHealth, occasion: Occasion, rules: HealthRules
) -> None:
    """Stop a job that the transaction holds: nothing is sent until it is resumed. The organization is told."""
    await connection.execute(_STOP, *job, occasion.at, occasion.reason, occasion.detail)
    consequence = after_stop(health, occasion.at)
    if health.told == "paused":
        consequence = consequence._replace(news=None)
    await store_consequence(connection, job, consequence, occasion, rules)


def stop_occasion(at: datetime, reason: str, detail: str, health: JobHealth) -> Occasion:
    """Return the occasion of a stop that no run is the cause of."""
    return Occasion("paused", at, reason, detail, health.failing_since or at)
