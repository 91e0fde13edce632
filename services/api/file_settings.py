"""What a job may be told of an SFTP or FTPS server, and what of it may be shown."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from services.core.file_transfer import HOSTED, FileServer, fingerprint, ftps_server, parse_host_key, sftp_server
from services.platform.errors import UserError

FILE_TRANSPORTS = ("sftp", "ftps")


def new_private_key() -> str:
    """Return a fresh ed25519 key to log in with, in OpenSSH's form."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - few commands need it, and it takes long
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415 - as above

    key = Ed25519PrivateKey.generate()
    form = serialization.PrivateFormat.OpenSSH
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode("ascii")


def public_half(private_key: str) -> str:
    """Return the line that lets a key log in, for the server's authorized_keys. Raises UserError."""
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - as above
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - as above

    try:
        key = serialization.load_ssh_private_key(private_key.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        message = "private_key is no key in OpenSSH's form without a passphrase (`ssh-keygen -t ed25519` makes one)"
        raise UserError(message) from None
    form = serialization.PublicFormat.OpenSSH
    return f"{key.public_key().public_bytes(serialization.Encoding.OpenSSH, form).decode('ascii')} meterpost"


def parse_account(text: str) -> dict[str, Any]:
    """Return user, host and port of `USER@HOST[:PORT]`. Raises UserError."""
    bare = text.partition("://")[2] or text
    try:
        parts = urlsplit(f"//{bare}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"the address {bare!r} cannot be understood: {error}") from None
    if parts.password is not None:
        raise UserError("the address must not hold the password: it is shown in lists; give --password-file")
    if not host or not parts.username or parts.path.strip("/") or parts.query or parts.fragment:
        raise UserError(f"the address {bare!r} must have the form USER@HOST or USER@HOST:PORT")
    return {"user": parts.username, "host": host} | ({} if port is None else {"port": port})


def check_file_settings(transport: str, settings: Mapping[str, Any]) -> FileServer:
    """Return the server that the opened settings name. Raises UserError with what is wrong."""
    try:
        if transport == "sftp":
            return sftp_server(settings)
        server = ftps_server(settings)
    except ValueError as error:
        raise UserError(f"the job's {transport.upper()} settings: {error}") from None
    if server.ca_pem is not None:
        from cryptography import x509  # noqa: PLC0415 - as above

        try:
            x509.load_pem_x509_certificates(server.ca_pem.encode())
        except ValueError:
            message = "the CA file holds no certificate as PEM; its text begins with -----BEGIN CERTIFICATE-----"
            raise UserError(message) from None
    return server


def approve(settings: Mapping[str, Any], host_key: str) -> dict[str, Any]:
    """Return SFTP settings in which this key is approved, too. Raises UserError where it is none."""
    try:
        key = parse_host_key(host_key)
    except ValueError as error:
        raise UserError(str(error)) from None
    return {**settings, "host_keys": list(dict.fromkeys([*settings.get("host_keys", ()), key]))}


def withdraw(settings: Mapping[str, Any], key_fingerprint: str) -> dict[str, Any]:
    """Return SFTP settings without the approved key of this fingerprint. Raises UserError where there is none."""
    before: Sequence[str] = settings.get("host_keys", ())
    kept = [key for key in before if fingerprint(key) != key_fingerprint]
    if len(kept) == len(before):
        raise UserError(f"no approved key has the fingerprint {key_fingerprint}")
    return {**settings, "host_keys": kept}


def destination_text(transport: str, settings: Mapping[str, Any]) -> str:
    """Return where a job sends to, in a few words."""
    if transport == "https":
        return urlsplit(str(settings.get("url"))).netloc
    if HOSTED in settings:
        return "the hosted folder"
    port = f":{settings['port']}" if "port" in settings else ""
    directory = settings.get("directory") or ""
    slash = "" if directory.startswith("/") or not directory else "/"
    return f"{transport}://{settings.get('user')}@{settings.get('host')}{port}{slash}{directory}"
