"""Notices by webhook: one POST, JSON, signed like parts."""

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec

from services.core.retry import Answer, Verdict
from services.core.times import to_epoch_milliseconds
from services.core.transport_secrets import notification_place, opened_settings
from services.delivery.notices import Notice
from services.delivery.transports.base import Means
from services.delivery.transports.http_answers import answer_of_error, answer_of_status
from services.delivery.transports.http_credentials import Credentials, credentials
from services.delivery.transports.tls_sessions import TlsSessions, TlsSide
from services.platform.errors import UserError
from services.platform.outbound import ForbiddenAddress
from services.platform.postgres import Pool, transaction
from services.platform.secrets import KeyMissing, Vault

CONTENT_TYPE = "application/json"
USER_AGENT = "Meterpost"
NO_WEBHOOK = "the organization has no webhook at this address any more"


class Poster:
    """Posts notices with pooled connections."""

    def __init__(self, pool: Pool, vault: Vault, means: Means) -> None:
        self._pool = pool
        self._vault = vault
        self._means = means
        self._sessions = TlsSessions(means.deadlines, means.outbound, user_agent=USER_AGENT)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._sessions.aclose()

    async def send(self, organization_id: int, url: str, name: str, told: Notice) -> Answer:
        """Make one attempt; `name` is its `webhook-id`, the same on each. Raises Unavailable as PostgreSQL does."""
        async with transaction(self._pool) as connection:
            row = await connection.fetchrow(
                "SELECT ca_pem, sealed FROM notification_settings WHERE organization_id = $1 AND webhook_url = $2",
                organization_id,
                url,
            )
        if row is None:
            return Answer(Verdict.STOP, "webhook_changed", NO_WEBHOOK)
        sealed: Mapping[str, Any] = msgspec.json.decode(row["sealed"])
        try:
            opened = {
                key: self._vault.open(text, notification_place(organization_id, key)) for key, text in sealed.items()
            }
            identity = credentials(opened_settings({}, opened))
        except (KeyMissing, UserError) as error:
            return Answer(Verdict.RETRY, "secret_unreadable", str(error))
        return await self._post(TlsSide(row["ca_pem"]), identity, url, name, msgspec.json.encode(told))

    async def _post(self, side: TlsSide, identity: Credentials, url: str, name: str, body: bytes) -> Answer:
        timestamp = to_epoch_milliseconds(self._means.clock.now()) // 1000
        headers = {
            **identity.signed(name, timestamp, body),
            "Content-Type": CONTENT_TYPE,
            "webhook-id": name,
            "webhook-timestamp": str(timestamp),
        }
        try:
            async with asyncio.timeout(self._means.deadlines.total.total_seconds()):
                self._means.outbound.check_literal(urlsplit(url).hostname or "")
                with self._sessions.lend(side) as session:
                    async with session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                        # What it says beside its status is of no interest to anybody.
                        response.close()
                        return _of_notice(
                            answer_of_status(response.status, response.headers, "", self._means.clock.now())
                        )
        except (aiohttp.ClientError, ForbiddenAddress, TimeoutError, OSError, ValueError) as error:
            return _of_notice(answer_of_error(error))


def _of_notice(answer: Answer) -> Answer:
    """Return the answer as it counts for a notice: only a server that says it is gone ends the trying."""
    is_over = answer.verdict is Verdict.STOP and answer.reason == "http_410"
    return answer if is_over or answer.verdict is Verdict.DELIVERED else answer._replace(verdict=Verdict.RETRY)
