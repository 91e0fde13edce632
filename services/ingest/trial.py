"""Finds the records that kill the process that judges them, by judging them in a process of their own first.

`python -m services.ingest.trial` is that process: it takes records from its input, tells each one's place before it
judges it, and ends. Used only for the first batches of a process before which owner after owner vanished without having
stored anything.
"""

import asyncio
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from datetime import timedelta

import msgspec
import structlog

from services.core.registry import Registry
from services.ingest.batch import BatchBuilder, Position
from services.platform.kafka import Partition, PartitionBatch, Record

VANISHED_OWNERS = 2
"""So many owners in a row that vanished without having stored anything are suspicious: something kills them."""
BATCHES_ON_TRIAL = 4
"""As many batches a process may have judged and not yet stored when it died, and one."""
DEATHS = 3
SECONDS_A_RECORD = 10.0
STARTED = b"start\n"
log = structlog.get_logger()


async def deadly_records(
    cut: Iterable[PartitionBatch], progress: Callable[[], None]
) -> dict[Partition, frozenset[int]]:
    """Return the offsets of the records that killed a process of their own three times in a row, by partition.

    Where no such process can be started, nothing is known to be deadly. Takes about a second, and as much for each
    death; `progress` is called after each.
    """
    deaths: Counter[tuple[Partition, int]] = Counter()
    remaining = [((batch.topic, batch.partition), record) for batch in cut for record in batch.records]
    while remaining:
        culprit = await _try([record for _partition, record in remaining])
        progress()
        if culprit is None:
            break
        partition, record = remaining[culprit]
        suspect = (partition, record.offset)
        deaths[suspect] += 1
        log.warning("trial_died", partition=partition, offset=record.offset, deaths=deaths[suspect])
        remaining = remaining[culprit + (deaths[suspect] >= DEATHS) :]
    deadly: dict[Partition, set[int]] = defaultdict(set)
    for (partition, offset), count in deaths.items():
        if count >= DEATHS:
            deadly[partition].add(offset)
    return {partition: frozenset(offsets) for partition, offsets in deadly.items()}


async def _try(records: list[Record]) -> int | None:
    """Return the place of the record that ended the process or kept it for too long; None: all were judged."""
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services.ingest.trial",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError as error:  # no memory, no process is left, no right to start one
        log.warning("trial_failed", error=str(error), action="go on without")
        return None
    assert process.stdin is not None  # noqa: S101 - both are pipes
    assert process.stdout is not None  # noqa: S101
    handing_over = asyncio.create_task(_hand_over(process.stdin, msgspec.msgpack.encode(records)))
    place: int | None = None
    is_started = False
    try:
        while True:
            async with asyncio.timeout(SECONDS_A_RECORD):
                line = await process.stdout.readline()
            if not line:
                break
            if line == STARTED:
                is_started = True
            else:
                place = int(line)
    except TimeoutError:
        log.warning("trial_hangs", place=place)
    finally:
        if process.returncode is None:
            process.kill()
        exit_code = await process.wait()
        await asyncio.gather(handing_over, return_exceptions=True)
    if not is_started:
        log.error("trial_failed", exit_code=exit_code, action="go on without")
    return place if place is not None and place < len(records) else None


async def _hand_over(stdin: asyncio.StreamWriter, payload: bytes) -> None:
    stdin.write(payload)
    await stdin.drain()
    stdin.close()


def _tell(line: bytes) -> None:
    os.write(sys.stdout.fileno(), line)


async def _judge_each() -> None:
    """Judge the records of the input, telling each one's place before, and at last the place behind the last one."""
    _tell(STARTED)
    records = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=list[Record])
    builder = BatchBuilder(source_topics={"trial": 0}, raw_retention=timedelta(days=1), recent_readings=1)
    for place, record in enumerate(records):
        _tell(b"%d\n" % place)
        position = Position(epoch=0, next_offset=record.offset, watermark=None, first_arrival=None)
        await builder.judge(PartitionBatch("trial", 0, [record]), position, Registry())
    _tell(b"%d\n" % len(records))


if __name__ == "__main__":
    asyncio.run(_judge_each())
