"""How Kafka is reached: its brokers, whether by TLS, and who we say we are. Imports no client library."""

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from services.platform.errors import UserError

SecurityProtocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
SaslMechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]

PROTOCOL_VARIABLE = "METERPOST_KAFKA_SECURITY_PROTOCOL"
MECHANISM_VARIABLE = "METERPOST_KAFKA_SASL_MECHANISM"
USERNAME_VARIABLE = "METERPOST_KAFKA_SASL_USERNAME"
PASSWORD_VARIABLE = "METERPOST_KAFKA_SASL_PASSWORD"  # noqa: S105 - a name, no password
PASSWORD_FILE_VARIABLE = "METERPOST_KAFKA_SASL_PASSWORD_FILE"  # noqa: S105 - as above
CA_FILE_VARIABLE = "METERPOST_KAFKA_SSL_CA_FILE"
CERTIFICATE_FILE_VARIABLE = "METERPOST_KAFKA_SSL_CERTIFICATE_FILE"
KEY_FILE_VARIABLE = "METERPOST_KAFKA_SSL_KEY_FILE"

_LOGIN_VARIABLES = (MECHANISM_VARIABLE, USERNAME_VARIABLE, PASSWORD_VARIABLE, PASSWORD_FILE_VARIABLE)
_TLS_VARIABLES = (CA_FILE_VARIABLE, CERTIFICATE_FILE_VARIABLE, KEY_FILE_VARIABLE)
SECURITY_VARIABLES = (PROTOCOL_VARIABLE, *_LOGIN_VARIABLES, *_TLS_VARIABLES)


@dataclass(frozen=True, slots=True)
class SaslLogin:
    """Who we say we are; the password is in no representation of it."""

    mechanism: SaslMechanism
    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class KafkaAccess:
    """The brokers (host:port, comma-separated) and how to talk to them; by themselves in plaintext."""

    bootstrap_servers: str
    login: SaslLogin | None = None
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    @property
    def security_protocol(self) -> SecurityProtocol:
        """Kafka's own name for it."""
        if self.login is None:
            return "PLAINTEXT" if self.tls is None else "SSL"
        return "SASL_PLAINTEXT" if self.tls is None else "SASL_SSL"

    @property
    def is_secured(self) -> bool:
        """Tell whether a broker may refuse us, or we it."""
        return self.login is not None or self.tls is not None

    def client_settings(self) -> dict[str, Any]:
        """Return what every client of aiokafka takes."""
        settings: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap_servers,
            "security_protocol": self.security_protocol,
            "ssl_context": self.tls,
        }
        if self.login is not None:
            settings["sasl_mechanism"] = self.login.mechanism
            settings["sasl_plain_username"] = self.login.username
            settings["sasl_plain_password"] = self.login.password
        return settings


def problems_of(protocol: SecurityProtocol, given: frozenset[str]) -> list[str]:
    """Return a sentence for each variable that the protocol lacks or has no use for; `given` are those with a value."""
    problems = []
    if protocol.startswith("SASL_"):
        problems += [
            f"{name} is missing: {PROTOCOL_VARIABLE}={protocol} logs in"
            for name in (MECHANISM_VARIABLE, USERNAME_VARIABLE)
            if name not in given
        ]
        passwords = given & {PASSWORD_VARIABLE, PASSWORD_FILE_VARIABLE}
        if not passwords:
            problems.append(f"{PASSWORD_VARIABLE} or {PASSWORD_FILE_VARIABLE} is missing: {protocol} logs in")
        elif len(passwords) > 1:
            problems.append(f"give {PASSWORD_VARIABLE} or {PASSWORD_FILE_VARIABLE}, not both")
    else:
        problems += [
            f"{name} is given, but {PROTOCOL_VARIABLE}={protocol} logs in nobody: set SASL_SSL, or unset it"
            for name in _LOGIN_VARIABLES
            if name in given
        ]
    if protocol.endswith("SSL"):
        pair = (CERTIFICATE_FILE_VARIABLE, KEY_FILE_VARIABLE)
        problems += [
            f"{one} is missing: {other} is given, and a client certificate needs both"
            for one, other in (pair, pair[::-1])
            if one not in given and other in given
        ]
    else:
        problems += [
            f"{name} is given, but {PROTOCOL_VARIABLE}={protocol} does without TLS: "
            f"set {'SASL_SSL' if protocol.startswith('SASL_') else 'SSL'}, or unset it"
            for name in _TLS_VARIABLES
            if name in given
        ]
    return problems


def read_password(file: Path) -> str:
    """Return the password in a file, without the end of its line. Blocks. Raises UserError."""
    try:
        password = file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{PASSWORD_FILE_VARIABLE}: {file} cannot be read: {_reason(error)}") from None
    if not password:
        raise UserError(f"{PASSWORD_FILE_VARIABLE}: {file} is empty")
    return password


def tls_context(ca_file: Path | None, certificate_file: Path | None, key_file: Path | None) -> ssl.SSLContext:
    """Return what checks the brokers' certificates and host names, always, and shows ours where there is one.

    Without `ca_file` the machine's own authorities are trusted. Blocks. Raises UserError that names the file.
    """
    for name, file in (
        (CA_FILE_VARIABLE, ca_file),
        (CERTIFICATE_FILE_VARIABLE, certificate_file),
        (KEY_FILE_VARIABLE, key_file),
    ):
        _readable(name, file)
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=ca_file)
    except ssl.SSLError:
        raise UserError(f"{CA_FILE_VARIABLE}: {ca_file} holds no certificate in PEM form") from None
    if certificate_file is not None:
        try:
            # An encrypted key would make the library ask on the terminal.
            context.load_cert_chain(certificate_file, key_file, password=lambda: "")
        except ssl.SSLError:
            raise UserError(
                f"{CERTIFICATE_FILE_VARIABLE} and {KEY_FILE_VARIABLE}: {certificate_file} and {key_file} are not a "
                "certificate and its key, both in PEM form, the key without a passphrase"
            ) from None
    return context


def _readable(name: str, file: Path | None) -> None:
    try:
        if file is not None:
            file.read_bytes()
    except OSError as error:
        raise UserError(f"{name}: {file} cannot be read: {_reason(error)}") from None


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return str(error.strerror) if isinstance(error, OSError) else "it is not text"
