"""`endpoints.json`: where everything is, for programs. Written when everything is up, removed at the end.

A supervisor that is killed leaves it behind; then no process has the id `supervisor_pid` any more.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE_NAME = "endpoints.json"


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Addresses of one instance."""

    kafka: str
    database: str = field(repr=False)
    kafka_security_protocol: str = "PLAINTEXT"
    """With another one the environment tells the login and the certificates: they are in no file of ours."""
    receiver_url: str = ""
    receiver_ca_file: Path = Path()
    receiver_folder: Path = Path()
    signing_secret_file: Path = Path()
    """Holds what the parts to the HTTPS receiver are signed by."""
    health: dict[str, str] = field(default_factory=dict)
    topic_prefix: str = ""
    allowed_destinations: str = ""
    file_receivers: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of SFTP and FTPS: how to reach them, and where what arrives there lies."""
    secret_keys_file: Path | None = None
    hosted_folder: dict[str, Any] = field(default_factory=dict)
    api_url: str = ""
    api_client_file: Path = Path()
    """Id and secret of a client of the demo organization, for its owner only."""
    export_store_url: str = ""

    def content(self) -> dict[str, Any]:
        """Return what the file holds."""
        return {
            "supervisor_pid": os.getpid(),
            "kafka": self.kafka,
            "kafka_security_protocol": self.kafka_security_protocol,
            "topic_prefix": self.topic_prefix,
            "api": {"url": self.api_url, "client_file": str(self.api_client_file)},
            "database": self.database,
            "secret_keys_file": None if self.secret_keys_file is None else str(self.secret_keys_file),
            "export_store_url": self.export_store_url,
            "receivers": {
                "https": {
                    "url": self.receiver_url,
                    "ca_file": str(self.receiver_ca_file),
                    "folder": str(self.receiver_folder),
                    "signing_secret_file": str(self.signing_secret_file),
                },
                **self.file_receivers,
            },
            "hosted_folder": self.hosted_folder,
            "allowed_destinations": self.allowed_destinations,
            "health": self.health,
        }

    def write(self, data_folder: Path) -> None:
        """Write the file at once; only its owner may read it, because it holds the database's password."""
        partial = data_folder / f"{FILE_NAME}.partial"
        partial.touch(mode=0o600)
        partial.write_text(json.dumps(self.content(), indent=2) + "\n", encoding="utf-8")
        partial.replace(data_folder / FILE_NAME)


def remove_endpoints(data_folder: Path) -> None:
    """Remove the file of an instance that is not up any more."""
    (data_folder / FILE_NAME).unlink(missing_ok=True)
