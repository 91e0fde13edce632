"""Sends what the table `notification` holds: each notice until its address has taken it, for days if need be.

Every delivery process runs one; who claims a notice has it for a while, so that nobody is told twice needlessly. A
crash between the sending and its record repeats a notice under the same id.

Several travel at once, one to each address, few of each organization, so an address that hangs holds up its own notices
alone. What an address did not take, its other notices wait for, too.
"""

import asyncio
from collections import Counter
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
from services.platform.postgres import Patience, Pool, transaction

CLAIMED_FOR = timedelta(minutes=5)
POLICY = RetryPolicy(timedelta(seconds=10), timedelta(hours=1))
GIVEN_UP_AFTER = timedelta(days=3)
LONGEST_LOOK_SECONDS = 1.0
EMAIL = "email"
AT_ONCE = 16
MAILS_AT_ONCE = 8
"""They all go to one server; it leaves the rest to webhooks."""
OF_ONE_ORGANIZATION = 2

_CLAIM = """
UPDATE notification n SET next_attempt_at = $1::timestamptz + $2::interval, attempt_count = n.attempt_count + 1
FROM (SELECT organization_id, notification_id FROM notification
      WHERE next_attempt_at <= $1 AND address <> ALL ($3::text[]) AND organization_id <> ALL ($4::integer[])
        AND channel <> ALL ($5::text[])
      ORDER BY next_attempt_at, notification_id LIMIT 1 FOR UPDATE SKIP LOCKED) d
WHERE n.organization_id = d.organization_id AND n.notification_id = d.notification_id
RETURNING n.organization_id, n.notification_id, n.channel, n.address, n.content, n.created_at, n.attempt_count
"""

_SENT = """
UPDATE notification SET sent_at = $4, next_attempt_at = NULL, problem = ''
WHERE organization_id = $1 AND notification_id = $2 AND attempt_count = $3
"""

# The address works again. What was put off for longer than a claim lasts is nobody's claim.
_OTHERS_GO_ON = """
UPDATE notification SET next_attempt_at = $4
WHERE organization_id = $1 AND channel = $2 AND address = $3 AND next_attempt_at > $4::timestamptz + $5::interval
"""

_NOT_SENT = """
UPDATE notification SET next_attempt_at = $4, problem = $5
WHERE organization_id = $1 AND notification_id = $2 AND attempt_count = $3
"""

# How often the address has failed is what its notices say: the one that is tried most often leads.
_ATTEMPTS_AT_ADDRESS = """
SELECT max(attempt_count) FROM notification
WHERE organization_id = $1 AND channel = $2 AND address = $3 AND next_attempt_at IS NOT NULL
"""

