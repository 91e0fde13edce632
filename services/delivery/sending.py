"""From a run to frozen parts, and from a frozen part to an attempt."""

import asyncio
import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from services.core.catalog_records import CATALOG
from services.core.parts import (
    PartFormat,
    cut_parts,
    file_stem,
    manifest_file_name,
    manifest_id,
    part_id,
    run_id,
)
from services.core.retry import Answer, RetryPolicy, Verdict
from services.delivery.catalog_parts import CatalogStore, catalog_body, catalog_parts
from services.delivery.interval_counts import Tally
from services.delivery.kept_parts import KeptParts
from services.delivery.manifests import Summary, summary
from services.delivery.model import FrozenPart, RowRange, Run, Version, WaitingPart
from services.delivery.read_ahead import ReadAhead, Rendered
from services.delivery.row_lines import Lines, Taken
from services.delivery.row_store import SMALLEST_METER_ID, RowStore
from services.delivery.run_store import ROWS_DROPPED, Attempt
from services.delivery.transports.base import OutgoingPart, Receiver, Transport
from services.platform.clock import Clock
from services.platform.crash_points import crash_point
from services.platform.metrics import DELIVERY_ATTEMPTS, DELIVERY_ROWS, DELIVERY_SECONDS

# Rendered in one go.
BLOCK_ROWS = 20_000
# Read in one go, while others wait for their turn; some tenths of a second.
PIECE_ROWS = 200_000
MOST_BYTES_AHEAD = 16 * 1024 * 1024
RENDERING_DIFFERS = "rendering_differs"
_DIFFERS = Answer(
    Verdict.STOP,
    RENDERING_DIFFERS,
    "the stored rows no longer give the bytes that were fixed when the run was frozen; nothing was sent: find out who "
    "changed them",
)
_DROPPED = Answer(
    Verdict.STOP,
    ROWS_DROPPED,
    "rows of the run were dropped by retention before they were sent, so it can be sent no more; the job goes on with "
    "the next run",
)


