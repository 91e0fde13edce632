"""`meterpost rejected`: the readings that ingest refused, and publishing them again."""

from typing import Annotated, Any

import typer

from services.cli.rejected_replay import rehearse, replay_rejected
from services.cli.session import Session, command
from services.cli.show import Column, utc
from services.core.readings import WHOLE_RECORD, RefusalReason
from services.core.times import parse_instant
from services.ingest.rejected_queries import Original, RejectedFilter, count_rejected, find_rejected, list_rejected
from services.platform.errors import UserError
from services.platform.postgres import transaction
from services.platform.topics import READING_TOPICS

app = typer.Typer(no_args_is_help=True, help="Refused readings: what was wrong with them, and publishing them again.")

_DETAIL_WIDTH = 100
_LIST = (
    Column("Refused reading", whole=True),
    Column("Arrived", whole=True),
    Column("Reason", whole=True),
    Column("Device", whole=True),
    Column("Bytes", number=True),
    Column("Sent again", whole=True),
    Column("Detail"),
)
_COUNTS = (Column("Reason", whole=True), Column("Readings", number=True))

Reason = Annotated[str | None, typer.Option(metavar="REASON", help="Only of this reason.", show_default=False)]
Device = Annotated[str | None, typer.Option(metavar="ID", help="Only of this device.", show_default=False)]
Since = Annotated[
    str | None, typer.Option(metavar="TIME", help="Only what arrived at or after this.", show_default=False)
]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Only what arrived before this.", show_default=False)]
Topic = Annotated[
    str | None,
    typer.Option(metavar="TOPIC", help=f"Only of one topic: {', '.join(READING_TOPICS)}.", show_default=False),
]


@command(app, "list", "database", "as_json")
async def list_(
    session: Session,
    *,
    reason: Reason = None,
    device: Device = None,
    since: Since = None,
    until: Until = None,
    topic: Topic = None,
    counts: Annotated[bool, typer.Option("--counts", help="Only how many there are of each reason.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
) -> None:
    """List refused readings, the latest arrivals first, with their number by reason."""
    wanted = _filter(session, reason, device, since, until, topic)
    async with session.pool() as pool, transaction(pool) as connection:
        by_reason = await count_rejected(connection, wanted)
        listed = [] if counts else await list_rejected(connection, wanted, limit)
    if session.answer.as_json:
        answer: dict[str, Any] = {"counts": by_reason}
        if not counts:
            answer["rejected"] = [{"name": one.name, **one._asdict()} for one in listed]
        session.answer.json(answer)
    elif not by_reason:
        session.answer.say("No reading was refused that matches.")
    elif counts:
        session.answer.table(_COUNTS, [*by_reason.items(), ("all", sum(by_reason.values()))])
    else:
        rows = [
            (one.name, one.arrived_at, one.reason, one.device_id, one.byte_count, one.replayed_at, _short(one.detail))
            for one in listed
        ]
        session.answer.table(_LIST, rows)
        numbers = ", ".join(f"{count:,} {name}" for name, count in by_reason.items())
        session.answer.note(f"{len(listed):,} of {sum(by_reason.values()):,} shown: {numbers}")


@command(app, "show", "database", "as_json")
async def show(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `rejected list` names it: readings.logger/0/17/2")],
) -> None:
    """Show one refused reading with its original bytes (as text where they are text)."""
    place = _place(name)
    async with session.pool() as pool, transaction(pool) as connection:
        found = await find_rejected(connection, *place)
    if found is None:
        raise UserError(f"no refused reading is named {name}; `meterpost rejected list` shows those there are")
    if session.answer.as_json:
        one = found.rejected
        bytes_ = {"original_text": _text(found), "original_hex": found.original.hex()}
        session.answer.json({"name": one.name, **one._asdict(), **bytes_})
        return
    one = found.rejected
    whole = one.source_place == WHOLE_RECORD
    session.answer.facts(
        [
            ("Refused", "the whole record" if whole else f"reading {one.source_place} of its record (from 0)"),
            ("From", f"{one.topic}/{one.partition}, offset {one.source_offset}"),
            ("Arrived", utc(one.arrived_at)),
            ("Reason", one.reason),
            ("Detail", one.detail),
            ("Device", one.device_id),
            ("Sent again", f"{utc(one.replayed_at)} by {one.replayed_by}" if one.replayed_at else "no"),
            ("Bytes", one.byte_count),
        ]
    )
    text = _text(found)
    session.answer.say(text if text is not None else f"{found.original.hex(' ')}\n(in hexadecimal: it is no text)")


@command(app, "replay", "kafka", "database", "as_json")
async def replay(
    session: Session,
    *,
    reason: Reason = None,
    device: Device = None,
    since: Since = None,
    until: Until = None,
    topic: Topic = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Every refused reading; needed where nothing else is said.")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Also what was published again before.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what would be sent, and what would be refused once more.")
    ] = False,
) -> None:
    """Publish refused readings again, as new arrivals; they stay listed and are marked as sent.

    A reading that was refused alone is wrapped into an upload of its device, a record that was refused as a whole goes
    out as it came.
    """
    if not all_ and not any((reason, device, since, until, topic)):
        raise UserError(
            "say which: --reason, --device, --since, --until or --topic; or --all for every refused reading"
        )
    wanted = _filter(session, reason, device, since, until, topic, only_new=not again)
    if dry_run:
        await rehearse(session, wanted)
    else:
        await replay_rejected(session, wanted)


def _filter(
    session: Session,
    reason: str | None,
    device: str | None,
    since: str | None,
    until: str | None,
    topic: str | None,
    *,
    only_new: bool = False,
) -> RejectedFilter:
    reasons = [one.value for one in RefusalReason]
    if reason is not None and reason not in reasons:
        raise UserError(f"--reason: nothing is ever refused as {reason!r}; reasons: {', '.join(reasons)}")
    prefix = session.places.topic_prefix
    topics = [prefix + one for one in READING_TOPICS]
    if topic is not None:
        topics = [one for one in topics if topic in {one, one.removeprefix(prefix)}]
        if not topics:
            raise UserError(f"--topic: {topic!r} is none of {', '.join(READING_TOPICS)}")
    return RejectedFilter(
        topics, reason, device, _instant(since, "--since"), _instant(until, "--until"), only_new=only_new
    )


def _instant(text: str | None, option: str) -> Any:
    try:
        return None if text is None else parse_instant(text)
    except ValueError as error:
        raise UserError(f"{option}: {error}") from None


def _place(name: str) -> tuple[str, int, int, int]:
    try:
        topic, partition, offset, place = name.rsplit("/", 3)
        return topic, int(partition), int(offset), int(place)
    except ValueError:
        raise UserError(
            f"{name!r} names no refused reading; they are named topic/partition/offset/place: readings.logger/0/17/2"
        ) from None


def _text(found: Original) -> str | None:
    """Return the bytes as text; None where they are none that a terminal should see."""
    try:
        text = found.original.decode()
    except UnicodeDecodeError:
        return None
    return text if all(one.isprintable() or one in "\n\t" for one in text) else None


def _short(detail: str) -> str:
    return detail if len(detail) <= _DETAIL_WIDTH else detail[:_DETAIL_WIDTH] + "…"
