"""Settings of delivery."""

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from services.delivery.mailing import SmtpSettings
from services.platform.errors import UserError
from services.platform.hosted import HostedFolderSettings
from services.platform.outbound import Outbound, parse_networks
from services.platform.secret_settings import SecretSettings
from services.platform.settings import ENVIRONMENT_PREFIX, ServiceSettings


class DeliverySettings(ServiceSettings, SecretSettings, SmtpSettings, HostedFolderSettings):
    """What delivery needs beside Kafka and PostgreSQL."""

    model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX, extra="ignore", frozen=True, env_ignore_empty=True)

    concurrency: int = Field(32, ge=1, le=1_000, description="Jobs that one process works on at a time.")
    destination_concurrency: int = Field(
        4,
        ge=1,
        le=1_000,
        description="Of these, how many of one organization at most send to one host and port; of all, twice as many.",
    )
    database_connections: int = Field(12, ge=3, le=200, description="Connections to PostgreSQL that a process opens.")
    look_seconds: float = Field(1.0, gt=0, le=60, description="The tables are looked into at least so often.")
    slice_seconds: float = Field(
        5.0, gt=0, le=300, description="How long a job is worked on before others have a turn."
    )
    lease_seconds: float = Field(
        30.0, ge=1, le=3_600, description="A job whose process died is taken over after this; renewed while it lives."
    )
    retry_window_hours: float = Field(
        72.0, gt=0, le=24 * 365, description="A run that its destination took nothing of for so long has failed."
    )
    failed_runs: int = Field(5, ge=1, le=1_000, description="So many failed runs in a row pause the job.")
    failing_minutes: float = Field(
        15.0, ge=0, le=24 * 60 * 7, description="An organization is told of a job that has been failing for so long."
    )
    planned_runs: int = Field(100, ge=1, le=10_000, description="Unfinished runs that a job plans ahead at most.")
    connect_seconds: float = Field(10.0, gt=0, le=300, description="A destination must have accepted us by then.")
    answer_seconds: float = Field(30.0, gt=0, le=3_600, description="An attempt is cut off after this, in total.")
    first_retry_seconds: float = Field(1.0, gt=0, le=3_600, description="Wait after the first failed attempt.")
    longest_retry_seconds: float = Field(3_600.0, gt=0, le=7 * 86_400, description="Longest wait between two attempts.")
    allowed_destinations: str = Field(
        "",
        description="Private or special networks that jobs may send to, comma-separated such as 10.0.0.0/8; public "
        "addresses always pass.",
    )

    @field_validator("allowed_destinations")
    @classmethod
    def _are_networks(cls, text: str) -> str:
        try:
            parse_networks(text)
        except UserError as error:
            raise ValueError(str(error)) from None
        return text

    def outbound(self) -> Outbound:
        """Return what connections to customers are made through."""
        return Outbound(parse_networks(self.allowed_destinations))
