"""Sends what the table `notification` holds: each notice until its address has taken it, for days if need be.

Every delivery process runs one; who claims a notice has it for a while, so that nobody is told twice needlessly. A
crash between the sending and its record repeats a notice under the same id.
"""

from datetime import datetime, timedelta
from typing import NamedTuple

import msgspec
import structlog

from services.core.retry import Answer, RetryPolicy, Verdict
from services.delivery.mailing import Mailer
from services.delivery.notice_posting import Poster
from services.delivery.notices import Notice
from services.platform.clock import Clock
from services.platform.errors import Unavailable
from services.platform.metrics import NOTIFICATIONS
from services.platform.postgres import Patience, Pool, transaction, wait_or_stop

CLAIMED_FOR = timedelta(minutes=5)
POLICY = RetryPolicy(timedelta(seconds=10), timedelta(hours=1))
GIVEN_UP_AFTER = timedelta(days=3)
LOOK_SECONDS = 1.0

_CLAIM = """
UPDATE notification n SET next_attempt_at = $1::timestamptz + $2::interval, attempt_count = n.attempt_count + 1
FROM (SELECT organization_id, notification_id FROM notification
      WHERE next_attempt_at <= $1 ORDER BY next_attempt_at LIMIT 1 FOR UPDATE SKIP LOCKED) d
WHERE n.organization_id = d.organization_id AND n.notification_id = d.notification_id
RETURNING n.organization_id, n.notification_id, n.channel, n.address, n.content, n.created_at, n.attempt_count
"""

_SENT = """
UPDATE notification SET sent_at = $4, next_attempt_at = NULL, problem = ''
WHERE organization_id = $1 AND notification_id = $2 AND attempt_count = $3
"""

_NOT_SENT = """
UPDATE notification SET next_attempt_at = $4, problem = $5
WHERE organization_id = $1 AND notification_id = $2 AND attempt_count = $3
"""


class Claimed(NamedTuple):
    """A notice that is this process's to send, until its claim ends."""

    organization_id: int
    notification_id: int
    channel: str
    address: str
    content: str
    created_at: datetime
    attempt_count: int


log = structlog.get_logger()


class Notifier:
    """Works the table off, one notice at a time."""

    def __init__(self, pool: Pool, mailer: Mailer, poster: Poster, installation_id: str, clock: Clock) -> None:
        self._pool = pool
        self._mailer = mailer
        self._poster = poster
        self._installation_id = installation_id
        self._clock = clock

    async def run(self, patience: Patience, look_seconds: float = LOOK_SECONDS) -> None:
        """Send until told to stop. A mistake of ours is logged and does not end it."""
        while not patience.stopping.is_set():
            try:
                if await patience.postgres(self.send_next):
                    continue
            except Unavailable:
                return
            except Exception as error:
                log.exception("notifier_failed", error=repr(error))
            await wait_or_stop(patience.stopping, look_seconds)

    async def send_next(self) -> bool:
        """Send the notice that has been due for the longest time; return whether there was one."""
        async with transaction(self._pool) as connection:
            row = await connection.fetchrow(_CLAIM, self._clock.now(), CLAIMED_FOR)
        if row is None:
            return False
        claimed = Claimed(*row)
        answer = await self._send(claimed)
        NOTIFICATIONS.labels(claimed.channel, answer.verdict.value).inc()
        await self._record(claimed, answer)
        return True

    async def _send(self, claimed: Claimed) -> Answer:
        told = msgspec.json.decode(claimed.content, type=Notice)
        name = f"{self._installation_id}-notice{claimed.notification_id}"
        if claimed.channel == "email":
            return await self._mailer.send(claimed.address, name, told)
        return await self._poster.send(claimed.organization_id, claimed.address, name, told)

    async def _record(self, claimed: Claimed, answer: Answer) -> None:
        now = self._clock.now()
        key = (claimed.organization_id, claimed.notification_id, claimed.attempt_count)
        event = {"notification": claimed.notification_id, "channel": claimed.channel, "reason": answer.reason}
        async with transaction(self._pool) as connection:
            if answer.verdict is Verdict.DELIVERED:
                await connection.execute(_SENT, *key, now)
                log.info("notified", **event)
                return
            again_at: datetime | None = now + POLICY.delay(claimed.attempt_count, 0.0, answer.retry_after)
            if answer.verdict is Verdict.STOP or now - claimed.created_at > GIVEN_UP_AFTER:
                again_at = None
                log.error("notification_given_up", **event)
            else:
                log.warning("notification_waits", **event)
            await connection.execute(_NOT_SENT, *key, again_at, f"{answer.reason}: {answer.detail}")
