"""Settings of the hosted folder."""

from pathlib import Path

from pydantic import Field

from services.platform.settings import ServiceSettings


class DropboxSettings(ServiceSettings):
    """What the hosted folder needs beside PostgreSQL."""

    uses_kafka = False

    dropbox_folder: Path = Field(
        Path("dropbox"), description="Where files and host keys are kept; one process at a time serves it."
    )
    dropbox_listen_host: str = Field("127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0: all.")
    dropbox_listen_port: int = Field(2022, ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")
    dropbox_depositor_keys_file: Path | None = Field(
        None, description="Public keys of delivery, one a line as in authorized_keys; without it nothing can be left."
    )
    dropbox_keep_days: float = Field(30, gt=0, le=3_650, description="Files are removed after this.")
    dropbox_record_days: float = Field(
        365, gt=0, le=3_650, description="What became of a file that is gone is known for so long."
    )
    dropbox_quota_bytes: int = Field(
        10_000_000_000, ge=1, description="Bytes that the files of one organization may take."
    )
    dropbox_quota_files: int = Field(100_000, ge=1, description="Files that one organization may have.")
    dropbox_prune_seconds: float = Field(60, gt=0, le=86_400, description="Old files are looked for so often.")
    dropbox_look_seconds: float = Field(
        5, gt=0, le=60, description="Idle sessions and accounts that were disabled are looked for so often."
    )
    dropbox_login_seconds: float = Field(30, gt=0, le=600, description="A connection must be logged in by then.")
    dropbox_idle_seconds: float = Field(600, gt=0, le=86_400, description="A session that asks nothing is ended after.")
    dropbox_failure_delay_seconds: float = Field(
        1, ge=0, le=60, description="A refused password is answered after this, the next ones later and later."
    )
    dropbox_failures: int = Field(
        10, ge=1, le=10_000, description="Refused passwords of an address or an account, after which more are refused."
    )
    dropbox_failure_minutes: float = Field(15, gt=0, le=1_440, description="Refused passwords are counted for so long.")
    dropbox_connections: int = Field(300, ge=1, le=10_000, description="Connections at a time.")
    dropbox_connections_per_account: int = Field(10, ge=1, le=10_000, description="Of these, for one account.")
    dropbox_logins_per_address: int = Field(
        20, ge=1, le=10_000, description="Connections of one address at a time that are not logged in yet."
    )
