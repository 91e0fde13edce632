"""Settings from the environment (METERPOST_…), checked at once and together.

Every service has a settings class of its own that extends `ServiceSettings`; `load` reports all mistakes in one go.
"""

from typing import Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.platform.errors import UserError

ENVIRONMENT_PREFIX = "METERPOST_"


class KafkaSettings(BaseSettings):
    """Where Kafka is."""

    model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX, extra="ignore", frozen=True)

    kafka_bootstrap_servers: str = Field(
        "127.0.0.1:9092", min_length=1, description="Kafka brokers: host:port, comma-separated."
    )
    topic_prefix: str = Field(
        "", pattern=r"^[A-Za-z0-9._-]*$", description="Put before every topic and consumer group, to share a cluster."
    )

    def topic(self, name: str) -> str:
        """Return the name that a topic of schemas/topics.yaml has on this cluster."""
        return self.topic_prefix + name

    def group(self, name: str) -> str:
        """Return the name that a consumer group has on this cluster."""
        return f"{self.topic_prefix}meterpost-{name}"


class DatabaseSettings(BaseSettings):
    """Where PostgreSQL is."""

    model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX, extra="ignore", frozen=True)

    database_url: SecretStr = Field(
        SecretStr("postgresql://meterpost@127.0.0.1:5432/meterpost"), description="PostgreSQL, as a URL."
    )

    @field_validator("database_url")
    @classmethod
    def _is_postgresql(cls, url: SecretStr) -> SecretStr:
        form = "must have the form postgresql://user:password@host:port/database, special characters percent-encoded"
        try:
            parts = urlsplit(url.get_secret_value())
            is_sound = parts.scheme in {"postgresql", "postgres"} and bool(parts.hostname or parts.query)
            is_sound = is_sound and (parts.port is None or parts.port > 0) and not parts.fragment
        except ValueError:
            is_sound = False
        if not is_sound:
            raise ValueError(form)
        return url


class ServiceSettings(KafkaSettings, DatabaseSettings):
    """What every long-running service needs."""

    instance: str = Field("", description="This process's name in tables and logs; default: host name and process id.")
    health_host: str = Field("127.0.0.1", description="Where /healthz, /readyz and /metrics listen.")
    health_port: int = Field(0, ge=0, le=65535, description="Port of /healthz; 0 takes a free one.")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    shutdown_deadline_seconds: int = Field(
        8,
        ge=1,
        le=600,
        description="A service that is told to stop is gone after this; below the pod's grace period.",
    )


SettingsT = TypeVar("SettingsT", bound=BaseSettings)


def load(kind: type[SettingsT]) -> SettingsT:
    """Read settings from the environment.

    Raises UserError that names every variable that is wrong, never its value (it may be a secret).
    """
    try:
        return kind()
    except ValidationError as error:
        problems = [
            f"  {ENVIRONMENT_PREFIX}{'_'.join(map(str, item['loc'])).upper()}: {item['msg']}"
            for item in error.errors(include_url=False, include_input=False)
        ]
        raise UserError("\n".join(["these settings are wrong:", *problems])) from None
