"""Whom an organization has told when its jobs fail, stop and recover: the only SQL that writes these settings."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from services.api.catalog_queries import AnyConnection
from services.api.job_settings import https_settings
from services.core.transport_secrets import SIGNING_SECRET, next_signing_secret, notification_place, signing_secrets
from services.core.webhooks import signing_key
from services.platform.errors import UserError
from services.platform.postgres import Pool, transaction
from services.platform.secrets import Vault

MAX_EMAILS = 20
MAX_SIGNING_SECRETS = 5
# Not all that e-mail allows, but nothing that could be read as a second header or address.
_EMAIL = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*")


@dataclass(frozen=True, slots=True)
class NotificationSettings:
    """Where notices go; the names of the signing secrets, never their values."""

    emails: Sequence[str] = ()
    webhook_url: str | None = None
    ca_pem: str | None = None
    signing_secrets: Sequence[str] = ()


class NotificationState(NamedTuple):
    """One notice to one address, and what became of it."""

    notification_id: int
    job_id: int
    event: str
    channel: str
    address: str
    created_at: datetime
    sent_at: datetime | None
    next_attempt_at: datetime | None
    attempt_count: int
    problem: str


async def notification_settings(connection: AnyConnection, organization_id: int) -> NotificationSettings:
    """Return the settings of an organization; nobody is told where it never set any."""
    row = await connection.fetchrow(
        "SELECT emails, webhook_url, ca_pem, sealed FROM notification_settings WHERE organization_id = $1",
        organization_id,
    )
    if row is None:
        return NotificationSettings()
    names = signing_secrets(json.loads(row["sealed"]))
    return NotificationSettings(tuple(row["emails"]), row["webhook_url"], row["ca_pem"], tuple(names))


async def set_notifications(
    pool: Pool, organization_id: int, settings: NotificationSettings, vault: Vault, new_secret: str | None = None
) -> NotificationSettings:
    """Store the settings, with a signing secret more; those that `settings` does not name are dropped."""
    _check(settings, new_secret)
    async with transaction(pool) as connection:
        await connection.execute(
            "INSERT INTO notification_settings (organization_id) VALUES ($1) ON CONFLICT DO NOTHING", organization_id
        )
        text = await connection.fetchval(
            "SELECT sealed FROM notification_settings WHERE organization_id = $1 FOR UPDATE", organization_id
        )
        before: dict[str, str] = json.loads(text)
        sealed = {name: value for name, value in before.items() if name in settings.signing_secrets}
        if new_secret is not None:
            name = next_signing_secret(before)
            sealed[name] = vault.seal(new_secret, notification_place(organization_id, name))
        if len(sealed) > MAX_SIGNING_SECRETS:
            raise UserError(f"there are at most {MAX_SIGNING_SECRETS} signing secrets: drop the oldest one")
        await connection.execute(
            "UPDATE notification_settings SET emails = $2, webhook_url = $3, ca_pem = $4, sealed = $5::jsonb "
            "WHERE organization_id = $1",
            organization_id,
            list(settings.emails),
            settings.webhook_url,
            settings.ca_pem,
            json.dumps(sealed),
        )
        return await notification_settings(connection, organization_id)


async def list_notifications(connection: AnyConnection, organization_id: int, limit: int) -> list[NotificationState]:
    """Return the newest notices of an organization."""
    rows = await connection.fetch(
        """
        SELECT notification_id, job_id, content ->> 'event', channel, address, created_at, sent_at, next_attempt_at,
               attempt_count, problem
        FROM notification WHERE organization_id = $1 ORDER BY notification_id DESC LIMIT $2
        """,
        organization_id,
        limit,
    )
    return [NotificationState(*row) for row in rows]


def _check(settings: NotificationSettings, new_secret: str | None) -> None:
    for address in settings.emails:
        if not _EMAIL.fullmatch(address):
            raise UserError(f"{address!r} is no e-mail address")
    if len(settings.emails) > MAX_EMAILS:
        raise UserError(f"{len(settings.emails)} e-mail addresses were given, {MAX_EMAILS} are allowed")
    if settings.webhook_url is not None:
        https_settings(settings.webhook_url, settings.ca_pem)
    elif settings.ca_pem is not None or settings.signing_secrets or new_secret is not None:
        raise UserError(f"a CA file or a {SIGNING_SECRET} has no use without a webhook's URL")
    if new_secret is not None:
        try:
            signing_key(new_secret)
        except ValueError as error:
            raise UserError(str(error)) from None
