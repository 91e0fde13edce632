"""What a job says of the server that takes its files: SFTP and FTPS settings, opened, from the stored form and checked.

Opened: passwords and private keys stand in the clear beside the rest (see services.core.transport_secrets). Every
mistake is a ValueError with a sentence for people, which never repeats a secret.
"""

import base64
import binascii
import hashlib
import posixpath
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from services.core.csv_records import LINE_ENDS, csv_format
from services.core.parts import PartFormat

SFTP_PORT = 22
EXPLICIT_PORT = 21
IMPLICIT_PORT = 990
MAX_HOST_KEYS = 10
MAX_TEXT = 1_000

HOST_KEY_TYPES = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
)

HOSTED = "hosted"
"""A job's setting that is true where it leaves its files in the folder that we host; then it names no server."""
HOSTED_USER = "meterpost-delivery"
"""The user name by which delivery logs in to the hosted folder; no customer's account can have it."""
_HOSTED_SETTINGS = frozenset({HOSTED, "line_end", "defuse_formulas"})

TlsMode = Literal["explicit", "implicit"]


@dataclass(frozen=True, slots=True)
class FileServer:
    """Where files go, as whom, and how they look."""

    host: str
    port: int
    user: str
    directory: str
    """On the server; empty: where the account arrives."""
    line_end: str
    defuse_formulas: bool

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{self.host}:{self.port}"

    @property
    def part_format(self) -> PartFormat:
        """How parts look."""
        return csv_format(LINE_ENDS[self.line_end], defuse=self.defuse_formulas)

    def path(self, name: str) -> str:
        """Return where a file of this name lies on the server."""
        return posixpath.join(self.directory, name)


@dataclass(frozen=True, slots=True)
class SftpServer(FileServer):
    """A server that takes files over SFTP; either `password` or `private_key` is given."""

    host_keys: tuple[str, ...]
    """The approved keys, `ssh-ed25519 AAAA…`; without one nothing is sent."""
    password: str | None = field(repr=False)
    private_key: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class FtpsServer(FileServer):
    """A server that takes files over FTPS."""

    tls: TlsMode
    ca_pem: str | None
    """Authorities to trust instead of the system's."""
    password: str = field(repr=False)


def sftp_server(settings: Mapping[str, Any]) -> SftpServer:
    """Return the server that a job's settings name. Raises ValueError."""
    found = _Settings(settings)
    secrets = found.secrets("password", "private_key")
    host_keys = tuple(_host_key(line) for line in found.texts("host_keys"))
    if len(host_keys) > MAX_HOST_KEYS:
        raise ValueError(f"{len(host_keys)} host keys are approved, {MAX_HOST_KEYS} at most may be")
    if not secrets:
        raise ValueError("the job needs a password or a key to log in with")
    return SftpServer(
        **found.common(SFTP_PORT),
        host_keys=host_keys,
        password=secrets.get("password"),
        private_key=secrets.get("private_key"),
    )


def check_hosted(settings: Mapping[str, Any]) -> None:
    """Raise ValueError unless these are sound settings of a job that goes to the hosted folder."""
    if settings.get(HOSTED) is not True:
        raise ValueError(f'"{HOSTED}" must be true, or left out')
    if foreign := sorted(settings.keys() - _HOSTED_SETTINGS):
        raise ValueError(f'"{foreign[0]}" has no use with the hosted folder')
    file_format(settings)


def hosted_server(
    settings: Mapping[str, Any],
    organization_id: int,
    *,
    host: str,
    port: int,
    private_key: str,
    host_keys: Sequence[str],
) -> SftpServer:
    """Return the hosted folder as the server of an organization's job. Raises ValueError."""
    check_hosted(settings)
    return sftp_server(
        {
            **settings,
            "host": host,
            "port": port,
            "user": HOSTED_USER,
            "directory": f"/{organization_id}",
            "host_keys": list(host_keys),
            "private_key": private_key,
        }
    )


def ftps_server(settings: Mapping[str, Any]) -> FtpsServer:
    """Return the server that a job's settings name. Raises ValueError."""
    found = _Settings(settings)
    tls = found.choice("tls", ("explicit", "implicit"), "explicit")
    password = found.secrets("password").get("password")
    if password is None:
        raise ValueError("the job needs a password to log in with")
    if any(character in password for character in "\r\n"):
        raise ValueError("the password must not hold line ends")
    return FtpsServer(
        **found.common(EXPLICIT_PORT if tls == "explicit" else IMPLICIT_PORT),
        tls="explicit" if tls == "explicit" else "implicit",
        ca_pem=found.optional_text("ca_pem"),
        password=password,
    )


