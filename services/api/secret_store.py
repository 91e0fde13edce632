"""Every sealed text of the database, for operators: with which keys, and sealing all of them with the newest one."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import NamedTuple

from services.api.catalog_queries import AnyConnection
from services.core.transport_secrets import SEALED, job_place, notification_place
from services.platform.errors import UserError
from services.platform.postgres import Connection, Pool, transaction
from services.platform.secrets import KeyMissing, SecretUnreadableError, Vault, sealed_with

BATCH = 100
UNREADABLE = (KeyMissing, SecretUnreadableError)

_JOB_VERSIONS = """
SELECT organization_id, job_id, version, transport_settings -> 'sealed' AS sealed FROM export_job_version
WHERE transport_settings ? 'sealed' AND (organization_id, job_id, version) > ($1, $2, $3)
ORDER BY organization_id, job_id, version LIMIT $4
FOR UPDATE
"""
_NOTIFICATIONS = """
SELECT organization_id, sealed FROM notification_settings WHERE sealed <> '{}' ORDER BY organization_id FOR UPDATE
"""


class Rotated(NamedTuple):
    """How many sealed texts there are, how many were sealed anew, and which could not be opened."""

    total: int
    resealed: int
    unreadable: list[str]


async def keys_in_use(connection: AnyConnection) -> dict[str, int]:
    """Return how many texts are sealed with each key, by its id."""
    rows = await connection.fetch(
        """
        SELECT value FROM export_job_version, jsonb_each_text(transport_settings -> 'sealed') WHERE
               transport_settings ? 'sealed'
        UNION ALL SELECT value FROM notification_settings, jsonb_each_text(sealed)
        """
    )
    return dict(Counter(sealed_with(row["value"]) for row in rows).most_common())


async def reseal_all(
    pool: Pool, vault: Vault, acted_by: str, now: datetime, progress: Callable[[int], None]
) -> Rotated:
    """Seal with the newest key whatever is sealed with another one.

    Each hundred rows are a transaction of their own, so that it can be broken off and repeated; what was done is
    recorded in operator_action. `progress` is told how many texts were looked at. Raises UserError where there is no
    key.
    """
    if not vault.key_ids:
        raise UserError("there is no key to seal with: set METERPOST_SECRET_KEYS_FILE or METERPOST_SECRET_KEYS")
    total = resealed = 0
    unreadable: list[str] = []
    place = (0, 0, 0)
    while True:
        async with transaction(pool) as connection:
            rows = await connection.fetch(_JOB_VERSIONS, *place, BATCH)
            for organization_id, job_id, version, sealed in rows:
                place = (organization_id, job_id, version)
                fresh, missed = _resealed(vault, json.loads(sealed), partial(job_place, organization_id, job_id))
                unreadable += [f"{name} of job {job_id}, version {version}: {why}" for name, why in missed.items()]
                total += len(json.loads(sealed))
                resealed += len(fresh)
                if fresh:
                    await _store_job(connection, place, fresh)
        progress(total)
        if len(rows) < BATCH:
            break
    async with transaction(pool) as connection:
        for organization_id, sealed in await connection.fetch(_NOTIFICATIONS):
            fresh, missed = _resealed(vault, json.loads(sealed), partial(notification_place, organization_id))
            unreadable += [f"{name} of organization {organization_id}: {why}" for name, why in missed.items()]
            total += len(json.loads(sealed))
            resealed += len(fresh)
            await connection.execute(
                "UPDATE notification_settings SET sealed = sealed || $2::jsonb WHERE organization_id = $1",
                organization_id,
                json.dumps(fresh),
            )
        details = {"key": vault.key_ids[0], "total": total, "resealed": resealed, "unreadable": len(unreadable)}
        await connection.execute(
            "INSERT INTO operator_action (acted_at, acted_by, action, details) VALUES ($1, $2, $3, $4::jsonb)",
            now,
            acted_by,
            "secrets_rotated",
            json.dumps(details),
        )
    progress(total)
    return Rotated(total, resealed, unreadable)


def _resealed(
    vault: Vault, sealed: Mapping[str, str], place: Callable[[str], tuple[str | int, ...]]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the texts that had to be sealed anew, by name, and why others could not be opened."""
    fresh, missed = {}, {}
    for name, text in sealed.items():
        try:
            if not vault.is_newest(text):
                fresh[name] = vault.seal(vault.open(text, place(name)), place(name))
        except UNREADABLE as error:
            missed[name] = str(error)
    return fresh, missed


async def _store_job(connection: Connection, place: tuple[int, int, int], fresh: Mapping[str, str]) -> None:
    await connection.execute(
        f"""
        UPDATE export_job_version
        SET transport_settings = jsonb_set(transport_settings, '{{{SEALED}}}',
                                           (transport_settings -> '{SEALED}') || $4::jsonb)
        WHERE organization_id = $1 AND job_id = $2 AND version = $3
        """,  # noqa: S608 - a constant
        *place,
        json.dumps(fresh),
    )
