"""Where a job sends to, as options of a command and as people are shown it. Secrets come from files and go nowhere."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from services.api.file_settings import (
    approve,
    check_file_settings,
    destination_text,
    new_key_settings,
    parse_account,
    password_settings,
)
from services.api.job_queries import Job
from services.api.job_settings import JobSettings, https_settings
from services.cli.session import Session
from services.core.csv_records import LINE_ENDS
from services.core.file_transfer import SECRETS, fingerprint
from services.platform.errors import UserError

_FILES = "CSV over SFTP or FTPS"

SftpOption = Annotated[
    str | None,
    typer.Option("--sftp", metavar="USER@HOST[:PORT]", help="Send CSV files there.", rich_help_panel=_FILES),
]
FtpsOption = Annotated[
    str | None,
    typer.Option("--ftps", metavar="USER@HOST[:PORT]", help="Send CSV files there.", rich_help_panel=_FILES),
]
DirectoryOption = Annotated[
    str | None,
    typer.Option(
        "--directory",
        metavar="FOLDER",
        help="On the server. Default: where it logs in.",
        rich_help_panel=_FILES,
    ),
]
PasswordFileOption = Annotated[
    Path | None,
    typer.Option(
        "--password-file",
        metavar="FILE",
        help="Its first line is the password; - reads standard input. SFTP without one: by a key made for the job.",
        rich_help_panel=_FILES,
    ),
]
HostKeyOption = Annotated[
    Path | None,
    typer.Option(
        "--host-key-file",
        metavar="FILE",
        help="The SFTP server's public keys, one a line. Or approve the one it shows: `jobs host-key`.",
        rich_help_panel=_FILES,
    ),
]
ImplicitOption = Annotated[
    bool, typer.Option("--implicit", help="FTPS whose connections begin with TLS (port 990).", rich_help_panel=_FILES)
]
LineEndOption = Annotated[
    str | None,
    typer.Option("--line-end", metavar="|".join(LINE_ENDS), help="Of the files; default: lf.", rich_help_panel=_FILES),
]
FormulasOption = Annotated[
    bool | None,
    typer.Option(
        "--keep-formulas/--defuse-formulas",
        help="Whether names that a spreadsheet takes for formulas stay as they are; by default they get a ' in front.",
        show_default=False,
        rich_help_panel=_FILES,
    ),
]


class FileOptions(NamedTuple):
    """The options of SFTP and FTPS as they were given."""

    sftp: str | None
    ftps: str | None
    directory: str | None
    password_file: Path | None
    host_key_file: Path | None
    implicit: bool
    line_end: str | None
    keep_formulas: bool | None
    ca_file: Path | None

    @property
    def transport(self) -> str | None:
        """The transport that the address belongs to; None: no address was given."""
        if self.sftp is not None and self.ftps is not None:
            raise UserError("give one of --url, --sftp and --ftps")
        return "sftp" if self.sftp is not None else "ftps" if self.ftps is not None else None

    @property
    def any_given(self) -> bool:
        """Whether anything but the CA file was given, which HTTPS has, too."""
        return any(value not in {None, False} for value in self[:-1])

    def refuse(self, what: str) -> None:
        """Raise UserError where an option was given that `what` has no use for."""
        if self.any_given:
            raise UserError(f"{what} takes none of the options of {_FILES}: they need --sftp or --ftps")

    def settings(self, before: Mapping[str, Any], transport: str | None = None) -> dict[str, Any]:
        """Return a job's transport settings: those of `before`, changed by what was given. Raises UserError."""
        transport = self.transport or transport or "sftp"
        settings = dict(before)
        address = self.sftp or self.ftps
        if address is not None:
            settings = {name: value for name, value in settings.items() if name != "port"} | parse_account(address)
        if self.directory is not None:
            settings["directory"] = self.directory
        if self.line_end is not None:
            settings["line_end"] = self.line_end
        if self.keep_formulas is not None:
            settings["defuse_formulas"] = not self.keep_formulas
        if self.password_file is not None:
            settings.pop("public_key", None)
            settings |= password_settings(_first_line(self.password_file))
        elif SECRETS not in settings:
            if transport == "ftps":
                raise UserError("FTPS needs --password-file: the file's first line is the password")
            settings |= new_key_settings()
        settings = self._trust(settings, transport)
        check_file_settings(transport, settings)
        return settings

    def _trust(self, settings: dict[str, Any], transport: str) -> dict[str, Any]:
        if transport == "sftp":
            if self.ca_file is not None or self.implicit:
                raise UserError("--ca-file and --implicit are for FTPS; an SFTP server is known by its --host-key-file")
            for line in () if self.host_key_file is None else _lines(self.host_key_file):
                settings = approve(settings, line)
            return settings
        if self.host_key_file is not None:
            raise UserError("--host-key-file is for SFTP; an FTPS server is known by its certificate: --ca-file")
        if self.implicit:
            settings["tls"] = "implicit"
        if self.ca_file is not None:
            settings["ca_pem"] = pem(self.ca_file)
        return settings