class Freezer:
    """Renders runs for the first time, and parts of them again and again, always to the same bytes."""

    def __init__(
        self,
        rows: RowStore,
        catalogs: CatalogStore,
        transport: Transport,
        *,
        at_once: int,
        kept: KeptParts | None = None,
    ) -> None:
        self._rows = rows
        self._catalogs = catalogs
        self._transport = transport
        self._kept = kept or KeptParts()
        # The others' short transactions need connections, too.
        self._turn = asyncio.Semaphore(at_once)
        self._ahead = ReadAhead(self._further)
        # A store of their own, lest runs that were just frozen leave no room for them.
        self._kept_ahead = KeptParts(MOST_BYTES_AHEAD)

    async def parts(self, run: Run, version: Version, tally: Tally) -> list[FrozenPart]:
        """Return what the parts of the run are, and have all its rows counted.

        Holds one block of rows, and of the parts as many as may be kept. Raises as RowStore.block, and UserError where
        the job's settings are of no use.
        """
        part_format = self._transport.part_format(version.settings)
        block_rows = _block_rows(part_format)
        following = RowRange(run.slot.start, SMALLEST_METER_ID, PIECE_ROWS)
        lines, parts = Lines(), list[FrozenPart]()

        async def cut(taken: Taken, *, is_end: bool = False) -> int:
            """Cut lines into parts; return how many lines they took, as what does not fill a part waits for more."""
            nonlocal following
            block = await self._rows.rendered(run, version, part_format, taken)
            done = 0
            for found in cut_parts(part_format, block, is_end=is_end):
                sha256 = hashlib.sha256(found.body).digest()
                self._kept.keep(sha256, found.body)
                parts.append(FrozenPart(block.rows(found.first, found.row_count), len(found.body), sha256))
                done += found.row_count
            block.count(tally, done)
            if taken.lines:
                last = block.rows(len(taken.lines) - 1, PIECE_ROWS)
                following = last._replace(first_meter_id=last.first_meter_id + 1)
            return done

        while True:
            async with self._turn:
                row_count = await self._rows.read(run, version, following, lines, block_rows, cut)
            is_end = row_count < PIECE_ROWS
            rest = lines.take()
            lines.put_back(rest.behind(await cut(rest, is_end=is_end)))
            if is_end:
                return parts

    async def body(self, run: Run, version: Version, part: FrozenPart) -> bytes | None:
        """Return the bytes of a part; None where they are not those of its first rendering. Raises as `parts`."""
        if version.data == CATALOG:
            return await self._catalog_body(run, version, part)
        body = self._kept.take(part.sha256)
        if body is None:
            await self._ahead.wait(run)
            body = self._kept_ahead.take(part.sha256)
        if body is None:
            cut, following = await self._cut_again(run, version, part.rows)
            if not _begins_with(cut, part):
                # It may have been frozen before units were put right; what was fixed then is what is to be sent.
                cut, following = await self._cut_again(run, version, part.rows, are_units_put_right=False)
            if not _begins_with(cut, part):
                return None
            body = cut[0][1]
            self._ahead.note(run, self._keep(cut[1:], following, part.sha256))
        self._ahead.taken(run, version, part.sha256)
        return body

    async def are_dropped(self, run: Run) -> bool:
        """Tell whether retention has dropped rows of the run."""
        return await self._rows.are_dropped(run)

    async def catalog(self, run: Run, version: Version) -> list[FrozenPart]:
        """Return what the parts of a catalog's run are. Raises as catalog_parts."""
        return await catalog_parts(self._catalogs, self._turn, self._kept, run, version)

    async def _catalog_body(self, run: Run, version: Version, part: FrozenPart) -> bytes | None:
        kept = self._kept.take(part.sha256)
        if kept is not None:
            return kept
        async with self._turn:
            body = await catalog_body(self._catalogs, run, version, part.rows)
        return body if body is not None and hashlib.sha256(body).digest() == part.sha256 else None

    async def _further(self, run: Run, version: Version, place: RowRange) -> Rendered | None:
        """Render the parts that begin at a place, and keep them."""
        cut, following = await self._cut_again(run, version, place)
        return self._keep(cut, following, cut[-1][0]) if cut else None

    def _keep(self, cut: Sequence[tuple[bytes, bytes]], following: RowRange | None, last: bytes) -> Rendered:
        for sha256, body in cut:
            self._kept_ahead.keep(sha256, body)
        return Rendered(cut[-1][0] if cut else last, following)

    async def _cut_again(
        self, run: Run, version: Version, place: RowRange, *, are_units_put_right: bool = True
    ) -> tuple[list[tuple[bytes, bytes]], RowRange | None]:
        """Return hashes and bytes of parts of which the first begins at `place`, and where the next one begins."""
        part_format = self._transport.part_format(version.settings)
        rows = place._replace(row_count=_block_rows(part_format))
        async with self._turn:
            block = await self._rows.block(run, version, part_format, rows, are_units_put_right=are_units_put_right)
        is_end = block.row_count < rows.row_count
        cut, done = [], 0
        for found in cut_parts(part_format, block, is_end=is_end):
            cut.append((hashlib.sha256(found.body).digest(), found.body))
            done += found.row_count
        if is_end:
            return cut, None
        following = block.rows(min(done, block.row_count - 1), rows.row_count)
        if done == block.row_count:
            following = following._replace(first_meter_id=following.first_meter_id + 1)
        return cut, following


def _begins_with(cut: Sequence[tuple[bytes, bytes]], part: FrozenPart) -> bool:
    return bool(cut) and cut[0][0] == part.sha256


def _block_rows(part_format: PartFormat) -> int:
    return max(1, BLOCK_ROWS // part_format.max_rows) * part_format.max_rows


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
            answer = _DROPPED if await self._freezer.are_dropped(run) else _DIFFERS
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
        said = Summary(0) if part.manifest_body is None else summary(part.manifest_body)
        section = said.section.number, said.section.of
        outgoing = OutgoingPart(
            part_id=manifest_id(self.installation_id, job_id, run.slot.start, *section),
            job_id=job_id,
            run_id=run_id(job_id, run.slot.start),
            part=part.number,
            parts=run.part_count,
            slot=run.slot,
            resolution_minutes=version.resolution_minutes,
            row_count=said.rows,
            sha256=part.frozen.sha256,
            file_name=manifest_file_name(job_id, version.name, version.data, *run.slot, *section),
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
