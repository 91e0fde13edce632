"""Settings of ingest."""

from typing import Literal

from pydantic import Field

from services.platform.settings import ServiceSettings


class IngestSettings(ServiceSettings):
    """What ingest needs beside Kafka and PostgreSQL."""

    raw_retention_days: int = Field(
        92, ge=1, le=36_500, description="A reading measured longer than this before its arrival is refused as too old."
    )
    raw_retention_margin_days: int = Field(
        7, ge=1, le=36_500, description="Days of readings are dropped so much later than they can still be added to."
    )
    batch_readings: int = Field(20_000, ge=1, le=1_000_000, description="About how many readings one transaction has.")
    poll_records: int = Field(2_000, ge=1, le=100_000, description="Records taken from the fetched ones at a time.")
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
