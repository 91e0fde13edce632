"""Where the servers are: told by an option, by the environment, or by a demo that is running."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from services.platform.errors import UserError
from services.platform.kafka_access import KafkaAccess

if TYPE_CHECKING:
    from services.platform.hosted import HostedAddress, HostedFolder
    from services.platform.objects import ObjectStore
    from services.platform.secrets import Vault

DATA_FOLDER_VARIABLE = "METERPOST_DATA_FOLDER"
DATABASE_VARIABLE = "METERPOST_DATABASE_URL"
KAFKA_VARIABLE = "METERPOST_KAFKA_BOOTSTRAP_SERVERS"
TOPIC_PREFIX_VARIABLE = "METERPOST_TOPIC_PREFIX"
ALLOWED_DESTINATIONS_VARIABLE = "METERPOST_ALLOWED_DESTINATIONS"
ENDPOINTS = "endpoints.json"
DEFAULT_DATA_FOLDER = ".local"

_REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Place:
    """An address, and who told it (for error messages)."""

    address: str
    told_by: str
    is_of_a_demo: bool = False


@dataclass(frozen=True, slots=True)
class Receiver:
    """The demo's own receiver."""

    url: str
    ca_file: Path


@dataclass(frozen=True, slots=True)
class Places:
    """The options of a command, resolved only where they are needed."""

    kafka_option: str | None = None
    database_option: str | None = None
    data_folder_option: Path | None = None

    @property
    def topic_prefix(self) -> str:
        """What stands before every topic's name on this cluster."""
        return os.environ.get(TOPIC_PREFIX_VARIABLE, "")

    def kafka(self) -> Place:
        """Return the brokers, host:port and comma-separated. Raises UserError where nobody tells them."""
        return self._find("Kafka", "--kafka", self.kafka_option, KAFKA_VARIABLE, "kafka")

    def kafka_access(self) -> KafkaAccess:
        """Return how Kafka is reached: as the environment says, and in plaintext where a demo says so. Blocks.

        Raises UserError.
        """
        place = self.kafka()
        if place.is_of_a_demo and self._demo_protocol() == "PLAINTEXT":
            return KafkaAccess(place.address)
        from services.platform.settings import KafkaSettings, load  # noqa: PLC0415 - many commands need no Kafka

        return load(KafkaSettings, kafka_bootstrap_servers=place.address).kafka_access()

    def _demo_protocol(self) -> str:
        file = self._endpoints_file()
        return str(_read(file).get("kafka_security_protocol", "")) if file else ""

    def database(self) -> Place:
        """Return the database's URL. Raises UserError where nobody tells it."""
        place = self._find("the database", "--database", self.database_option, DATABASE_VARIABLE, "database")
        if not place.address.startswith(("postgresql://", "postgres://")):
            raise UserError(f"the database's URL from {place.told_by} must begin with postgresql://")
        return place

    def vault(self) -> "Vault":
        """Return the keys that seal secrets: those of the environment, or of a demo. Without any it seals nothing."""
        from services.platform.secret_settings import SecretSettings  # noqa: PLC0415 - most commands need no key
        from services.platform.settings import load  # noqa: PLC0415 - as above

        settings = load(SecretSettings)
        if settings.secret_keys is None and settings.secret_keys_file is None:
            file = self._endpoints_file()
            told = _read(file).get("secret_keys_file") if file else None
            if isinstance(told, str):
                settings = settings.model_copy(update={"secret_keys_file": Path(told)})
        return settings.vault()

    def export_store(self) -> "ObjectStore":
        """Open the store of exported files: that of the environment, or of a demo. Blocks. Raises UserError."""
        from services.platform.export_store import (  # noqa: PLC0415 - most commands need no exported file
            EXPORT_STORE_VARIABLE,
            ExportStoreSettings,
        )
        from services.platform.settings import load  # noqa: PLC0415 - as above

        settings = load(ExportStoreSettings)
        if not settings.export_store_url:
            file = self._endpoints_file()
            told = _read(file).get("export_store_url") if file else None
            if not isinstance(told, str) or not told:
                raise UserError(
                    f"where exported files are kept is not known: set {EXPORT_STORE_VARIABLE} as the worker has it, "
                    "such as file:///var/lib/meterpost/exports or s3://bucket/prefix"
                )
            settings = settings.model_copy(update={"export_store_url": told})
        return settings.store()

    def demo_receiver(self) -> Receiver | None:
        """Return the HTTPS receiver of the demo that is running, if one is."""
        file = self._endpoints_file()
        https = _read(file).get("receivers", {}).get("https") if file else None
        if not https:
            return None
        ca_file = Path(https["ca_file"])
        return Receiver(https["url"], ca_file if ca_file.is_absolute() or file is None else file.parent / ca_file)

    def hosted_folder(self) -> "HostedFolder | None":
        """Return where the hosted folder is, as delivery is told, or that of a demo that is running; None: unknown."""
        from services.platform.hosted import HostedFolder, HostedFolderSettings  # noqa: PLC0415 - for few commands
        from services.platform.settings import load  # noqa: PLC0415 - as above

        told = load(HostedFolderSettings).hosted_folder()
        file = self._endpoints_file() if told is None else None
        hosted = _read(file).get("hosted_folder") if file else None
        if not isinstance(hosted, dict):
            return told
        return HostedFolder(
            str(hosted["host"]), int(hosted["port"]), Path(hosted["key_file"]), Path(hosted["host_keys_file"])
        )

    def hosted_address(self) -> "HostedAddress | None":
        """Return where customers reach the hosted folder, as the API is told, or else as delivery is; None: unknown."""
        from services.platform.hosted import HostedAddress, HostedAddressSettings  # noqa: PLC0415 - for few commands
        from services.platform.settings import load  # noqa: PLC0415 - as above

        told, folder = load(HostedAddressSettings).hosted_address(), self.hosted_folder()
        return told if told or not folder else HostedAddress(folder.host, folder.port, folder.host_keys_file)

    def allowed_destinations(self) -> str:
        """Return the private networks that connections to customers may lead to, as delivery is told them."""
        told = os.environ.get(ALLOWED_DESTINATIONS_VARIABLE)
        if told is not None:
            return told
        file = self._endpoints_file()
        return str(_read(file).get("allowed_destinations", "")) if file else ""

    def _find(self, what: str, option_name: str, option: str | None, variable: str, key: str) -> Place:
        if option:
            return Place(option, option_name)
        if os.environ.get(variable):
            return Place(os.environ[variable], variable)
        file = self._endpoints_file()
        content = _read(file) if file else {}
        found = content.get(key)
        if not isinstance(found, str):
            where = f"{file} does not name it" if file else f"no {DEFAULT_DATA_FOLDER}/{ENDPOINTS} was found"
            raise UserError(
                f"where {what} is, is not known ({where}): start the demo with `make run`, "
                f"or give {option_name}, or set {variable}"
            )
        supervisor_pid = content.get("supervisor_pid")
        if isinstance(supervisor_pid, int) and not _is_running(supervisor_pid):
            return Place(
                found, f"{file}, but the demo that wrote it does not seem to run any more: start `make run`", True
            )
        return Place(found, f"{file}, which a demo wrote: does `make run` still run?", True)

    def _endpoints_file(self) -> Path | None:
        told = self.data_folder_option or os.environ.get(DATA_FOLDER_VARIABLE)
        if told:
            for file in (Path(told) / ENDPOINTS, Path(told) / DEFAULT_DATA_FOLDER / ENDPOINTS):
                if file.is_file():
                    return file
            name = "--data-folder" if self.data_folder_option else DATA_FOLDER_VARIABLE
            raise UserError(f"there is no {ENDPOINTS} in {told}, the folder from {name}: has the demo written it yet?")
        here = Path.cwd()
        for folder in (here, *here.parents, _REPOSITORY):
            file = folder / DEFAULT_DATA_FOLDER / ENDPOINTS
            if file.is_file():
                return file
        return None


def without_password(url: str) -> str:
    """Return host, port and database of a URL, fit for a message."""
    try:
        parts = urlsplit(url)
        port = parts.port or 5432
    except ValueError:
        return "an address that cannot be understood"
    return f"{parts.hostname}:{port}{parts.path}"


def _is_running(pid: int) -> bool:
    """Tell whether there is a process of this id; it may be another's by now, so yes is no proof."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    return True


def _read(file: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{file} does not hold the addresses of a demo")
    return found
