"""Settings from the environment (METERPOST_…), checked at once and together.

Every service has a settings class of its own that extends `ServiceSettings`; `load` reports all mistakes in one go.
"""

import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.platform.errors import UserError
from services.platform.kafka_access import (
    KafkaAccess,
    SaslLogin,
    SaslMechanism,
    SecurityProtocol,
    problems_of,
    read_password,
    tls_context,
)

ENVIRONMENT_PREFIX = "METERPOST_"


class KafkaSettings(BaseSettings):
    """Where Kafka is, and how to talk to it."""

    model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX, extra="ignore", frozen=True)

    uses_kafka: ClassVar[bool] = True
    """False: the process takes the variables, which all have in common, and never opens a connection."""

    kafka_bootstrap_servers: str = Field(
        "127.0.0.1:9092", min_length=1, description="Kafka brokers: host:port, comma-separated."
    )
    kafka_security_protocol: SecurityProtocol = Field(
        "PLAINTEXT", description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL, as the brokers' listener has it."
    )
    kafka_sasl_mechanism: SaslMechanism | None = Field(None, description="PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.")
    kafka_sasl_username: str | None = Field(None, description="Who logs in.")
    kafka_sasl_password: SecretStr | None = Field(None, description="The password; or a file with it:")
    kafka_sasl_password_file: Path | None = Field(None, description="A file that holds the password alone.")
    kafka_ssl_ca_file: Path | None = Field(
        None, description="Authorities that the brokers' certificates are from, PEM; default: the machine's own."
    )
    kafka_ssl_certificate_file: Path | None = Field(None, description="Our certificate and its chain, PEM, if wanted.")
    kafka_ssl_key_file: Path | None = Field(None, description="Its key, PEM, without a passphrase.")
    topic_prefix: str = Field(
        "", pattern=r"^[A-Za-z0-9._-]*$", description="Put before every topic and consumer group, to share a cluster."
    )

    @field_validator("kafka_security_protocol", mode="before")
    @classmethod
    def _protocol(cls, told: Any) -> Any:
        return told.strip().upper() or "PLAINTEXT" if isinstance(told, str) else told

    @field_validator(
        "kafka_sasl_mechanism",
        "kafka_sasl_username",
        "kafka_sasl_password",
        "kafka_sasl_password_file",
        "kafka_ssl_ca_file",
        "kafka_ssl_certificate_file",
        "kafka_ssl_key_file",
        mode="before",
    )
    @classmethod
    def _empty_is_not_given(cls, told: Any) -> Any:
        return None if told == "" else told

    @model_validator(mode="after")
    def _kafka_is_told_completely(self) -> "KafkaSettings":
        given = {
            f"{ENVIRONMENT_PREFIX}{name}".upper()
            for name in KafkaSettings.model_fields
            if name.startswith(("kafka_sasl", "kafka_ssl")) and getattr(self, name) is not None
        }
        problems = problems_of(self.kafka_security_protocol, frozenset(given)) if self.uses_kafka else []
        if problems:
            raise ValueError("\n  ".join(problems))
        return self

    def kafka_access(self) -> KafkaAccess:
        """Return how Kafka is reached, from the files as they are now. Blocks for a moment. Raises UserError."""
        return KafkaAccess(self.kafka_bootstrap_servers, self._login(), self._tls())

    def _login(self) -> SaslLogin | None:
        mechanism, username = self.kafka_sasl_mechanism, self.kafka_sasl_username
        if not self.kafka_security_protocol.startswith("SASL_") or mechanism is None or username is None:
            return None
        if self.kafka_sasl_password_file is not None:
            return SaslLogin(mechanism, username, read_password(self.kafka_sasl_password_file))
        password = self.kafka_sasl_password
        return SaslLogin(mechanism, username, "" if password is None else password.get_secret_value())

    def _tls(self) -> ssl.SSLContext | None:
        if not self.kafka_security_protocol.endswith("SSL"):
            return None
        return tls_context(self.kafka_ssl_ca_file, self.kafka_ssl_certificate_file, self.kafka_ssl_key_file)

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
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least that is logged: debug, info, warning or error."
    )
    log_format: Literal["json", "console"] = Field("json", description="json: one event a line; console: for people.")
    shutdown_deadline_seconds: int = Field(
        8,
        ge=1,
        le=600,
        description="A service that is told to stop is gone after this; below the pod's grace period.",
    )


SettingsT = TypeVar("SettingsT", bound=BaseSettings)


def load(kind: type[SettingsT], **told: Any) -> SettingsT:
    """Read settings from the environment; what is told here goes before it. Blocks for a moment: named files are read.

    Raises UserError that names every variable that is wrong, never its value (it may be a secret).
    """
    try:
        settings = kind(**told)
    except ValidationError as error:
        problems = [_sentence(item) for item in error.errors(include_url=False, include_input=False)]
        raise UserError("\n".join(["these settings are wrong:", *problems])) from None
    if isinstance(settings, KafkaSettings) and settings.uses_kafka:
        try:
            settings.kafka_access()
        except UserError as error:
            raise UserError(f"these settings are wrong:\n  {error}") from None
    return settings


def described(kind: type[BaseSettings]) -> Iterator[tuple[str, str, str]]:
    """Yield every setting that is of use, for people: its variable, what holds without it, and what it means."""
    unused = KafkaSettings.model_fields if issubclass(kind, KafkaSettings) and not kind.uses_kafka else {}
    for name, told in kind.model_fields.items():
        if name in unused:
            continue
        default = told.get_default(call_default_factory=False)
        if isinstance(default, SecretStr):
            default = default.get_secret_value()  # ours, and no secret: what is set is not looked at
        shown = "required" if told.is_required() else "not set" if default in {None, ""} else str(default)
        yield f"{ENVIRONMENT_PREFIX}{name}".upper(), shown, told.description or ""


def _sentence(item: Mapping[str, Any]) -> str:
    """Return a problem with the variable's name before it; what concerns several names them itself."""
    if not item["loc"]:
        return "  " + str(item["msg"]).removeprefix("Value error, ")
    return f"  {ENVIRONMENT_PREFIX}{'_'.join(map(str, item['loc'])).upper()}: {item['msg']}"
