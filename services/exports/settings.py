"""Settings of the manual exports' worker."""

from pydantic import Field

from services.platform.export_store import ExportStoreSettings
from services.platform.settings import ServiceSettings


class ExportsSettings(ServiceSettings, ExportStoreSettings):
    """What the worker needs beside PostgreSQL; it talks to no broker."""

    uses_kafka = False

    export_kept_hours: float = Field(48.0, gt=0, le=24 * 366, description="How long a finished file is kept.")
    export_concurrency: int = Field(1, ge=1, le=8, description="Exports that one process works on at a time.")
    export_slice_seconds: float = Field(
        20.0, gt=0, le=3_600, description="How long an export is worked on before others have a turn."
    )
    export_lease_seconds: float = Field(
        60.0, ge=1, le=3_600, description="An export whose process died is taken over after this."
    )
    export_look_seconds: float = Field(1.0, gt=0, le=60, description="How often new exports are looked for.")
    export_sweep_seconds: float = Field(
        5.0, gt=0, le=3_600, description="How often files and chunks that are kept no longer are removed."
    )
    export_step_seconds: float = Field(
        1.0,
        ge=0,
        le=30,
        description="So long a transaction begins further chunks while nobody else uses the database; else it is one.",
    )
    export_rest_share: float = Field(
        1.0,
        ge=0,
        le=20,
        description="While others use the database, an export rests after each statement for so many times as long as "
        "it took.",
    )
    export_nice: int = Field(10, ge=0, le=19, description="The process gives way to others by so much (nice).")
    export_tries: int = Field(
        20, ge=1, le=1_000, description="So many attempts in a row that find a server away end an export."
    )
