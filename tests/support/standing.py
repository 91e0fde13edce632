"""Where everything stands from the readings to one job's runs: what to know when something has not arrived."""

from tests.support.platform import Platform

# Each names one of these at most.
_JOB, _RESOLUTION = ":job", ":resolution"
_QUESTIONS = {
    "ingest": "SELECT topic, partition, next_offset, watermark, stored_count, refused_count FROM ingest_progress",
    "refused": "SELECT reason, count(*), min(source_offset) AS first FROM rejected_reading GROUP BY 1",
    "windows": "SELECT * FROM window_closed ORDER BY resolution_minutes",
    "buckets": "SELECT resolution_minutes, closed_until, count(*) FROM window_frontier GROUP BY 1, 2 ORDER BY 1, 2",
    "job": "SELECT * FROM export_job_progress WHERE job_id = :job",
    "runs": """
        SELECT state, count(*), min(slot_start) AS first, max(slot_start) AS last, sum(row_count) AS row_count,
               min(planned_at) AS planned_from, max(planned_at) AS planned_to, max(frozen_at) AS frozen_to,
               max(finished_at) AS finished_to
        FROM export_run WHERE job_id = :job GROUP BY 1""",
    "last runs": """
        SELECT slot_start, state, row_count, planned_at, frozen_at, finished_at, part_count
        FROM export_run WHERE job_id = :job ORDER BY slot_start DESC LIMIT 20""",
    "waiting parts": "SELECT * FROM export_part WHERE job_id = :job AND state = 'waiting' ORDER BY slot_start LIMIT 5",
    # Of each day: what is stored, what of it was in time, and what was counted; and how its windows were closed.
    "last days": """
        WITH stored AS (
            SELECT date_trunc('day', measured_at, 'UTC') AS day, count(*) AS stored,
                   min(arrived_at) AS first_arrival, max(arrived_at) AS last_arrival
            FROM reading GROUP BY 1
        ), measured AS (
            SELECT date_trunc('day', window_start, 'UTC') AS day, count(*) AS measured
            FROM measurement WHERE resolution_minutes = :resolution GROUP BY 1
        ), closed AS (
            SELECT date_trunc('day', window_start, 'UTC') AS day, count(*) AS closed, sum(row_count) AS closed_rows,
                   min(offsets::text) AS first_offsets, max(offsets::text) AS last_offsets
            FROM window_closing WHERE resolution_minutes = :resolution GROUP BY 1
        )
        SELECT * FROM stored FULL JOIN measured USING (day) FULL JOIN closed USING (day) ORDER BY day DESC LIMIT 20""",
    "sessions": """
        SELECT pid, state, wait_event_type, wait_event, now() - xact_start AS in_transaction, left(query, 100) AS query
        FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()""",
}


async def standing_of(platform: Platform, job_id: int) -> str:
    """Return in lines where ingest, windows and a job stand, each beginning with what it tells of."""
    resolution = await platform.value(
        "SELECT resolution_minutes FROM export_job_version WHERE job_id = $1 ORDER BY version DESC LIMIT 1", job_id
    )
    lines = []
    for topic, query in _QUESTIONS.items():
        given = {_JOB: job_id, _RESOLUTION: resolution}
        arguments = [value for name, value in given.items() if name in query]
        asked = query.replace(_JOB, "$1").replace(_RESOLUTION, "$1")
        lines += [f"{topic}: {_told(row)}" for row in await platform.fetch(asked, *arguments)]
    return "\n".join(lines)


def _told(row: dict[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in row.items())