# What has waited too long is given up along, instead of one at a time. Whoever holds a row is about to say more of it.
_OTHERS_WAIT = """
UPDATE notification n
SET next_attempt_at = CASE WHEN n.created_at >= $6 THEN $5::timestamptz END,
    problem = CASE WHEN n.created_at >= $6 THEN n.problem ELSE $7 END
FROM (SELECT organization_id, notification_id FROM notification
      WHERE organization_id = $1 AND channel = $2 AND address = $3 AND notification_id <> $4 AND next_attempt_at < $5
      FOR UPDATE SKIP LOCKED) o
WHERE n.organization_id = o.organization_id AND n.notification_id = o.notification_id
RETURNING n.notification_id, n.next_attempt_at IS NULL AS is_given_up
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
    """Works the table off, several notices at a time."""

    def __init__(self, pool: Pool, mailer: Mailer, poster: Poster, installation_id: str, clock: Clock) -> None:
        self._pool = pool
        self._mailer = mailer
        self._poster = poster
        self._installation_id = installation_id
        self._clock = clock
        self._at_work: set[Claimed] = set()
        self._bell = asyncio.Event()

    async def run(self, patience: Patience, look_seconds: float) -> None:
        """Send until told to stop, and end what is under way. A mistake of ours is logged and does not end it.

        The table is looked into at least every `look_seconds`, and every second.
        """
        async with asyncio.TaskGroup() as tasks:
            while not patience.stopping.is_set():
                self._bell.clear()
                claimed = None
                try:
                    if len(self._at_work) < AT_ONCE:
                        claimed = await patience.postgres(self._claim)
                except Unavailable:
                    return
                except Exception as error:
                    log.exception("notifier_failed", error=repr(error))
                if claimed is None:
                    await self._wait(patience.stopping, min(look_seconds, LONGEST_LOOK_SECONDS))
                else:
                    self._at_work.add(claimed)
                    tasks.create_task(self._work(claimed, patience))

    async def _wait(self, stopping: asyncio.Event, seconds: float) -> None:
        waiting = {asyncio.ensure_future(event.wait()) for event in (stopping, self._bell)}
        try:
            await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waiting:
                one.cancel()

    async def _claim(self) -> Claimed | None:
        """Claim the notice that has been due for the longest time, of those whose address is free."""
        organizations = Counter(one.organization_id for one in self._at_work)
        mails = sum(one.channel == EMAIL for one in self._at_work)
        async with transaction(self._pool) as connection:
            row = await connection.fetchrow(
                _CLAIM,
                self._clock.now(),
                CLAIMED_FOR,
                [one.address for one in self._at_work],
                [organization for organization, count in organizations.items() if count >= OF_ONE_ORGANIZATION],
                [EMAIL] if mails >= MAILS_AT_ONCE else [],
            )
        return None if row is None else Claimed(*row)

    async def _work(self, claimed: Claimed, patience: Patience) -> None:
        try:
            answer = await patience.postgres(lambda: self._send(claimed))
            NOTIFICATIONS.labels(claimed.channel, answer.verdict.value).inc()
            await patience.postgres(lambda: self._record(claimed, answer))
        except Unavailable as error:
            log.warning("notice_not_recorded", notification=claimed.notification_id, error=str(error))
        except Exception as error:
            log.exception("notifier_failed", error=repr(error))
        finally:
            self._at_work.discard(claimed)
            self._bell.set()

    async def _send(self, claimed: Claimed) -> Answer:
        told = msgspec.json.decode(claimed.content, type=Notice)
        name = f"{self._installation_id}-notice{claimed.notification_id}"
        if claimed.channel == EMAIL:
            return await self._mailer.send(claimed.address, name, told)
        return await self._poster.send(claimed.organization_id, claimed.address, name, told)

    async def _record(self, claimed: Claimed, answer: Answer) -> None:
        now = self._clock.now()
        key = (claimed.organization_id, claimed.notification_id, claimed.attempt_count)
        event = {"notification": claimed.notification_id, "channel": claimed.channel, "reason": answer.reason}
        async with transaction(self._pool) as connection:
            place = (claimed.organization_id, claimed.channel, claimed.address)
            if answer.verdict is Verdict.DELIVERED:
                await connection.execute(_SENT, *key, now)
                await connection.execute(_OTHERS_GO_ON, *place, now, CLAIMED_FOR)
                log.info("notified", **event)
                return
            problem = f"{answer.reason}: {answer.detail}"
            if answer.verdict is Verdict.STOP:
                await connection.execute(_NOT_SENT, *key, None, problem)
                log.error("notification_given_up", **event)
                return
            attempts = await connection.fetchval(_ATTEMPTS_AT_ADDRESS, *place) or claimed.attempt_count
            again_at = now + POLICY.delay(attempts, 0.0, answer.retry_after)
            is_over = now - claimed.created_at > GIVEN_UP_AFTER
            await connection.execute(_NOT_SENT, *key, None if is_over else again_at, problem)
            others = await connection.fetch(
                _OTHERS_WAIT, *place, claimed.notification_id, again_at, now - GIVEN_UP_AFTER, problem
            )
        if is_over:
            log.error("notification_given_up", **event)
        else:
            log.warning("notification_waits", **event)
        for other in others:
            if other["is_given_up"]:
                log.error("notification_given_up", **{**event, "notification": other["notification_id"]})
