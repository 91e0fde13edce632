"""Settings of the HTTP API."""

from datetime import timedelta

from pydantic import Field

from services.platform.export_store import ExportStoreSettings
from services.platform.hosted import HostedAddressSettings
from services.platform.secret_settings import SecretSettings
from services.platform.settings import ServiceSettings


class ApiSettings(ServiceSettings, SecretSettings, ExportStoreSettings, HostedAddressSettings):
    """What the API needs beside PostgreSQL. It speaks plain HTTP: TLS is ended before it."""

    uses_kafka = False

    api_host: str = Field("127.0.0.1", description="Where the API listens.")
    api_port: int = Field(8081, ge=0, le=65535, description="Port of the API; 0 takes a free one.")
    api_public_url: str = Field(
        "http://127.0.0.1:8081",
        pattern=r"^https?://[^\s/?#]+(/[^\s?#]*)?$",
        description="The address that callers use; tokens are issued in its name.",
    )
    api_connections: int = Field(10, ge=2, le=200, description="Connections to PostgreSQL that a process opens.")
    statement_seconds: float = Field(20.0, gt=0, le=300, description="A statement that takes longer is ended.")
    token_minutes: int = Field(15, ge=1, le=1_440, description="How long a token is good.")
    session_hours: int = Field(12, ge=1, le=720, description="How long a person stays logged in.")
    signing_key_days: float = Field(30.0, gt=0, le=366, description="A new key signs tokens after so long.")
    rate_per_second: float = Field(
        50.0, gt=0, le=100_000, description="Requests of one caller a second, in the long run."
    )
    rate_burst: int = Field(200, ge=1, le=100_000, description="So many requests of one caller may come at once.")
    login_per_minute: float = Field(
        30.0, gt=0, le=100_000, description="Attempts to get a token or to log in, by address and name."
    )
    body_kilobytes: int = Field(256, ge=1, le=100_000, description="The longest body of a request.")
    import_kilobytes: int = Field(20_480, ge=1, le=1_000_000, description="The longest file of an import.")
    body_seconds: float = Field(30.0, gt=0, le=600, description="A body that takes longer to arrive is refused.")
    idempotency_hours: int = Field(24, ge=1, le=720, description="How long an Idempotency-Key is remembered.")

    @property
    def token_lifetime(self) -> timedelta:
        """`token_minutes` as a duration."""
        return timedelta(minutes=self.token_minutes)
