"""`meterpost readings`: publishing readings of a file as the devices would have, and moving the arrival clock."""

import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from services.api.catalog_queries import attachments, meters, platform_clock
from services.cli.durations import parse_duration
from services.cli.input_file import read_text
from services.cli.progress import Progress
from services.cli.publishing import PAST_GRACE, ReadingPublisher, Upload, replay, uploads_of
from services.cli.routes import Routed, Routes, route_csv, route_nem12, total_of
from services.cli.session import Session, command, wall_clock
from services.cli.show import problems_json, refuse, tell_left_out, utc
from services.core.csv_table import Problem
from services.core.nem12 import parse_nem12
from services.core.reading_csv import parse_reading_csv
from services.core.readings import INTERVALS_MINUTES
from services.core.times import parse_instant
from services.platform.errors import Unavailable, UserError
from services.platform.kafka import Partition
from services.platform.kafka_ends import newest_time
from services.platform.postgres import transaction
from services.platform.topics import READING_TOPICS

app = typer.Typer(no_args_is_help=True, help="Readings: publish those of a file, and show what was known when.")

_FORMATS = ("nem12", "csv")
_LARGEST_LEAD = timedelta(minutes=59)
"""Kafka refuses records whose time lies an hour or more ahead of its own clock."""
_DEADLINE_S = 15.0


class _Source(NamedTuple):
    """How the file is to be read."""

    file: Path
    format: str
    meter: str | None
    interval_minutes: int | None
    rounded: bool
    skip_bad: bool


class _Topics(NamedTuple):
    """The reading topics as they are on the cluster now."""

    partitions: frozenset[Partition]
    arrival_is_ours: bool
    """CreateTime: we set the arrival. False: the broker does (LogAppendTime)."""
    newest: datetime | None


@command(app, "publish", "organization", "kafka", "database", "as_json")
async def publish(
    session: Session,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Plain, .gz, or a .zip with one file.")],
    *,
    format_: Annotated[str, typer.Option("--format", metavar="nem12|csv", help="What FILE is.", show_default=False)],
    delay: Annotated[
        str, typer.Option(metavar="TIME", help="How long after an interval's end its reading arrives: 30s, 5m, 2h.")
    ] = "30s",
    until: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Move the arrival clock on to this. Default: past the last window's grace."),
    ] = None,
    meter: Annotated[
        str | None, typer.Option(metavar="NAME_OR_ID", help="csv: the meter of all lines.", show_default=False)
    ] = None,
    interval_minutes: Annotated[
        int | None, typer.Option(metavar="MINUTES", help="csv: the interval of all lines.", show_default=False)
    ] = None,
    round_: Annotated[
        bool, typer.Option("--round", help="csv: round amounts to whole pulses (else such a line is an error).")
    ] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad lines out, and say which.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Publish although the readings will be late.")] = False,
) -> None:
    """Publish the readings of a file to the real topics, as the devices of their meters would have.

    Each upload arrives --delay after its interval's end, and the arrival clock moves on in step, so windows close as
    they would have then. Nothing is published unless the whole file is sound.

    nem12: the meters are those that `meters import --from-nem12` registered. csv: a header line with the columns meter,
    measurement_time, interval_minutes, one of pulses, register, kwh, value (in the meter's unit), and if wanted
    revision; or, with --meter and --interval-minutes, the columns start, value.
    """
    source = _Source(file, format_, meter, interval_minutes, round_, skip_bad)
    _check(source)
    wait = parse_duration(delay, "--delay")
    routed = await _load(session, source)
    uploads = uploads_of(routed.readings, wait)
    topics = await _look(session)
    end = _end(uploads, until, topics)
    if topics.arrival_is_ours:
        await _refuse_late(session, uploads, topics, force)
    else:
        session.answer.note(
            "the broker sets the arrival on these topics (LogAppendTime): everything arrives now, --delay and --until "
            "have no effect, and windows that are closed stay as they are"
        )
    tell_left_out(session.answer, routed.problems)
    started = time.monotonic()
    async with session.producer() as producer:
        publisher = ReadingPublisher(producer, partitions=topics.partitions, topic_prefix=session.places.topic_prefix)
        with Progress(session.answer, len(routed.readings)) as progress:
            await replay(publisher, uploads, until=end, published=progress.published)
    clock = None if end is None else max(end, topics.newest or end)  # it never goes back
    _tell(session, routed, uploads, clock, time.monotonic() - started)


@command(app, "tick", "kafka", "as_json")
async def tick(
    session: Session,
    *,
    at: Annotated[str, typer.Option("--at", metavar="TIME", help="Where the arrival clock is to stand.")],
) -> None:
    """Move the arrival clock on, as silence would, so that windows close for which nothing more comes.

    Only where publishers set the arrival (the demo, `topics declare --replay`); elsewhere the broker's clock does it.
    """
    instant = _instant(at, "--at")
    topics = await _look(session)
    if not topics.arrival_is_ours:
        raise UserError("the broker sets the arrival on these topics (LogAppendTime): its clock moves on by itself")
    if topics.newest is not None and instant <= topics.newest:
        raise UserError(f"the arrival clock stands at {utc(topics.newest)} already and never goes back")
    _check_lead(instant, "--at")
    async with session.producer() as producer:
        publisher = ReadingPublisher(producer, partitions=topics.partitions, topic_prefix=session.places.topic_prefix)
        await publisher.tick(instant)
        await publisher.settle()
    if session.answer.as_json:
        session.answer.json({"clock": instant, "clock_before": topics.newest, "partitions": len(topics.partitions)})
    else:
        session.answer.say(f"The arrival clock stands at {utc(instant)} on {len(topics.partitions)} partitions.")


