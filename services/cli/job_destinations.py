"""Where a job sends to, as options of a command and as people are shown it. Secrets come from files and go nowhere."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from services.api.file_settings import (
    approve,
    destination_text,
    new_private_key,
    parse_account,
    public_half,
)
from services.api.job_queries import Job
from services.api.job_secrets import SecretChanges
from services.api.job_settings import JobSettings
from services.cli.https_options import Access, changed_https, read_pem
from services.cli.session import Session
from services.core.csv_records import LINE_ENDS
from services.core.file_transfer import HOSTED, fingerprint
from services.core.transport_secrets import SEALED, public_settings
from services.platform.errors import UserError

_FILES = "CSV over SFTP or FTPS"
_OF_FILES = ("line_end", "defuse_formulas")
"""The settings that say how files look, wherever they go."""

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


HostedOption = Annotated[
    bool,
    typer.Option(
        "--hosted",
        help="Leave CSV files in the folder that we host, for the organization to fetch over SFTP.",
        rich_help_panel=_FILES,
    ),
]


class FileOptions(NamedTuple):
    """The options of SFTP and FTPS as they were given."""

    sftp: str | None
    ftps: str | None
    directory: str | None
    host_key_file: Path | None
    implicit: bool
    line_end: str | None
    keep_formulas: bool | None
    hosted: bool
    ca_file: Path | None

    @property
    def transport(self) -> str | None:
        """The transport that the address belongs to; None: no address was given."""
        if [self.sftp is not None, self.ftps is not None, self.hosted].count(True) > 1:
            raise UserError("give one of --url, --sftp, --ftps and --hosted")
        if self.hosted:
            return "sftp"
        return "sftp" if self.sftp is not None else "ftps" if self.ftps is not None else None

    @property
    def any_given(self) -> bool:
        """Whether anything but the CA file was given, which HTTPS has, too."""
        return any(value not in {None, False} for value in self[:-1])

    def refuse(self, what: str) -> None:
        """Raise UserError where an option was given that `what` has no use for."""
        if self.any_given:
            raise UserError(f"{what} takes none of the options of {_FILES}: they need --sftp or --ftps")

    def server(self, before: Mapping[str, Any], transport: str, given: SecretChanges) -> "Server":
        """Return a job's server: that of `before`, changed by what was given. Raises UserError."""
        settings = dict(before)
        secrets = dict(given)
        address = self.sftp or self.ftps
        if self.hosted or (HOSTED in before and address is None):
            return self._hosted(before, secrets)
        if HOSTED in settings:
            settings = {name: value for name, value in settings.items() if name in _OF_FILES}
        if address is not None:
            settings = {name: value for name, value in settings.items() if name != "port"} | parse_account(address)
        if self.directory is not None:
            settings["directory"] = self.directory
        settings |= self._format()
        if transport == "sftp":
            _log_in(settings, secrets)
        elif not secrets and not settings.get(SEALED):
            raise UserError("FTPS needs a password: --secret password=file:FILE, or password=prompt")
        return Server(transport, self._trust(settings, transport), secrets)

    def _format(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.line_end is not None:
            if self.line_end not in LINE_ENDS:
                raise UserError(f"--line-end must be one of: {', '.join(LINE_ENDS)}")
            found["line_end"] = self.line_end
        if self.keep_formulas is not None:
            found["defuse_formulas"] = not self.keep_formulas
        return found

    def _hosted(self, before: Mapping[str, Any], given: dict[str, str | None]) -> "Server":
        if any((self.directory, self.host_key_file, self.implicit, self.ca_file)) or any(given.values()):
            raise UserError("the hosted folder takes no address, directory, key or secret: only how files look")
        kept = {name: value for name, value in before.items() if name in _OF_FILES}
        # What a server of the customer's was logged in to with, is forgotten.
        dropped: dict[str, str | None] = dict.fromkeys(before.get(SEALED, {}))
        sealed = {SEALED: before[SEALED]} if before.get(SEALED) else {}
        return Server("sftp", {**kept, HOSTED: True, **self._format(), **sealed}, dropped)

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
            settings["ca_pem"] = read_pem(self.ca_file)
        return settings


class Server(NamedTuple):
    """Where a job sends to, and the secrets that change with it."""

    transport: str
    settings: Mapping[str, Any]
    secrets: SecretChanges


def _log_in(settings: dict[str, Any], secrets: dict[str, str | None]) -> None:
    """Complete how an SFTP job logs in: what is new takes the place of what was; without anything a key is made."""
    sealed = settings.get(SEALED, {})
    if secrets.get("password") is not None:
        settings.pop("public_key", None)
        replaced = "private_key"
    elif secrets.get("private_key") is None and sealed:
        return
    else:
        private_key = secrets.get("private_key") or new_private_key()
        settings["public_key"], secrets["private_key"] = public_half(private_key), private_key
        replaced = "password"
    if replaced in sealed:
        secrets[replaced] = None


def changed_destination(
    old: JobSettings, files: FileOptions, url: str | None, access: Access, given: SecretChanges
) -> Server:
    """Return the server of a job that is edited. Raises UserError."""
    before = old.transport_settings
    transport = "https" if url is not None else files.transport or old.transport
    kept = before if transport == old.transport else {}
    if transport == "https":
        files.refuse("an HTTPS receiver")
        return Server(transport, changed_https(kept, url, files.ca_file, access), given)
    access.refuse(f"an {transport.upper()} server")
    if not files.any_given and files.ca_file is None and not given:
        return Server(transport, before, {})
    return files.server(kept, transport, given)


def destination_facts(settings: JobSettings) -> list[tuple[str, object]]:
    """Return what is to be said of where a job sends to, without what is secret."""
    found = public_settings(settings.transport_settings)
    own_ca = "the certificates given with --ca-file" if "ca_pem" in found else "the system's certificates"
    if settings.transport == "https":
        return [("To", found.get("url")), ("Trusts", own_ca), ("Shows", _shown_text(found))]
    facts: list[tuple[str, object]] = [("To", destination_text(settings.transport, found))]
    if HOSTED in found:
        return [*facts, ("Files", _files_text(found))]
    if settings.transport == "ftps":
        facts += [("TLS", found.get("tls", "explicit")), ("Trusts", own_ca)]
    else:
        keys = [f"{key.split()[0]} {fingerprint(key)}" for key in found.get("host_keys", ())]
        facts.append(("Trusts", ", ".join(keys) or f"no key yet: {_APPROVE}"))
    facts.append(("Logs in with", f"the key {found['public_key']}" if "public_key" in found else "a password"))
    facts.append(("Files", _files_text(found)))
    return facts


def _files_text(found: Mapping[str, Any]) -> str:
    formulas = "defused" if found.get("defuse_formulas", True) else "kept"
    return f"CSV, lines end with {found.get('line_end', 'lf')}, formulas {formulas}"


def _shown_text(settings: Mapping[str, Any]) -> str:
    """Return who we show to be: the way, the user name, and which secrets are set."""
    parts = [str(settings.get("auth", "no authentication"))]
    parts += [f"user {settings['username']}"] if "username" in settings else []
    parts += ["a client certificate"] if "client_certificate" in settings else []
    return ", ".join([*parts, *(f"{name} (set)" for name in settings.get("secrets", ()))])


_APPROVE = "see `meterpost jobs host-key`"


def tell_next_steps(session: Session, job: Job) -> None:
    """Say what has to be done at the server's side before a new job can deliver."""
    found = job.settings.transport_settings
    if HOSTED in found:
        session.answer.say(
            "Who may fetch from the hosted folder: `meterpost dropbox accounts`, `meterpost dropbox add`."
        )
        return
    if "public_key" in found:
        session.answer.say(f"Let this key log in as {found['user']} there:\n{found['public_key']}")
    if job.settings.transport == "sftp" and not found.get("host_keys"):
        session.answer.say(
            f"Nothing is sent before the server's key is approved: `meterpost jobs host-key {job.job_id}` shows it."
        )
    if job.settings.transport != "https":
        session.answer.say(f"Then try the connection: `meterpost jobs test {job.job_id}`.")


def _lines(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"{file} cannot be read: {reason}") from None
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
