"""From a run to frozen parts, and from a frozen part to an attempt."""

import asyncio
import hashlib
import random
from dataclasses import replace
from datetime import datetime

from services.core.catalog_records import CATALOG
from services.core.parts import (
    cut_parts,
    file_stem,
    manifest_file_name,
    manifest_id,
    part_id,
    run_id,
)
from services.core.retry import Answer, RetryPolicy, Verdict
from services.delivery.catalog_parts import CatalogStore, catalog_body, catalog_parts
from services.delivery.kept_parts import KeptParts
from services.delivery.model import FrozenPart, RowRange, Run, Version, WaitingPart
from services.delivery.row_store import SMALLEST_METER_ID, RowStore
from services.delivery.run_store import Attempt
from services.delivery.transports.base import OutgoingPart, Receiver, Transport
from services.platform.clock import Clock
from services.platform.crash_points import crash_point
from services.platform.metrics import DELIVERY_ATTEMPTS, DELIVERY_ROWS, DELIVERY_SECONDS

# Read and rendered in one go.
BLOCK_ROWS = 20_000
RENDERING_DIFFERS = "rendering_differs"


class Freezer:
    """Renders runs for the first time, and parts of them again and again, always to the same bytes."""

    def __init__(
        self,
        rows: RowStore,
        transport: Transport,
        *,
        at_once: int,
        kept: KeptParts | None = None,
        catalogs: CatalogStore | None = None,
    ) -> None:
        self._rows = rows
        self._catalogs = catalogs
        self._transport = transport
        self._kept = kept or KeptParts()
        # The others' short transactions need connections, too.
        self._turn = asyncio.Semaphore(at_once)

    async def parts(self, run: Run, version: Version) -> list[FrozenPart]:
        """Return what the parts of the run are. Holds one block of rows, and of the parts as many as may be kept.

        Raises as RowStore.block, and UserError where the job's settings are of no use.
        """
        part_format = self._transport.part_format(version.settings)
        if version.data == CATALOG and self._catalogs is not None:
            return await catalog_parts(self._catalogs, self._turn, self._kept, run, version)
        wanted = max(1, BLOCK_ROWS // part_format.max_rows) * part_format.max_rows
        following = RowRange(run.slot.start, SMALLEST_METER_ID, wanted)
        parts: list[FrozenPart] = []
        while True:
            async with self._turn:
                block = await self._rows.block(run, version, part_format, following)
            is_end = block.row_count < wanted
            done = 0
            for cut in cut_parts(part_format, block, is_end=is_end):
                frozen = FrozenPart(
                    block.rows(cut.first, cut.row_count), len(cut.body), hashlib.sha256(cut.body).digest()
                )
                self._kept.keep(frozen.sha256, cut.body)
                parts.append(frozen)
                done += cut.row_count
            if is_end:
                return parts
            # What did not fill a part begins the next block; the run's last row does so when the block ended with it.
            following = block.rows(min(done, block.row_count - 1), wanted)
            if done == block.row_count:
                following = following._replace(first_meter_id=following.first_meter_id + 1)

    async def body(self, run: Run, version: Version, part: FrozenPart) -> bytes | None:
        """Return the bytes of a part; None where they are not those of its first rendering. Raises as `parts`."""
        kept = self._kept.take(part.sha256)
        if kept is not None:
            return kept
        body = await self._render(run, version, part.rows)
        if body is None:
            return None
        is_same = len(body) == part.byte_count and hashlib.sha256(body).digest() == part.sha256
        return body if is_same else None

    async def _render(self, run: Run, version: Version, rows: RowRange) -> bytes | None:
        if version.data == CATALOG and self._catalogs is not None:
            return await catalog_body(self._catalogs, run, version, rows)
        part_format = self._transport.part_format(version.settings)
        block = await self._rows.block(run, version, part_format, rows)
        return part_format.assemble_block(block, 0, block.row_count) if block.row_count else None


class Sender:
    """Makes one attempt at a part and decides what follows from the answer."""

    def __init__(
        self, installation_id: str, freezer: Freezer, transport: Transport, policy: RetryPolicy, clock: Clock
    ) -> None:
        self.installation_id = installation_id
        """Stands in the ids that receivers see."""
        self._freezer = freezer
        self._transport = transport
        self._policy = policy
        self._clock = clock

    async def attempt(self, run: Run, version: Version, part: WaitingPart, destination: Receiver) -> Attempt:
        """Render the part, send it unless its bytes changed, and return the attempt, not yet recorded."""
        started_at = self._clock.now()
        body = part.manifest_body
        if body is None:
            body = await self._freezer.body(run, version, part.frozen)
        if body is None:
            answer = Answer(
                Verdict.STOP,
                RENDERING_DIFFERS,
                "the stored rows no longer give the bytes that were fixed when the run was frozen; nothing was "
                "sent: find out who changed them",
            )
        else:
            crash_point("delivery.before_send")
            answer = await destination.send(self._outgoing(run, version, part, body))
            crash_point("delivery.after_answer")
        finished_at = self._clock.now()
        DELIVERY_ATTEMPTS.labels(answer.verdict.value, answer.reason).inc()
        DELIVERY_SECONDS.observe((finished_at - started_at).total_seconds())
        if answer.verdict is Verdict.DELIVERED:
            DELIVERY_ROWS.inc(part.frozen.rows.row_count)
        return Attempt(started_at, finished_at, answer, self._again_at(part, answer, finished_at))

    def _again_at(self, part: WaitingPart, answer: Answer, finished_at: datetime) -> datetime | None:
        if answer.verdict is not Verdict.RETRY:
            return None
        jitter = random.random()  # noqa: S311 - jitter is no secret
        return finished_at + self._policy.delay(part.failed_in_a_row + 1, jitter, answer.retry_after)

    def _outgoing(self, run: Run, version: Version, part: WaitingPart, body: bytes) -> OutgoingPart:
        job_id = run.job.job_id
        outgoing = OutgoingPart(
            part_id=manifest_id(self.installation_id, job_id, run.slot.start),
            job_id=job_id,
            run_id=run_id(job_id, run.slot.start),
            part=part.number,
            parts=run.part_count,
            slot=run.slot,
            resolution_minutes=version.resolution_minutes,
            row_count=run.row_count,
            sha256=part.frozen.sha256,
            file_name=manifest_file_name(job_id, version.name, version.data, *run.slot),
            body=body,
            is_manifest=True,
            resend_count=run.resend_count,
        )
        if part.manifest_body is not None:
            return outgoing
        stem = file_stem(job_id, version.name, version.data, *run.slot, part.number, run.part_count)
        return replace(
            outgoing,
            part_id=part_id(self.installation_id, job_id, run.slot.start, part.number),
            row_count=part.frozen.rows.row_count,
            file_name=stem + self._transport.part_format(version.settings).ending,
            is_manifest=False,
        )
