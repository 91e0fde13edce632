"""`meterpost windows status` and `force-close`: what windows wait for, and closing them without it."""

import sys
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated

import typer

from services.cli import choosing
from services.cli.operator import operator_name
from services.cli.session import Session, command
from services.cli.show import utc
from services.cli.window_status import holders, resolution_statuses, show_status
from services.cli.windows import app
from services.core.times import MICROSECOND
from services.core.windows import platform_watermark
from services.ingest.operator_log import record_action
from services.ingest.progress_queries import PartitionProgress, progress_of
from services.platform.errors import UserError
from services.platform.kafka import Partition
from services.platform.postgres import transaction
from services.platform.topics import READING_TOPICS
from services.windowing.forcing import add_force, holding, list_forces
from services.windowing.retention_queries import retentions
from services.windowing.status_queries import forced_counts, newest_grace, occupied, standings

_FORCES_SHOWN = 5


@command(app, "status", "kafka", "database", "as_json")
async def status(session: Session) -> None:
    """Show how far windows are closed, what holds them open and since when, what was forced, and what is kept."""
    # The progress first: a partition that is added after it was read holds only records that arrived later.
    async with session.pool() as pool, transaction(pool) as connection:
        progress = await progress_of(connection, _topics(session))
        standing = await standings(connection)
        grace = await newest_grace(connection)
        forces = await list_forces(connection, _FORCES_SHOWN)
        counts = await forced_counts(connection, [force.force_id for force in forces])
        retention = await retentions(connection)
        found_occupied = await occupied(connection)
    watermarks = await _watermarks(session, progress)
    show_status(
        session.answer,
        resolution_statuses(standing, watermarks, retention),
        holders(watermarks, progress, grace),
        forces,
        counts,
        platform_watermark(watermarks, watermarks),
        found_occupied,
    )


@command(app, "force-close", "kafka", "database", "as_json")
async def force_close(
    session: Session,
    *,
    until: Annotated[
        str, typer.Option(metavar="TIME", help="Close windows that end here or before.", show_default=False)
    ],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; recorded.", show_default=False)],
    partition: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TOPIC/N", help="Do not wait for this one; repeatable. Default: all that hold such windows open."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Close windows without waiting for partitions that are stuck; the others are waited for as ever.

    What comes from the stuck partitions afterwards stays stored, is late for these windows whenever it arrived, and is
    listed by `meterpost late list`. The windows and every run they feed stay marked as forced. It cannot be undone.
    """
    if not reason.strip():
        raise UserError("--reason is empty; say why these windows cannot wait")
    closes_until = choosing.instant(until, "--until")
    async with session.pool() as pool:
        async with transaction(pool) as connection:
            progress = await progress_of(connection, _topics(session))
            grace = await newest_grace(connection)
            is_open = any(one.closed_until < closes_until for one in await standings(connection))
        watermarks = await _watermarks(session, progress)
        if not is_open:
            raise UserError(f"nothing is open before {utc(closes_until)}: `meterpost windows status` shows where it is")
        chosen = _chosen(session, partition, watermarks, closes_until, grace)
        names = sorted(f"{topic}/{number}" for topic, number in chosen)
        others = sorted(f"{topic}/{number}" for topic, number in holding(watermarks, closes_until, grace) - chosen)
        sentence = f"Windows that end at {utc(closes_until)} or before are closed without {', '.join(names)}"
        if not yes:
            _confirm(session, sentence)
        async with transaction(pool) as connection:
            force_id = await add_force(connection, closes_until, names, operator_name(), reason)
            await record_action(
                connection,
                operator_name(),
                "windows.force_close",
                {"force_id": force_id, "closes_until": utc(closes_until), "partitions": names, "reason": reason},
            )
    if session.answer.as_json:
        session.answer.json(
            {"force_id": force_id, "closes_until": closes_until, "partitions": names, "waits_for": others}
        )
    elif others:
        session.answer.say(
            f"Decided. {sentence}, as soon as {', '.join(others)} {'has' if len(others) == 1 else 'have'} passed their "
            "grace: they are held open by that, too. `meterpost windows status` shows how far it is."
        )
    else:
        session.answer.say(
            f"Decided. {sentence}. Windowing does it at its next look, within seconds; `meterpost windows status` "
            "shows how far it is."
        )


def _topics(session: Session) -> list[str]:
    return [session.places.topic_prefix + topic for topic in READING_TOPICS]


async def _watermarks(
    session: Session, progress: Mapping[Partition, PartitionProgress]
) -> dict[Partition, datetime | None]:
    """Return the watermarks of the partitions that the broker has: those that windows wait for."""
    async with session.admin() as admin:
        partitions = await admin.partitions(_topics(session))
    return {key: progress[key].watermark if key in progress else None for key in sorted(partitions)}


def _chosen(
    session: Session,
    named: list[str] | None,
    watermarks: Mapping[Partition, datetime | None],
    closes_until: datetime,
    grace: timedelta,
) -> frozenset[Partition]:
    """Return the partitions not to wait for. Raises UserError where that makes no sense."""
    held = holding(watermarks, closes_until, grace)
    chosen = held if named is None else frozenset(_partition(session, one, watermarks) for one in named)
    if not chosen & held:
        what = "no partition holds" if named is None else "none of the partitions named holds"
        raise UserError(f"{what} windows open that end at {utc(closes_until)} or before: they close by themselves")
    if chosen == watermarks.keys():
        known = [mark for mark in watermarks.values() if mark is not None]
        reached = f"; the furthest one allows --until {utc(max(known) - grace - MICROSECOND)}" if known else ""
        raise UserError(
            f"no partition is left to go by: none has passed {utc(closes_until + grace)}, the end of the grace{reached}"
        )
    return chosen


def _partition(session: Session, text: str, known: Mapping[Partition, object]) -> Partition:
    prefix = session.places.topic_prefix
    for topic, number in known:
        if text in {f"{topic}/{number}", f"{topic.removeprefix(prefix)}/{number}"}:
            return topic, number
    raise UserError(f"{text!r} names no partition that the broker has; they are named like {READING_TOPICS[0]}/0")


def _confirm(session: Session, sentence: str) -> None:
    if session.answer.as_json or not sys.stdin.isatty():
        raise UserError(f"{sentence}. Nobody can be asked here: add --yes to do it")
    session.answer.note(f"{sentence}. What comes from there later is late for them. It cannot be undone.")
    typer.confirm("Close them?", abort=True)
