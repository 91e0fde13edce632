"""Secrets of a job's transport: sealed when they come in, never shown, and checked against the public settings."""

import ssl
from collections.abc import Mapping, Sequence
from typing import Any

from services.api.file_settings import check_file_settings
from services.core.file_transfer import HOSTED, check_hosted
from services.core.transport_secrets import (
    HEADER,
    MAX_SIGNING_SECRETS,
    SEALED,
    SIGNING_SECRET,
    check_name,
    job_place,
    next_signing_secret,
    opened_settings,
    signing_secrets,
)
from services.core.webhooks import MAX_HEADERS, check_basic, check_header, check_token, signing_key
from services.platform.errors import UserError
from services.platform.secrets import KeyMissing, SecretUnreadableError, Vault

AUTH_KINDS = ("none", "basic", "bearer")
FILE_SECRETS = {"sftp": {"password", "private_key"}, "ftps": {"password"}}

SecretChanges = Mapping[str, str | None]
"""New values by name; None removes one, `signing_secret` without a number adds one."""


def sealed_settings(
    vault: Vault, organization_id: int, job_id: int, settings: Mapping[str, Any], changes: SecretChanges
) -> dict[str, Any]:
    """Return the transport settings with the changes sealed into them. Raises UserError, which repeats no secret."""
    sealed: dict[str, str] = dict(settings.get(SEALED, {}))
    for asked, text in changes.items():
        name = next_signing_secret(sealed) if asked == SIGNING_SECRET else asked
        _check(name, text)
        if text is not None:
            place = job_place(organization_id, job_id, name)
            if name not in sealed or not _holds(vault, sealed[name], place, text):
                sealed[name] = vault.seal(text, place)
        elif sealed.pop(name, None) is None:
            raise UserError(f"the job has no secret {name}")
    if len(signing_secrets(sealed)) > MAX_SIGNING_SECRETS:
        raise UserError(f"a job has at most {MAX_SIGNING_SECRETS} signing secrets: drop the oldest one")
    if sum(name.startswith(HEADER) for name in sealed) > MAX_HEADERS:
        raise UserError(f"a job has at most {MAX_HEADERS} headers of its own")
    public = {name: value for name, value in settings.items() if name != SEALED}
    return public | ({SEALED: sealed} if sealed else {})


def check_https(
    vault: Vault, organization_id: int, job_id: int, settings: Mapping[str, Any], changes: SecretChanges
) -> None:
    """Raise UserError unless public and secret settings of an HTTPS job go together."""
    sealed: Mapping[str, str] = settings.get(SEALED, {})
    auth = settings.get("auth", "none")
    needed = {"basic": "password", "bearer": "token"}.get(auth)
    for name in ("password", "token"):
        if (name in sealed) != (name == needed):
            raise UserError(
                f"with --auth {auth} the secret {name} is needed: --secret {name}=file:FILE"
                if name == needed
                else f"the secret {name} has no use with --auth {auth}: drop it"
            )
    if "private_key" in sealed:
        raise UserError("the secret private_key has no use over HTTPS; the key of a client certificate is client_key")
    if ("client_certificate" in settings) != ("client_key" in sealed):
        raise UserError("a client certificate and its key (the secret client_key) come together: give both, or neither")
    username, password = settings.get("username", ""), changes.get("password")
    if auth == "basic":
        _sentence(check_basic, username, password or "")
    if "client_certificate" in settings:
        place = job_place(organization_id, job_id, "client_key")
        key_pem = changes.get("client_key") or vault.open(sealed["client_key"], place)
        check_client_certificate(settings["client_certificate"], key_pem)


def check_files(transport: str, settings: Mapping[str, Any], changes: SecretChanges) -> None:
    """Raise UserError unless public and secret settings of an SFTP or FTPS job are sound and go together."""
    sealed: Mapping[str, str] = settings.get(SEALED, {})
    if HOSTED in settings:
        _check_hosted(transport, settings)
        return
    used = FILE_SECRETS[transport]
    if foreign := sorted(sealed.keys() - used):
        raise UserError(f"the secret {foreign[0]} has no use over {transport.upper()}: drop it")
    if len(sealed) > 1:
        raise UserError("a job logs in by a password or by a key: drop the secret that is not used")
    # Those that are sealed already were checked when they came in.
    known = {name: changes.get(name) or "sealed" for name in sealed}
    check_file_settings(transport, opened_settings(settings, known))


def _check_hosted(transport: str, settings: Mapping[str, Any]) -> None:
    if transport != "sftp":
        raise UserError("the hosted folder is reached over SFTP")
    if sealed := sorted(settings.get(SEALED, {})):
        raise UserError(f"the secret {sealed[0]} has no use with the hosted folder: drop it")
    _sentence(check_hosted, {name: value for name, value in settings.items() if name != SEALED})


def check_client_certificate(certificate_pem: str, key_pem: str) -> None:
    """Raise UserError unless the key is the certificate's."""
    from cryptography import x509  # noqa: PLC0415 - few commands need it, and it takes long
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - as above
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415 - as above

    try:
        certificate = x509.load_pem_x509_certificates(certificate_pem.encode())[0]
    except ValueError:
        raise UserError("the client certificate is no PEM; its text begins with -----BEGIN CERTIFICATE-----") from None
    try:
        key = load_pem_private_key(key_pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm, ssl.SSLError):
        raise UserError("client_key is no private key as PEM without a passphrase") from None
    if key.public_key() != certificate.public_key():
        raise UserError("client_key is not the key of the client certificate")


def _holds(vault: Vault, sealed: str, place: Sequence[str | int], text: str) -> bool:
    try:
        return vault.open(sealed, place) == text
    except (KeyMissing, SecretUnreadableError):
        return False


def _check(name: str, text: str | None) -> None:
    _sentence(check_name, name)
    if text is None:
        return
    if not text:
        raise UserError(f"the secret {name} is empty")
    if name.startswith(HEADER):
        _sentence(check_header, name.removeprefix(HEADER), text)
    elif name.startswith(SIGNING_SECRET):
        _sentence(signing_key, text)
    elif name == "token":
        _sentence(check_token, text)


def _sentence(check: Any, *arguments: Any) -> None:
    try:
        check(*arguments)
    except ValueError as error:
        raise UserError(str(error)) from None
