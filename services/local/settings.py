"""Settings of `make run`."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.platform.settings import ENVIRONMENT_PREFIX

REPOSITORY = Path(__file__).resolve().parents[2]


class LocalSettings(BaseSettings):
    """What a person may choose; an empty value counts as not given."""

    model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX, extra="ignore", frozen=True, env_ignore_empty=True)

    data_folder: Path = Field(REPOSITORY / ".local", description="Where everything is kept; one instance each.")
    meters: int = Field(500, ge=5, le=100_000, description="Meters of the demo organization, set at the first start.")
    fleet: bool = Field(True, description="Whether a simulated fleet sends readings.")
    replay_hours: int = Field(2, ge=0, le=48, description="How much of the past the fleet replays at the first start.")
    kafka_bootstrap_servers: str | None = Field(None, description="An existing Kafka instead of the embedded one.")
    database_url: SecretStr | None = Field(None, description="An existing PostgreSQL instead of the embedded one.")
    allowed_destinations: str = Field(
        "127.0.0.0/8, ::1", description="Networks that jobs may send to beside public ones; the receivers are here."
    )
    topic_prefix: str = Field("", pattern=r"^[A-Za-z0-9._-]*$", description="To share an existing Kafka.")
