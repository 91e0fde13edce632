"""Settings of windowing."""

from datetime import timedelta
from decimal import Decimal

from pydantic import Field

from services.core.registers import DEFAULT_LARGEST_SHARE
from services.core.windows import DEFAULT_GRACE, RESOLUTIONS_MINUTES
from services.platform.settings import ServiceSettings


class WindowingSettings(ServiceSettings):
    """What windowing needs beside Kafka and PostgreSQL."""

    grace_seconds: int = Field(
        int(DEFAULT_GRACE.total_seconds()),
        ge=0,
        le=86_400,
        description="How long after its end a window waits for readings, by their arrival.",
    )
    buckets: int = Field(
        8,
        ge=1,
        le=256,
        description="Shares of the meters that close on their own; fixed once windows have been closed.",
    )
    look_every_seconds: float = Field(
        0.5, gt=0, le=30, description="Look for due windows at least so often, whatever is heard from ingest."
    )
    repeat_after_seconds: float = Field(
        5.0, gt=0, le=600, description="Announce due windows again when nobody has closed any of them for so long."
    )
    statement_readings: int = Field(
        200_000, ge=1, le=10_000_000, description="About how many readings one statement closes at most, when behind."
    )
    statement_days: int = Field(31, ge=1, le=366, description="How many days one statement spans at most, when behind.")

    closing_connections: int = Field(
        2, ge=1, le=8, description="So many connections close the windows of many meters side by side."
    )
    register_largest_share_per_interval: Decimal = Field(
        DEFAULT_LARGEST_SHARE,
        gt=0,
        le=Decimal("0.5"),
        description="A register that falls has rolled over if that means at most so much of its modulus per interval; "
        "never more than half of it in all. Else it was reset.",
    )

    measurement_days_1m: int = Field(
        92, ge=0, le=36_500, description="Closed windows of 1 minute are kept for so many days; 0: for ever."
    )
    measurement_days_5m: int = Field(184, ge=0, le=36_500, description="As measurement_days_1m, for 5 minutes.")
    measurement_days_15m: int = Field(0, ge=0, le=36_500, description="As measurement_days_1m, for 15 minutes.")
    measurement_days_60m: int = Field(0, ge=0, le=36_500, description="As measurement_days_1m, for 60 minutes.")

    @property
    def keep(self) -> dict[int, timedelta | None]:
        """For how long closed windows are kept, by resolution; None: for ever."""
        days = (
            self.measurement_days_1m,
            self.measurement_days_5m,
            self.measurement_days_15m,
            self.measurement_days_60m,
        )
        return {
            resolution: timedelta(days=count) if count else None
            for resolution, count in zip(RESOLUTIONS_MINUTES, days, strict=True)
        }

    @property
    def grace(self) -> timedelta:
        """`grace_seconds` as a duration."""
        return timedelta(seconds=self.grace_seconds)