def _check(source: _Source) -> None:
    if source.format not in _FORMATS:
        raise UserError(f"the format {source.format!r} is not known; allowed: {', '.join(_FORMATS)}")
    if source.format == "nem12" and (source.meter or source.interval_minutes or source.rounded):
        raise UserError("--meter, --interval-minutes and --round belong to --format csv")
    if source.interval_minutes is not None and source.interval_minutes not in INTERVALS_MINUTES:
        raise UserError(f"--interval-minutes allows {', '.join(map(str, INTERVALS_MINUTES))}")


async def _load(session: Session, source: _Source) -> Routed:
    """Read the file and find the devices of its meters. Raises UserError naming every bad line."""
    text = read_text(source.file)
    nem12 = parse_nem12(text) if source.format == "nem12" else None
    lines = None
    if nem12 is None:
        lines = parse_reading_csv(text, meter=source.meter, interval_minutes=source.interval_minutes)
    problems = list(nem12.problems if nem12 is not None else lines.problems if lines is not None else ())
    if problems and not source.skip_bad:
        raise refuse(str(source.file), problems)
    async with session.pool() as pool, transaction(pool) as connection:
        organization_id = (await session.organization(connection)).organization_id
        routes = Routes(
            await meters(connection, organization_id), await attachments(connection, organization_id=organization_id)
        )
    if nem12 is not None:
        routed = route_nem12(nem12, routes)
    else:
        routed = route_csv(lines.readings if lines is not None else (), routes, rounded=source.rounded)
    found = sorted([*problems, *routed.problems])
    if (found and not source.skip_bad) or not routed.readings:
        raise refuse(str(source.file), found or [Problem(1, "there is no reading in it")])
    return Routed(routed.readings, found)


async def _look(session: Session) -> _Topics:
    """Find out how the reading topics are now. Raises UserError where they are missing or differ."""
    names = [session.places.topic_prefix + topic for topic in READING_TOPICS]
    async with session.admin() as admin:
        try:
            partitions = await admin.partitions(names)
        except Unavailable as error:
            if "UnknownTopic" not in str(error):
                raise
            raise UserError(f"Kafka has no topic {' or '.join(names)} yet: run `meterpost topics declare`") from None
        kinds = set((await admin.time_types(names)).values())
    if len(kinds) > 1:
        raise UserError(f"{names[0]} and {names[1]} take their times in different ways; declare both alike")
    newest = await newest_time(session.places.kafka_access(), partitions, deadline_s=_DEADLINE_S)
    return _Topics(partitions, kinds == {"CreateTime"}, newest)


async def _refuse_late(session: Session, uploads: Sequence[Upload], topics: _Topics, force: bool) -> None:
    async with session.pool() as pool, transaction(pool) as connection:
        stored = await platform_clock(connection)
    clock = max((one for one in (topics.newest, stored) if one is not None), default=None)
    first = uploads[0].arrives_at
    if clock is None or clock <= first:
        return
    late = sum(len(upload.readings) for upload in uploads if upload.arrives_at < clock)
    sentence = (
        f"the platform's clock stands at {utc(clock)} already, and the file's first readings arrive at {utc(first)}: "
        f"{late:,} readings would be late, and windows that are closed stay as they are"
    )
    if not force:
        raise UserError(
            f"{sentence}. Replay old days on a platform of their own (`make run FLEET=0 DATA=another-folder`), "
            "or add --force"
        )
    session.answer.note(f"{sentence} (--force)")


def _end(uploads: Sequence[Upload], until: str | None, topics: _Topics) -> datetime | None:
    """Return where the arrival clock is to stand in the end; None where it is the broker's."""
    if not topics.arrival_is_ours:
        return None
    last = uploads[-1].arrives_at
    if until is None:
        _check_lead(last, "the last arrival in the file")
        return last + PAST_GRACE
    end = _instant(until, "--until")
    if end < last:
        raise UserError(f"--until is {utc(end)}, before the last arrival in the file, {utc(last)}")
    _check_lead(end, "--until")
    return end


def _check_lead(instant: datetime, name: str) -> None:
    if instant > wall_clock().now() + _LARGEST_LEAD:
        raise UserError(f"{name} is {utc(instant)}: Kafka takes no time an hour or more in the future")


def _instant(text: str, option: str) -> datetime:
    try:
        return parse_instant(text)
    except ValueError as error:
        raise UserError(f"{option}: {error}") from None


def _tell(session: Session, routed: Routed, uploads: Sequence[Upload], end: datetime | None, seconds: float) -> None:
    readings, pulses = len(routed.readings), total_of(routed.readings)
    if session.answer.as_json:
        session.answer.json(
            {
                "readings": readings,
                "uploads": len(uploads),
                "pulses": pulses,
                "first_arrival": uploads[0].arrives_at if end else None,
                "last_arrival": uploads[-1].arrives_at if end else None,
                "clock": end,
                "left_out": problems_json(routed.problems),
            }
        )
        return
    arrivals = f", arriving {utc(uploads[0].arrives_at)} to {utc(uploads[-1].arrives_at)}" if end else ""
    clock = f" The arrival clock stands at {utc(end)}." if end else ""
    session.answer.say(
        f"Published {readings:,} readings ({pulses:,} pulses) in {len(uploads):,} uploads{arrivals}, "
        f"in {seconds:.1f} s.{clock}"
    )
