"""JSON over HTTPS: one POST a part, to a URL of the customer's, its certificate verified."""

import asyncio
import functools
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from services.core.parts import HTTPS_JSON, PartFormat
from services.core.retry import Answer
from services.core.times import iso_seconds, to_epoch_milliseconds
from services.delivery.transports.base import Means, OutgoingPart, Step
from services.delivery.transports.checking import check_https
from services.delivery.transports.http_answers import answer_of_error, answer_of_status, printable
from services.delivery.transports.http_credentials import Credentials, credentials
from services.delivery.transports.tls_sessions import TlsSessions, TlsSide
from services.platform.errors import UserError
from services.platform.outbound import ForbiddenAddress

CONTENT_TYPE = "application/json; charset=utf-8"
USER_AGENT = "Meterpost"
# Enough for a sentence of the receiver's; nothing more of its answer is read.
MAX_ANSWER_BYTES = 4_096


class HttpsTransport:
    """Sends parts with pooled connections, one pool for each certificate authority that jobs name."""

    def __init__(self, means: Means) -> None:
        self._sessions = TlsSessions(means.deadlines, means.outbound, user_agent=USER_AGENT)
        self._means = means

    def part_format(self, settings: Mapping[str, Any]) -> PartFormat:
        """At most 2,000 measurements and 1 MB."""
        return HTTPS_JSON

    def destination(self, settings: Mapping[str, Any]) -> "HttpsDestination":
        """Return the server of `{"url": "https://…", "ca_pem": "…", …}`; UserError names the setting that is wrong.

        `auth` (none, basic, bearer) with `username`, `password`, `token`; `headers`; `signing_secrets`;
        `client_certificate` with `client_key`.
        """
        url, ca_pem = settings.get("url"), settings.get("ca_pem")
        if not isinstance(url, str) or not isinstance(ca_pem, str | None):
            raise UserError('transport settings: "url" must be a text that begins with https://, "ca_pem" a text')
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port or 443
        except ValueError as error:
            raise UserError(f'transport settings: "url" is not a URL: {error}') from None
        if parts.scheme.lower() != "https" or not host:
            raise UserError('transport settings: "url" must begin with https:// and name a host')
        side = TlsSide(ca_pem, settings.get("client_certificate"), settings.get("client_key"))
        if side != TlsSide():
            _check_tls(side)
        return HttpsDestination(url, host, port, side, credentials(settings), self._sessions, self._means)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._sessions.aclose()


@dataclass(frozen=True, slots=True)
class HttpsDestination:
    """A URL that takes parts."""

    url: str
    host: str
    port: int
    side: TlsSide = field(repr=False)
    identity: Credentials
    sessions: TlsSessions
    means: Means

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{self.host}:{self.port}"

    async def send(self, part: OutgoingPart) -> Answer:
        """POST the part once. Redirects are not followed; the receiver's whole answer is not waited for."""
        try:
            async with asyncio.timeout(self.means.deadlines.total.total_seconds()) as total:
                self.means.outbound.check_literal(self.host)
                with self.sessions.lend(self.side) as session:
                    return await self._post(session, part, total)
        except (aiohttp.ClientError, ForbiddenAddress, TimeoutError, OSError, ValueError) as error:
            # ValueError: what aiohttp says of URLs and answers that it cannot read.
            return answer_of_error(error)

    def check(self) -> AsyncIterator[Step]:
        """Resolve, reach, and verify the certificate. Nothing is posted: a receiver would take it for an export."""
        return check_https(self.means, self.host, self.port, self.side.context)

    async def _post(self, session: aiohttp.ClientSession, part: OutgoingPart, total: asyncio.Timeout) -> Answer:
        async with session.post(
            self.url, data=part.body, headers=self._headers(part), allow_redirects=False
        ) as response:
            # The status is the answer, however late it came: what is left of the time may not cost it.
            left = (total.when() or 0) - asyncio.get_running_loop().time()
            said = await _beginning_of_body(response, min(self.means.deadlines.words.total_seconds(), left / 2))
            words = printable(self.identity.blotted(said).encode())
            return answer_of_status(response.status, response.headers, words, self.means.clock.now())

    def _headers(self, part: OutgoingPart) -> dict[str, str]:
        timestamp = to_epoch_milliseconds(self.means.clock.now()) // 1000
        return {
            **self.identity.signed(part.part_id, timestamp, part.body),
            "Content-Type": CONTENT_TYPE,
            "webhook-id": part.part_id,
            "webhook-timestamp": str(timestamp),
            "Meterpost-Job": str(part.job_id),
            "Meterpost-Run": part.run_id,
            "Meterpost-Part": "manifest" if part.is_manifest else str(part.part),
            "Meterpost-Parts": str(part.parts),
            "Meterpost-Window-Start": iso_seconds(part.slot.start),
            "Meterpost-Window-End": iso_seconds(part.slot.end),
            "Meterpost-Rows": str(part.row_count),
            **({"Meterpost-Resolution-Minutes": str(part.resolution_minutes)} if part.resolution_minutes else {}),
            "Meterpost-Content-SHA256": part.sha256.hex(),
            "Meterpost-Filename": part.file_name,
            **({"Meterpost-Resend": str(part.resend_count)} if part.resend_count else {}),
        }


async def _beginning_of_body(response: aiohttp.ClientResponse, within_s: float) -> str:
    """Return what the receiver says, as far as it says it soon; an unread rest costs the connection, not the part."""
    said = b""
    try:
        async with asyncio.timeout(within_s):
            while len(said) < MAX_ANSWER_BYTES and (piece := await response.content.read(MAX_ANSWER_BYTES)):
                said += piece
    except (TimeoutError, aiohttp.ClientError, OSError):
        # The status has been received: that the text after it is cut off changes nothing.
        response.close()
    if not response.content.at_eof():
        response.close()
    return said.decode("utf-8", errors="replace")


@functools.lru_cache(maxsize=512)
def _check_tls(side: TlsSide) -> None:
    if (side.client_certificate is None) != (side.client_key is None):
        raise UserError('transport settings: "client_certificate" and the secret "client_key" come together')
    try:
        TlsSide(side.ca_pem).context()
    except (ssl.SSLError, ValueError):
        raise UserError('transport settings: "ca_pem" must hold certificates in PEM form') from None
    try:
        side.context()
    except (ssl.SSLError, ValueError, OSError):
        raise UserError(
            'transport settings: "client_certificate" must be in PEM form and "client_key" its key, without passphrase'
        ) from None