def changed_destination(old: JobSettings, files: FileOptions, url: str | None) -> tuple[str, Mapping[str, Any]]:
    """Return transport and settings of a job that is edited. Raises UserError."""
    before = old.transport_settings
    if url is not None:
        files.refuse("an HTTPS receiver")
        kept = before.get("ca_pem") if old.transport == "https" else None
        return "https", https_settings(url, pem(files.ca_file) if files.ca_file is not None else kept)
    transport = files.transport or old.transport
    if transport != old.transport:
        return transport, files.settings({})
    if transport == "https":
        files.refuse("an HTTPS receiver")
        if files.ca_file is None:
            return transport, before
        return transport, https_settings(str(before["url"]), pem(files.ca_file))
    if not files.any_given and files.ca_file is None:
        return transport, before
    return transport, files.settings(before, transport)


def destination_facts(settings: JobSettings) -> list[tuple[str, object]]:
    """Return what is to be said of where a job sends to, without what is secret."""
    found = settings.transport_settings
    own_ca = "the certificates given with --ca-file" if "ca_pem" in found else "the system's certificates"
    if settings.transport == "https":
        return [("To", found.get("url")), ("Trusts", own_ca)]
    facts: list[tuple[str, object]] = [("To", destination_text(settings.transport, found))]
    if settings.transport == "ftps":
        facts += [("TLS", found.get("tls", "explicit")), ("Trusts", own_ca)]
    else:
        keys = [f"{key.split()[0]} {fingerprint(key)}" for key in found.get("host_keys", ())]
        facts.append(("Trusts", ", ".join(keys) or f"no key yet: {_APPROVE}"))
    facts.append(("Logs in with", f"the key {found['public_key']}" if "public_key" in found else "a password"))
    formulas = "defused" if found.get("defuse_formulas", True) else "kept"
    facts.append(("Files", f"CSV, lines end with {found.get('line_end', 'lf')}, formulas {formulas}"))
    return facts


_APPROVE = "see `meterpost jobs host-key`"


def tell_next_steps(session: Session, job: Job) -> None:
    """Say what has to be done at the server's side before a new job can deliver."""
    found = job.settings.transport_settings
    if "public_key" in found:
        session.answer.say(f"Let this key log in as {found['user']} there:\n{found['public_key']}")
    if job.settings.transport == "sftp" and not found.get("host_keys"):
        session.answer.say(
            f"Nothing is sent before the server's key is approved: `meterpost jobs host-key {job.job_id}` shows it."
        )
    if job.settings.transport != "https":
        session.answer.say(f"Then try the connection: `meterpost jobs test {job.job_id}`.")


def pem(file: Path) -> str:
    """Return the text of a file of certificates. Raises UserError."""
    try:
        return file.read_text(encoding="ascii")
    except UnicodeDecodeError:
        raise UserError(
            f"the CA file {file} is not PEM text; its text begins with -----BEGIN CERTIFICATE-----"
        ) from None
    except OSError as error:
        raise UserError(f"the CA file {file} cannot be read: {error.strerror}") from None


def _first_line(file: Path) -> str:
    text = sys.stdin.readline() if str(file) == "-" else "\n".join(_lines(file, keep_blank=True))
    return text.split("\n")[0].rstrip("\r")


def _lines(file: Path, *, keep_blank: bool = False) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"{file} cannot be read: {reason}") from None
    return [line for line in lines if keep_blank or (line.strip() and not line.lstrip().startswith("#"))]