def file_format(settings: Mapping[str, Any]) -> PartFormat:
    """Return how a job's parts look, whatever else its settings say. Raises ValueError."""
    line_end, defuse = file_text_options(settings)
    return csv_format(line_end, defuse=defuse)


def file_text_options(settings: Mapping[str, Any]) -> tuple[str, bool]:
    """Return the line end of a job's files, and whether formulas in them are defused. Raises ValueError."""
    found = _Settings(settings)
    return LINE_ENDS[found.line_end()], found.flag("defuse_formulas", default=True)


def fingerprint(host_key: str) -> str:
    """Return `SHA256:…` of a key given as `ssh-ed25519 AAAA…`, as `ssh-keygen -l` shows it."""
    blob = base64.b64decode(host_key.split()[1])
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode("ascii").rstrip("=")


def parse_host_key(line: str) -> str:
    """Return the key of a line such as `ssh-ed25519 AAAA… comment`, or of a known_hosts line. Raises ValueError."""
    words = line.split()
    kinds = [place for place, word in enumerate(words[:3]) if word in HOST_KEY_TYPES]
    if not kinds or len(words) < kinds[0] + 2:
        raise ValueError(
            f"a host key is a line such as `ssh-ed25519 AAAA…` (types: {', '.join(HOST_KEY_TYPES)}); this is none"
        )
    return _host_key(" ".join(words[kinds[0] : kinds[0] + 2]))


def _host_key(text: str) -> str:
    kind, _, encoded = text.partition(" ")
    try:
        blob = base64.b64decode(encoded, validate=True)
        [length] = struct.unpack_from(">I", blob)
    except (binascii.Error, struct.error, ValueError):
        raise ValueError(f"a host key that begins with {kind[:20]!r} is damaged: copy the whole line") from None
    if kind not in HOST_KEY_TYPES or blob[4 : 4 + length] != kind.encode("ascii") or len(blob) <= 4 + length:
        raise ValueError(f"a host key that begins with {kind[:20]!r} is damaged, or of a type that is not supported")
    return text


class _Settings:
    """Reads the stored form, setting by setting."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings

    def common(self, default_port: int) -> dict[str, Any]:
        port = self._settings.get("port", default_port)
        if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65_535:
            raise ValueError('"port" must be a number from 1 to 65535')
        return {
            "host": self._host(),
            "port": port,
            "user": self.text("user"),
            "directory": self._directory(),
            "line_end": self.line_end(),
            "defuse_formulas": self.flag("defuse_formulas", default=True),
        }

    def line_end(self) -> str:
        return self.choice("line_end", tuple(LINE_ENDS), "lf")

    def text(self, name: str) -> str:
        value = self.optional_text(name)
        if not value:
            raise ValueError(f'"{name}" must be given')
        _check_line(name, value)
        return value

    def optional_text(self, name: str) -> str | None:
        value = self._settings.get(name)
        if value is not None and not isinstance(value, str):
            raise ValueError(f'"{name}" must be a text')
        return value

    def texts(self, name: str) -> Sequence[str]:
        values = self._settings.get(name, ())
        if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
            raise ValueError(f'"{name}" must be a list of texts')
        return values

    def flag(self, name: str, *, default: bool) -> bool:
        value = self._settings.get(name, default)
        if not isinstance(value, bool):
            raise ValueError(f'"{name}" must be true or false')  # noqa: TRY004 - a mistake of a person's, not of code
        return value

    def choice(self, name: str, allowed: Sequence[str], default: str) -> str:
        value = self._settings.get(name, default)
        if value not in allowed:
            raise ValueError(f'"{name}" must be one of: {", ".join(allowed)}')
        return str(value)

    def secrets(self, *names: str) -> dict[str, str]:
        return {name: text for name in names if (text := self.optional_text(name))}

    def _host(self) -> str:
        host = self.text("host")
        if "://" in host or "/" in host or "@" in host or any(map(str.isspace, host)):
            raise ValueError(f'"host" must be the name or address alone, such as sftp.example.org, not {host[:80]!r}')
        return host.strip("[]").lower()

    def _directory(self) -> str:
        directory = self.optional_text("directory") or ""
        _check_line("directory", directory)
        return directory


def _check_line(name: str, value: str) -> None:
    if len(value) > MAX_TEXT or not value.isprintable():
        raise ValueError(f'"{name}" must be one line of at most {MAX_TEXT} printable characters')
