"""Settings of ingest."""

from typing import Literal

from pydantic import Field

from services.platform.settings import ServiceSettings


class IngestSettings(ServiceSettings):
    """What ingest needs beside Kafka and PostgreSQL."""

    raw_retention_days: int = Field(
        92, ge=1, le=36_500, description="A reading measured longer than this before its arrival is refused as too old."
    )
    batch_readings: int = Field(40_000, ge=1, le=1_000_000, description="About how many readings one transaction has.")
    ticks: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Append ticks to idle partitions; auto: where the broker sets the time (LogAppendTime). "
        "On a topic with CreateTime whoever sets the arrival of the readings sends the ticks too.",
    )
