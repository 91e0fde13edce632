"""The ingest loop: claim, poll, judge, store.

Exactly once in effect: a batch and the progress of its partitions are one transaction, reading starts where the
database says, and a batch of an owner that was superseded is refused by the epoch.
"""

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import NamedTuple

import structlog

from services.core.columns import late_counts
from services.core.readings import SourceTopic
from services.core.registry import Registry
from services.ingest.backlog import Backlog
from services.ingest.batch import Batch, BatchBuilder, JudgedPartition, Position, batch_of, describe_refusals
from services.ingest.doorbell import Doorbell
from services.ingest.gaps import GapFound, check_log
from services.ingest.in_flight import InFlight
from services.ingest.refusal_guard import RefusalGuard, total_of
from services.ingest.settings import IngestSettings
from services.ingest.standing import Standing
from services.ingest.store import IngestStore, Turn
from services.ingest.ticks import Ticker
from services.ingest.trial import BATCHES_ON_TRIAL, VANISHED_OWNERS, deadly_records
from services.ingest.write_plan import EncodedPlan, HighWaterMarks, encode_plan
from services.platform.crash_points import crash_point
from services.platform.errors import MeterpostError, OperatorNeeded, Superseded
from services.platform.kafka import GroupConsumer, Partition, PartitionBatch
from services.platform.metrics import (
    INGEST_BATCH_SECONDS,
    INGEST_LATE_READINGS,
    INGEST_READINGS,
    INGEST_REFUSAL_STOPS,
    INGEST_REFUSED,
    INGEST_REFUSED_SHARE,
    INGEST_SUPERSEDED,
)
from services.platform.postgres import Patience
from services.platform.topics import READINGS_BRIDGE, READINGS_LOGGER

POLL_MS = 200
BYTES_PER_READING = 100
REGISTRY_LOOK_SECONDS = 1.0
HINT_SECONDS = 1.0
RELEASE_SECONDS = 1.0
log = structlog.get_logger()


class Edges(NamedTuple):
    """Everything outside that the loop works with."""

    consumer: GroupConsumer
    store: IngestStore
    ticker: Ticker
    doorbell: Doorbell
    standing: Standing


