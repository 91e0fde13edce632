"""Options of jobs that go to an HTTPS receiver: how we show who we are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from services.api.job_secrets import AUTH_KINDS
from services.api.job_settings import HttpsAccess, https_settings
from services.core.transport_secrets import SEALED
from services.platform.errors import UserError

AuthOption = Annotated[
    str | None,
    typer.Option("--auth", metavar="|".join(AUTH_KINDS), help="How we show who we are. Default: none."),
]
UsernameOption = Annotated[str | None, typer.Option("--username", metavar="NAME", help="For --auth basic.")]
ClientCertificateOption = Annotated[
    Path | None,
    typer.Option(
        "--client-certificate", metavar="FILE", help="Our certificate (PEM); its key is the secret client_key."
    ),
]
ManifestOption = Annotated[
    bool | None,
    typer.Option("--manifest/--no-manifest", help="End each run with a manifest: rows, bytes, SHA-256 of each part."),
]


class Access(NamedTuple):
    """The options; None: not given."""

    auth: str | None = None
    username: str | None = None
    client_certificate: Path | None = None

    def refuse(self, what: str) -> None:
        """Raise UserError where an option was given that `what` has no use for."""
        if self != Access():
            raise UserError(f"{what} takes none of --auth, --username and --client-certificate: they are for HTTPS")


def new_https(url: str, ca_file: Path | None, given: Access) -> dict[str, Any]:
    """Return the settings of a new job. Raises UserError."""
    certificate = None if given.client_certificate is None else read_pem(given.client_certificate)
    ca_pem = None if ca_file is None else read_pem(ca_file)
    return https_settings(url, ca_pem, HttpsAccess(given.auth or "none", given.username, certificate))


def changed_https(before: Mapping[str, Any], url: str | None, ca_file: Path | None, given: Access) -> Mapping[str, Any]:
    """Return the settings with what was given; what was not stays, the secrets too. Raises UserError."""
    if url is None and ca_file is None and given == Access():
        return before
    auth = given.auth or before.get("auth", "none")
    username = given.username or (before.get("username") if auth == "basic" else None)
    certificate = before.get("client_certificate")
    if given.client_certificate is not None:
        certificate = read_pem(given.client_certificate)
    ca_pem = before.get("ca_pem") if ca_file is None else read_pem(ca_file)
    settings = https_settings(url or str(before["url"]), ca_pem, HttpsAccess(auth, username, certificate))
    return settings | ({SEALED: before[SEALED]} if SEALED in before else {})


def read_pem(file: Path) -> str:
    """Return a file of certificates. Raises UserError."""
    try:
        return file.read_text(encoding="ascii")
    except UnicodeDecodeError:
        raise UserError(
            f"the CA file {file} is not PEM text; its text begins with -----BEGIN CERTIFICATE-----"
        ) from None
    except OSError as error:
        raise UserError(f"the CA file {file} cannot be read: {error.strerror}") from None
