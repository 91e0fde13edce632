"""`meterpost ingest`: how far it is, and the decisions that it leaves to an operator."""

import typer

from services.cli.ingest_status import partition_statuses, show_status
from services.cli.session import Session, command
from services.ingest.progress_queries import allowances_of, gaps_of, progress_of
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
    ends = await partition_ends(session.places.kafka().address, partitions, deadline_s=_DEADLINE_S)
    show_status(session.answer, partition_statuses(ends, progress, gaps), gaps, allowances)