class Ingest:
    """The loop. One instance lives from joining the group to leaving it."""

    def __init__(self, settings: IngestSettings, edges: Edges, patience: Patience) -> None:
        self._settings = settings
        self._consumer, self._store, self._ticker, self._doorbell, self._standing = edges
        self._patience = patience
        self._builder = BatchBuilder(
            source_topics={
                settings.topic(READINGS_BRIDGE): SourceTopic.BRIDGE.value,
                settings.topic(READINGS_LOGGER): SourceTopic.LOGGER.value,
            },
            raw_retention=timedelta(days=settings.raw_retention_days),
            recent_readings=settings.refusal_stop_readings,
        )
        self._guard = RefusalGuard(settings.refusal_stop_readings, settings.refusal_stop_percent)
        self._registry = Registry()
        self._registry_looked = 0.0
        self._generation = -1
        self._held: dict[Partition, Position] = {}  # claimed, whether we came to read it or not
        self._positions: dict[Partition, Position] = {}
        self._waiting = Backlog()
        self._marks = HighWaterMarks()
        self._in_flight = InFlight()
        self._trials_left = 0
        self._stored: dict[Partition, int] = {}
        self._hinted = 0.0

    async def run(self) -> None:
        """Work until told to stop. Raises Superseded when another process owns what we thought ours."""
        is_orderly = True
        try:
            while not self._patience.stopping.is_set():
                self._patience.health.progress()
                if self._generation != self._consumer.generation:
                    await self._claim()
                if time.monotonic() - self._registry_looked >= REGISTRY_LOOK_SECONDS:
                    await self._refresh_registry()
                await self._doorbell.ring()
                await self._hint()
                await self._ticker.tick({key: position.next_offset for key, position in self._positions.items()})
                await self._poll()
                if self._generation != self._consumer.generation:
                    self._waiting.clear()  # fetched under an assignment that is over
                if self._waiting:
                    await self._store_waiting()
                self._in_flight.look()
            await self._in_flight.finish()
            await self._consumer.commit(self._stored)
        except GapFound as gap:
            await self._keep_gap(gap)
            raise
        except Exception as error:
            # What nobody expected may come from a record, like the end of a process: then owner after owner vanishes.
            is_orderly = isinstance(error, MeterpostError)
            raise
        finally:
            await self._in_flight.abandon()
            self._standing.claimed({})
            if is_orderly:
                await self._release()

    async def _poll(self) -> None:
        """Fetch for the partitions of which nothing waits; those that are ahead wait until the others are there."""
        hungry = self._waiting.without(self._positions)
        if hungry or not self._positions:
            timeout_ms = 0 if self._waiting else POLL_MS
            polled = await self._consumer.poll(hungry, timeout_ms=timeout_ms)
            self._waiting.add(batch for batch in polled if (batch.topic, batch.partition) in self._positions)

    async def _claim(self) -> None:
        """Own what the group assigned: from now on nobody else writes it, and we read where the database says."""
        try:
            await self._in_flight.finish()
        except Superseded:
            # Of an assignment that is over: whoever came after us was faster, as it should be.
            INGEST_SUPERSEDED.inc()
            log.info("last_batch_was_the_successors")
        generation, assigned = self._consumer.generation, self._consumer.assigned
        self._waiting.clear()
        await self._release()
        self._positions, self._stored = {}, {}
        self._standing.claimed({})

        async def claim() -> dict[Partition, Position]:
            # By the time that PostgreSQL answers again it may have been assigned to somebody else, who owns it by now.
            is_ours = generation == self._consumer.generation
            return await self._store.claim(begins, self._settings.instance, self._held) if is_ours else {}

        if assigned:
            begins = await self._patience.kafka(lambda: self._consumer.beginning_offsets(assigned))
            positions = await self._patience.postgres(claim)
            self._held = {**self._held, **positions}
            first = await self._patience.kafka(lambda: self._consumer.beginning_offsets(assigned))
            end = await self._patience.kafka(lambda: self._consumer.end_offsets(assigned))
            if generation != self._consumer.generation:
                return
            for partition, position in positions.items():
                check_log(partition, position, first[partition], end[partition])
                self._consumer.seek(partition, position.next_offset)
            self._positions = positions
            vanished = max(position.crash_count for position in positions.values())
            self._trials_left = BATCHES_ON_TRIAL if vanished >= VANISHED_OWNERS else 0
            if self._trials_left:
                log.warning("owners_vanished", in_a_row=vanished, action="judge the next records apart first")
        self._standing.claimed(self._positions)
        self._generation = generation
        self._patience.health.started()
        log.info("claimed", partitions=len(assigned), generation=generation)

    async def _release(self) -> None:
        """Let go of what we owned. Where PostgreSQL is away, whoever comes next is more careful than needed."""
        with suppress(MeterpostError, TimeoutError):
            async with asyncio.timeout(RELEASE_SECONDS):
                await self._store.release(self._held)

    async def _refresh_registry(self) -> bool:
        """Take over what the catalog recorded since the last look; tell whether there was anything."""
        self._registry_looked = time.monotonic()
        known = self._registry.revision
        if await self._patience.postgres(self._store.registry_revision) == known:
            return False
        never_attached = self._registry.never_attached()
        change = await self._patience.postgres(lambda: self._store.registry_change(known, never_attached))
        self._registry.apply(change)
        return True

    async def _store_waiting(self) -> None:
        """Judge what waits, up to the size of a batch, while the batch before it is being written; then write it."""
        judged = await self._judge_waiting()
        await self._check_refusals(judged)
        batch = batch_of(judged)
        encoded = await encode_plan(self._marks.plan(batch.versions))
        await self._in_flight.has_room()
        if self._generation != self._consumer.generation:
            return  # judged under an assignment that is over
        for partition in judged:
            self._positions[partition.key] = partition.after
        self._ticker.saw_records(partition.key for partition in judged)
        self._in_flight.start(partial(self._write, batch, encoded))

    async def _write(self, batch: Batch, plan: EncodedPlan, turn: Turn) -> None:
        started = time.monotonic()
        await self._patience.postgres(lambda: self._store.store(batch, plan, turn))
        crash_point("ingest.after_commit")
        INGEST_BATCH_SECONDS.observe(time.monotonic() - started)
        INGEST_READINGS.inc(len(batch.versions))
        for resolution, count in late_counts(batch.versions, self._settings.grace_seconds).items():
            INGEST_LATE_READINGS.labels(str(resolution)).inc(count)
        for row in batch.rejected:
            INGEST_REFUSED.labels(row.reason).inc()
        for move in batch.advances:
            self._standing.moved((move.topic, move.partition), move.position)
        self._doorbell.note(batch)
        await self._doorbell.ring()
        self._stored.update({(move.topic, move.partition): move.position.next_offset for move in batch.advances})

    async def _hint(self) -> None:
        """Tell Kafka now and then how far we are, for lag tools; we ourselves never ask it."""
        if self._stored and time.monotonic() - self._hinted >= HINT_SECONDS:
            self._hinted = time.monotonic()
            stored, self._stored = self._stored, {}
            await self._consumer.commit(stored)
            crash_point("ingest.after_hint")

    async def _judge_waiting(self) -> list[JudgedPartition]:
        """Judge polled records, up to the size of a batch; the rest keeps waiting."""
        judged: list[JudgedPartition] = []
        cut = self._waiting.cut(self._settings.batch_readings * BYTES_PER_READING)
        deadly = await self._deadly_records(cut)
        for polled in cut:
            position = self._positions[polled.topic, polled.partition]
            await self._check_gap(polled, position)
            set_aside = deadly.get((polled.topic, polled.partition), frozenset())
            judged.append(await self._builder.judge(polled, position, self._registry, set_aside))
        # One look for the whole batch: a storm of unknown devices is not a storm of queries.
        if any(partition.is_doubted for partition in judged) and await self._refresh_registry():
            judged = [
                await self._builder.judge_again(partition, self._registry) if partition.is_doubted else partition
                for partition in judged
            ]
        return judged

    async def _deadly_records(self, cut: list[PartitionBatch]) -> Mapping[Partition, frozenset[int]]:
        """Return which records kill who judges them; looked for only where owner after owner vanished."""
        if not self._trials_left:
            return {}
        self._trials_left -= 1
        deadly = await deadly_records(cut, self._patience.health.progress)
        for partition, offsets in deadly.items():
            log.error("records_set_aside", partition=partition, offsets=sorted(offsets))
        return deadly

    async def _check_gap(self, polled: PartitionBatch, position: Position) -> None:
        """Stop where the broker removed records that we have not read; a producer's transactions leave gaps, too."""
        key = (polled.topic, polled.partition)
        if polled.records[0].offset > position.next_offset:
            first = await self._patience.kafka(lambda: self._consumer.beginning_offsets([key]))
            check_log(key, position, first[key], polled.records[0].offset)

    async def _keep_gap(self, gap: GapFound) -> None:
        """Record a gap for the operator, once everything before it is stored."""
        await self._in_flight.finish()
        await self._patience.postgres(lambda: self._store.record_gap(gap))

    async def _check_refusals(self, judged: list[JudgedPartition]) -> None:
        """Stop before a batch is stored with which nearly everything of a topic was refused lately."""
        recent = {key: position.recent for key, position in self._positions.items()}
        recent |= {partition.key: partition.after.recent for partition in judged}
        for topic in {partition.key[0] for partition in judged}:
            ours = {key: one for key, one in recent.items() if key[0] == topic}
            INGEST_REFUSED_SHARE.labels(topic).set(total_of(ours.values()).share)
            if not self._guard.is_near(ours.values()):
                continue
            known = await self._patience.postgres(partial(self._store.topic_refusals, topic))
            example = describe_refusals([partition for partition in judged if partition.key[0] == topic])
            try:
                self._guard.judge(topic, ours, known, example)
            except OperatorNeeded:
                INGEST_REFUSAL_STOPS.labels(topic).inc()
                await self._in_flight.finish()  # the batches before this one stand
                raise
