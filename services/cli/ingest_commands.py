"""`meterpost ingest`: how far it is, and the decisions that it leaves to an operator."""

import sys
from typing import Annotated

import typer

from services.cli.durations import parse_duration
from services.cli.ingest_status import partition_statuses, show_status
from services.cli.operator import operator_name
from services.cli.session import Session, command
from services.cli.show import utc
from services.ingest.gaps import accept_gap, open_gap
from services.ingest.progress_queries import allowances_of, gaps_of, progress_of
from services.ingest.refusal_allowance import allow_refusals
from services.platform.errors import UserError
from services.platform.kafka import Partition
from services.platform.kafka_ends import partition_ends
from services.platform.postgres import transaction
from services.platform.topics import READING_TOPICS

app = typer.Typer(no_args_is_help=True, help="Ingest: how far it is, and what it leaves to an operator.")

_DEADLINE_S = 15.0


@command(app, "status", "kafka", "database", "as_json")
async def status(session: Session) -> None:
    """Show each partition: its position, the log's end, the lag, the watermark, and who owns it."""
    topics = [session.places.topic_prefix + topic for topic in READING_TOPICS]
    async with session.pool() as pool, transaction(pool) as connection:
        progress = await progress_of(connection, topics)
        gaps = await gaps_of(connection, topics)
        allowances = await allowances_of(connection, topics)
    # The log is looked at last: it is then nowhere shorter than what is stored.
    async with session.admin() as admin:
        partitions = await admin.partitions(topics)
    ends = await partition_ends(session.places.kafka_access(), partitions, deadline_s=_DEADLINE_S)
    show_status(session.answer, partition_statuses(ends, progress, gaps), gaps, allowances)


@command(app, "accept-gap", "kafka", "database", "as_json")
async def accept_gap_(
    session: Session,
    partition: Annotated[str, typer.Argument(metavar="TOPIC/PARTITION", help="As ingest's error names it.")],
    *,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why they are lost; recorded.", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Accept that the broker removed records before they were read; ingest goes on behind them when it is started.

    The gap, who accepted it, when and why stay recorded.
    """
    if not reason.strip():
        raise UserError("--reason is empty; say why the records are lost")
    key = _partition(session, partition)
    async with session.pool() as pool:
        async with transaction(pool) as connection:
            gap = await open_gap(connection, key)
        if gap is None:
            raise UserError(f"ingest has found no gap in {partition} that waits for a decision")
        ends = await partition_ends(session.places.kafka_access(), [key], deadline_s=_DEADLINE_S)
        to_offset = ends[key].first_offset
        if to_offset <= gap.from_offset:
            raise UserError(
                f"the broker has offset {gap.from_offset} of {partition} again: start ingest, nothing is lost"
            )
        sentence = (
            f"{gap.topic}/{gap.partition}: offsets {gap.from_offset:,} to {to_offset - 1:,}, up to "
            f"{to_offset - gap.from_offset:,} records, were removed before they were read (found {utc(gap.found_at)})"
        )
        if not yes:
            _confirm(session, sentence)
        async with transaction(pool) as connection:
            await accept_gap(connection, gap, to_offset, operator_name(), reason)
    if session.answer.as_json:
        session.answer.json(
            {"topic": gap.topic, "partition": gap.partition, "from_offset": gap.from_offset, "to_offset": to_offset}
        )
    else:
        session.answer.say(f"Accepted. {sentence}; ingest goes on at {to_offset:,} when it is started.")


@command(app, "resume-refusing", "database", "as_json")
async def resume_refusing(
    session: Session,
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help=f"One of {', '.join(READING_TOPICS)}.")],
    *,
    for_: Annotated[str, typer.Option("--for", metavar="TIME", help="For how long: 30m, 2h, 1d.", show_default=False)],
    reason: Annotated[
        str, typer.Option(metavar="TEXT", help="Why the refusals are right; recorded.", show_default=False)
    ],
) -> None:
    """Let nearly everything of a topic be refused for a while, after ingest stopped because of it.

    Start ingest afterwards. What is refused meanwhile stays listed, and can be sent again.
    """
    if not reason.strip():
        raise UserError("--reason is empty; say why the refusals are right")
    duration = parse_duration(for_, "--for")
    full_name = _topic(session, topic)
    async with session.pool() as pool, transaction(pool) as connection:
        until = await allow_refusals(connection, full_name, duration, operator_name(), reason)
    if session.answer.as_json:
        session.answer.json({"topic": full_name, "allowed_until": until})
    else:
        session.answer.say(f"Refusals of {full_name} do not stop ingest until {utc(until)}. Start ingest now.")


def _topic(session: Session, name: str) -> str:
    prefix = session.places.topic_prefix
    for known in (prefix + one for one in READING_TOPICS):
        if name in {known, known.removeprefix(prefix)}:
            return known
    raise UserError(f"{name!r} is no topic of readings; there are {' and '.join(READING_TOPICS)}")


def _partition(session: Session, text: str) -> Partition:
    topic, _slash, number = text.rpartition("/")
    if not (number.isascii() and number.isdigit()):
        raise UserError(f"{text!r} names no partition; they are named like {READING_TOPICS[0]}/0")
    return _topic(session, topic), int(number)


def _confirm(session: Session, sentence: str) -> None:
    if session.answer.as_json or not sys.stdin.isatty():
        raise UserError(f"{sentence}. Nobody can be asked here: add --yes to accept it")
    session.answer.note(sentence)
    typer.confirm("Give them up for lost?", abort=True)
