"""Where partitions begin and end, and when their newest records arrived: looked at from outside, in no group."""

import asyncio
from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from services.platform.errors import Unavailable
from services.platform.kafka import Partition, stamped_at
from services.platform.kafka_access import KafkaAccess
from services.platform.kafka_refusal import ensure_accepted


class PartitionEnd(NamedTuple):
    """What the broker holds of a partition now; `newest_time` is None where its last offset holds no record."""

    first_offset: int
    end_offset: int
    newest_time: datetime | None


async def partition_ends(
    access: KafkaAccess, partitions: Iterable[Partition], *, deadline_s: float
) -> dict[Partition, PartitionEnd]:
    """Return what the broker holds of each partition.

    Raises Unavailable where it does not tell in `deadline_s`, KafkaRefusedError where it refuses us.
    """
    consumer = AIOKafkaConsumer(**access.client_settings(), group_id=None, enable_auto_commit=False)
    newest: dict[TopicPartition, datetime] = {}
    try:
        async with asyncio.timeout(deadline_s):
            await consumer.start()
            wanted = [TopicPartition(*partition) for partition in partitions]
            first, end = await consumer.beginning_offsets(wanted), await consumer.end_offsets(wanted)
            filled = [tp for tp in wanted if end[tp] > first[tp]]
            consumer.assign(filled)
            for tp in filled:
                consumer.seek(tp, end[tp] - 1)
            # Behind the last record there may be marks of a publisher's transaction, which nobody is handed.
            while any([tp not in newest and await consumer.position(tp) < end[tp] for tp in filled]):
                for tp, records in (await consumer.getmany(timeout_ms=200)).items():
                    newest[tp] = stamped_at(max(record.timestamp for record in records))
    except (KafkaError, OSError, TimeoutError) as error:
        await ensure_accepted(access)
        raise Unavailable(f"Kafka does not hand out the last records: {error!r}") from error
    finally:
        await consumer.stop()
    return {(tp.topic, tp.partition): PartitionEnd(first[tp], end[tp], newest.get(tp)) for tp in wanted}


async def newest_time(access: KafkaAccess, partitions: Iterable[Partition], *, deadline_s: float) -> datetime | None:
    """Return the latest time of the partitions' last records; None where they are empty. Raises Unavailable."""
    ends = await partition_ends(access, partitions, deadline_s=deadline_s)
    return max((end.newest_time for end in ends.values() if end.newest_time is not None), default=None)
