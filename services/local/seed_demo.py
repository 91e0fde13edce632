"""Seeds the demo: its certificates, its organization with the meters, its export jobs.

`make run` calls `seed_demo`; with Docker, where every part runs by itself, it is `python -m services.local.seed_demo`.
Safe to repeat: what is there stays, and the jobs are pointed at the receiver's present address.
"""

import asyncio
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field

from services.api.job_store import NO_KEYS
from services.core.times import floor_to
from services.local.certificates import ensure_certificates
from services.local.demo_catalog import ORGANIZATION, Destination, backfill_recent, has_jobs, move_jobs, seed, seed_jobs
from services.local.demo_catalog_job import ensure_catalog_job
from services.local.demo_file_jobs import ensure_file_jobs
from services.local.demo_hosted import ensure_customer
from services.local.demo_receivers import FileReceiver
from services.platform.clock import SystemClock
from services.platform.command_line import service_parser
from services.platform.errors import MeterpostError, UserError
from services.platform.postgres import Pool, connect_pool
from services.platform.secrets import Vault
from services.platform.settings import DatabaseSettings, load

EXIT_FAILED = 1
EXIT_BAD_SETTINGS = 2


class SeedSettings(DatabaseSettings):
    """Settings of the seeding as a program of its own."""

    meters: int = Field(500, ge=5, le=100_000, description="Meters of the demo organization, set at the first start.")
    replay_hours: int = Field(2, ge=0, le=48, description="How much of the past the fleet replays at the first start.")
    receiver_url: str = Field("https://localhost:8443/meterpost", description="Where the demo's receiver listens.")
    certificate_folder: Path = Field(Path("certificates"), description="Where the demo's certificates are kept.")


async def seed_demo(
    pool: Pool,
    destination: Destination,
    *,
    meters: int,
    replay: timedelta | None,
    now: datetime,
    files: Sequence[FileReceiver] = (),
    hosted_customer_key: str | None = None,
    vault: Vault = NO_KEYS,
) -> bool:
    """Create what is missing of the demo; tell whether its organization was created. Raises Unavailable.

    `replay` is how much of the past the simulated fleet sends at the first start; None: there is no fleet. `files` are
    the receivers of files, whose secrets the vault seals; `hosted_customer_key` is the public key of the customer who
    fetches from the hosted folder, None: there is none.
    """
    created = await seed(pool, meters=meters)
    starts_at = floor_to(now - (replay or timedelta()), timedelta(minutes=1))
    is_new = not await has_jobs(pool)
    if hosted_customer_key is not None:
        await ensure_customer(pool, hosted_customer_key)
    with_hosted = hosted_customer_key is not None
    await ensure_file_jobs(pool, files, vault, with_hosted=with_hosted, starts_at=starts_at, now=now)
    await ensure_catalog_job(pool, destination, vault, starts_at=starts_at, now=now)
    if is_new:
        await seed_jobs(pool, destination, vault, starts_at=starts_at, now=now)
        return created
    await move_jobs(pool, destination, vault, now=now)
    if replay is not None:
        await backfill_recent(pool, destination, vault, now=now)
    return created


async def _run(settings: SeedSettings) -> None:
    now = SystemClock().now()
    host = urlsplit(settings.receiver_url).hostname
    certificates = ensure_certificates(settings.certificate_folder, now, [host] if host else [])
    destination = Destination(settings.receiver_url, certificates.authority.read_text(encoding="ascii"))
    pool = await connect_pool(settings.database_url.get_secret_value(), max_size=2)
    try:
        replay = timedelta(hours=settings.replay_hours)
        created = await seed_demo(pool, destination, meters=settings.meters, replay=replay, now=now)
    finally:
        pool.terminate()
    what = f"created, with {settings.meters:,} meters" if created else "there already"
    print(f"the organization {ORGANIZATION} is {what}; its jobs send to {settings.receiver_url}")  # noqa: T201


def main() -> int:
    """Seed the demo and return the exit code."""
    about = "Seeds the demo: its certificates, its organization with the meters, its export jobs. Safe to repeat."
    told = service_parser(about, SeedSettings).parse_args()
    try:
        settings = load(SeedSettings)
        if not told.check_config:
            asyncio.run(_run(settings))
    except MeterpostError as error:
        print(f"seed_demo: {error}", file=sys.stderr)  # noqa: T201 - a command's answer
        return EXIT_BAD_SETTINGS if isinstance(error, UserError) else EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
