"""Publishing refused readings again, page by page: chosen, sent, acknowledged and marked in one transaction.

A page whose mark is lost (the command was killed between the broker's word and the commit) goes out once more the next
time, which ingest takes for a repeat of the device. So nothing is left out, and nothing else is sent twice.
"""

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from services.cli.operator import operator_name
from services.cli.resending import Resend, judge_resend, resends_of
from services.cli.session import Session, wall_clock
from services.core.readings import SourceTopic
from services.core.registry import Registry
from services.ingest.operator_log import record_action
from services.ingest.progress_queries import progress_of
from services.ingest.rejected_queries import (
    Original,
    RejectedFilter,
    mark_replayed,
    rejected_page,
    try_replay_lock,
)
from services.platform.errors import UserError
from services.platform.kafka import Partition, Producer, acknowledged
from services.platform.postgres import Connection, Pool, transaction
from services.platform.settings import load
from services.platform.topics import READINGS_BRIDGE

# A refused record may have 4 MB: what is held at a time stays bounded.
_PAGE_READINGS = 50
_BEFORE_EVERYTHING = (-1, -2)
_REFUSALS_SHOWN = 20


class _Start(NamedTuple):
    """Where a partition stands when the command begins."""

    next_offset: int
    """What is refused from here on, the replayed readings among it, is not replayed in the same go."""
    arrives_at: datetime
    """The arrival of what is sent now."""


async def replay_rejected(session: Session, wanted: RejectedFilter) -> None:
    """Publish what matches, and mark it. Raises Unavailable; what was marked until then stays so."""
    records = readings = 0
    reasons: Counter[str] = Counter()
    operator = operator_name()
    async with session.pool() as pool, session.producer() as producer:
        starts = await _starts(session, pool, wanted)
        for partition, start in starts.items():
            last = _BEFORE_EVERYTHING
            while True:
                async with transaction(pool) as connection:
                    if not await try_replay_lock(connection):
                        raise UserError("somebody else is replaying right now; wait until that is done")
                    page = await _page(connection, wanted, partition, last, start)
                    if not page:
                        break
                    resends = resends_of(page, wall_clock().now())
                    await _send(producer, resends, start.arrives_at)
                    await mark_replayed(connection, [one.rejected for one in page], operator)
                    last = page[-1].rejected[2:4]
                records += len(resends)
                readings += len(page)
                reasons.update(one.rejected.reason for one in page)
        if readings:
            async with transaction(pool) as connection:
                details = {"records": records, "readings": readings, "by_reason": dict(reasons)}
                await record_action(connection, operator, "rejected_replay", details)
    if session.answer.as_json:
        session.answer.json({"records": records, "readings": readings, "by_reason": dict(reasons)})
    elif readings:
        session.answer.say(
            f"Published {readings:,} refused readings again, in {records:,} records ({_words(reasons)})."
        )
    else:
        session.answer.say("Nothing matches that was not published again before (--again sends it once more).")


async def rehearse(session: Session, wanted: RejectedFilter) -> None:
    """Tell what would be sent, and what the registry of now would refuse once more. Sends and marks nothing."""
    # Only here: what judges brings numpy along, which costs every other command a tenth of a second.
    from services.ingest.settings import IngestSettings  # noqa: PLC0415
    from services.ingest.store import IngestStore  # noqa: PLC0415

    retention = timedelta(days=load(IngestSettings).raw_retention_days)
    bridge = session.places.topic_prefix + READINGS_BRIDGE
    records = readings = stored = refused = 0
    reasons: Counter[str] = Counter()
    shown: list[dict[str, object]] = []
    async with session.pool() as pool:
        registry = Registry()
        registry.apply(await IngestStore(pool).registry_change(0))
        starts = await _starts(session, pool, wanted)
        async for resend, arrives_at in _resends(pool, wanted, starts):
            source = SourceTopic.BRIDGE if resend.topic == bridge else SourceTopic.LOGGER
            judged = judge_resend(resend, source, arrives_at, registry, retention)
            records += 1
            readings += len(resend.rejected)
            stored += len(judged.versions)
            refused += len(judged.refusals)
            reasons.update(refusal.reason.value for refusal in judged.refusals)
            for refusal in judged.refusals[: _REFUSALS_SHOWN - len(shown)]:
                # A whole record has one name, whichever of its readings is refused.
                name = resend.rejected[refusal.place if 0 <= refusal.place < len(resend.rejected) else 0].name
                shown.append({"name": name, "reason": refusal.reason.value, "detail": refusal.detail})
    if session.answer.as_json:
        session.answer.json(
            {
                "dry_run": True,
                "records": records,
                "readings": readings,
                "would_be_stored": stored,
                "would_be_refused": refused,
                "refused_by_reason": dict(reasons),
                "first_refused": shown,
            }
        )
        return
    session.answer.say(
        f"{readings:,} refused readings would be sent, in {records:,} records: {stored:,} would be stored, "
        f"{refused:,} refused again{f' ({_words(reasons)})' if reasons else ''}. Nothing was sent."
    )
    for one in shown:
        session.answer.say(f"  {one['name']}  {one['reason']}: {one['detail']}")
    if refused > len(shown):
        session.answer.say(f"  … and {refused - len(shown):,} more")


async def _starts(session: Session, pool: Pool, wanted: RejectedFilter) -> dict[Partition, _Start]:
    """Return where each partition that ingest has read stands.

    Where publishers set the arrival (CreateTime) it is the partition's watermark, so that the arrival clock, which may
    be replaying another year, does not move.
    """
    async with session.admin() as admin:
        types = await admin.time_types(wanted.topics)
    async with transaction(pool) as connection:
        progress = await progress_of(connection, wanted.topics)
    now = wall_clock().now()
    return {
        key: _Start(one.next_offset, now if types[one.topic] == "LogAppendTime" else one.watermark or now)
        for key, one in sorted(progress.items())
    }


async def _resends(
    pool: Pool, wanted: RejectedFilter, starts: dict[Partition, _Start]
) -> AsyncIterator[tuple[Resend, datetime]]:
    for partition, start in starts.items():
        last = _BEFORE_EVERYTHING
        while True:
            async with transaction(pool) as connection:
                page = await _page(connection, wanted, partition, last, start)
            if not page:
                break
            last = page[-1].rejected[2:4]
            for resend in resends_of(page, wall_clock().now()):
                yield resend, start.arrives_at


async def _page(
    connection: Connection, wanted: RejectedFilter, partition: Partition, last: tuple[int, int], start: _Start
) -> list[Original]:
    return await rejected_page(
        connection, wanted, partition, after=last, before_offset=start.next_offset, limit=_PAGE_READINGS
    )


async def _send(producer: Producer, resends: Sequence[Resend], arrives_at: datetime) -> None:
    await acknowledged(
        [
            await producer.enqueue(
                resend.topic, resend.value, key=resend.key, partition=resend.partition, created_at=arrives_at
            )
            for resend in resends
        ]
    )


def _words(reasons: Counter[str]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
