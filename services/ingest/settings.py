"""Settings of ingest."""

from datetime import timedelta
from typing import Literal

from pydantic import Field

from services.core.windows import DEFAULT_GRACE
from services.platform.settings import ServiceSettings


class IngestSettings(ServiceSettings):
    """What ingest needs beside Kafka and PostgreSQL."""

    raw_retention_days: int = Field(
        92, ge=1, le=36_500, description="A reading measured longer than this before its arrival is refused as too old."
    )
    raw_retention_margin_days: int = Field(
        7, ge=1, le=36_500, description="Days of readings are dropped so much later than they can still be added to."
    )
    rejected_retention_days: int = Field(
        92,
        ge=0,
        le=36_500,
        description="What was refused is kept for so many days after its arrival; 0: for ever. Later, most of it would "
        "be too old to be stored by a replay.",
    )
    grace_seconds: int = Field(
        int(DEFAULT_GRACE.total_seconds()),
        ge=0,
        le=86_400,
        description="As windowing has it; here only to count late readings.",
    )
    batch_readings: int = Field(40_000, ge=1, le=1_000_000, description="About how many readings one transaction has.")
    session_seconds: int = Field(
        10,
        ge=1,
        le=300,
        description="A process of ingest that is silent for so long loses its partitions to the others.",
    )
    database_timeout_seconds: int = Field(
        30,
        ge=1,
        le=600,
        description="How long PostgreSQL may take to answer one command before it is tried again, on a new connection.",
    )
    ticks: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Append ticks to idle partitions; auto: where the broker sets the time (LogAppendTime). "
        "On a topic with CreateTime whoever sets the arrival of the readings sends the ticks too.",
    )
    refusal_stop_readings: int = Field(
        1_000,
        ge=1,
        le=1_000_000,
        description="Ingest stops when of so many recent readings of a topic nearly all were refused; also how many "
        "recent readings of each partition are looked at.",
    )
    refusal_stop_percent: int = Field(
        90, ge=1, le=100, description="How many of them must be more than; 100 never stops ingest."
    )

    @property
    def keep_rejected(self) -> timedelta | None:
        """For how long what was refused is kept; None: for ever."""
        return timedelta(days=self.rejected_retention_days) if self.rejected_retention_days else None
