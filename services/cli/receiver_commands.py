"""`meterpost receiver check`: for those who receive. Needs no database, no Kafka, and changes nothing."""

import json
import ssl
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli.receiver_folder import FolderCheck
from services.cli.secret_options import read_secret
from services.cli.session import Session, command, wall_clock
from services.cli.show import Answer, Column, write
from services.core.findings import Finding
from services.core.received_runs import JobTotals
from services.core.transport_secrets import SIGNING_SECRET
from services.core.webhooks import signing_key
from services.platform.errors import UserError

if TYPE_CHECKING:
    from services.cli.receiver_listen import Judged

EXIT_DIFFERENT = 6
_LINE_EVERY_SECONDS = 5.0
_JOBS = (
    Column("Job", number=True),
    Column("Name"),
    Column("From", whole=True),
    Column("To", whole=True),
    Column("Runs", number=True),
    Column("Parts", number=True),
    Column("Rows", number=True),
    Column("Manifests", number=True),
)
_FINDINGS = (Column("What", whole=True), Column("Where"), Column("Found"))

app = typer.Typer(no_args_is_help=True, help="For receivers: is what arrived whole, sound and unchanged?")


@command(app, "check", "as_json")
async def check(
    session: Session,
    folder: Annotated[
        Path | None, typer.Argument(metavar="[FOLDER]", help="Where files arrived; folders in it count, too.")
    ] = None,
    *,
    listen: Annotated[bool, typer.Option("--listen", help="Take POSTs and check each; nothing is kept.")] = False,
    secret: Annotated[
        list[str] | None,
        typer.Option(
            "--secret",
            metavar="NAME=SOURCE",
            help="signing_secret=file:PATH, env:VARIABLE or prompt, to check signatures by. Several during a rotation.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Tell at most so many findings.")] = 50,
    settle: Annotated[
        int, typer.Option(min=0, metavar="SECONDS", help="What is missing of runs younger than this may yet arrive.")
    ] = 60,
    host: Annotated[str, typer.Option("--host", help="With --listen: the address.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="With --listen: the port; 0 takes a free one.")] = 8443,
    certificate: Annotated[
        Path | None, typer.Option("--certificate", metavar="FILE", help="With --listen: the certificate (PEM).")
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", metavar="FILE", help="With --listen: its private key.")] = None,
) -> None:
    """Check what a receiver got: names, parts, rows, form, manifests and their chain, requests and signatures.

    FOLDER: everything that lies there. Exit code 6 where anything differs from what was sent; what is only worth
    knowing (a gap that may be rightly there) is told and changes nothing.

    --listen: an HTTPS receiver for a trial. What it answers with 2xx counts as delivered and is gone: use a job made
    for the trial. Without --certificate and --key it takes those of the demo that is running.
    """
    keys = _signing_keys(secret)
    if listen == (folder is not None):
        raise UserError("give either a FOLDER or --listen")
    if listen:
        await _listen(session, keys, host, port, _tls(session, certificate, key))
        return
    if certificate is not None or key is not None:
        raise UserError("--certificate and --key belong to --listen")
    _check_folder(session.answer, Path(folder or ""), keys, limit, timedelta(seconds=settle))


def _signing_keys(options: list[str] | None) -> list[bytes]:
    keys = []
    for option in options or ():
        name, _equals, source = option.partition("=")
        if name != SIGNING_SECRET or source.partition(":")[0] not in {"file", "env", "prompt"}:
            raise UserError(
                "--secret must be signing_secret=file:PATH, env:VARIABLE or prompt (a secret itself is never given as "
                "an argument: everybody on this machine could read it)"
            )
        try:
            keys.append(signing_key(read_secret(name, source)))
        except ValueError as error:
            raise UserError(str(error)) from None
    return keys


def _check_folder(answer: Answer, folder: Path, keys: list[bytes], limit: int, settle: timedelta) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder")
    looker = FolderCheck(folder, keys, now=wall_clock().now(), settle=settle, progress=_Progress(answer).tell)
    shown: list[Finding] = []
    counts: Counter[str] = Counter()
    difference_count = 0
    for finding in looker.run():
        counts[finding.what] += 1
        difference_count += finding.is_difference
        if len(shown) < limit:
            shown.append(finding)
        elif finding.is_difference:
            # What differs is told before what is only worth knowing.
            place = next((place for place, one in enumerate(shown) if not one.is_difference), None)
            if place is not None:
                shown[place] = finding
    if not looker.file_count and not counts:
        raise UserError(f"there is nothing in {folder} to check")
    shown.sort(key=lambda finding: not finding.is_difference)
    if answer.as_json:
        answer.json(_as_json(looker, shown, counts, difference_count))
    else:
        _tell(answer, looker, shown, counts.total(), difference_count)
    if difference_count:
        raise typer.Exit(EXIT_DIFFERENT)


def _as_json(looker: FolderCheck, shown: list[Finding], counts: Counter[str], difference_count: int) -> dict[str, Any]:
    return {
        "jobs": [job._asdict() for job in looker.jobs],
        "requests_checked": looker.requests_checked,
        "signatures_checked": looker.signatures_checked,
        "signatures_unchecked": looker.signatures_unchecked,
        "difference_count": difference_count,
        "note_count": counts.total() - difference_count,
        "counts": dict(counts),
        "findings": [finding._asdict() for finding in shown],
    }


def _tell(answer: Answer, looker: FolderCheck, shown: list[Finding], count: int, difference_count: int) -> None:
    if looker.jobs:
        answer.table(_JOBS, map(_row, looker.jobs))
        answer.say("")
    for is_difference, title in ((True, "Differences"), (False, "Worth knowing")):
        rows = [finding[:3] for finding in shown if finding.is_difference is is_difference]
        if rows:
            answer.table(_FINDINGS, [(what, where, sentence) for what, where, sentence in rows], title=title)
            answer.say("")
    if count > len(shown):
        answer.note(f"{len(shown):,} of {count:,} findings shown (--limit)")
    if looker.requests_checked:
        answer.say(
            f"{looker.requests_checked:,} requests compared with their files, "
            f"{looker.signatures_checked:,} signatures checked."
        )
    if looker.signatures_unchecked:
        answer.note(f"{looker.signatures_unchecked:,} signatures are there; --secret signing_secret=file:… checks them")
    parts, rows_ = sum(job.parts for job in looker.jobs), sum(job.rows for job in looker.jobs)
    verdict = f"{difference_count:,} differences" if difference_count else "all sound"
    answer.say(f"{parts:,} parts with {rows_:,} rows checked: {verdict}.")


def _row(job: JobTotals) -> tuple[object, ...]:
    return (
        str(job.job_id),
        job.slug,
        job.window_start,
        job.window_end,
        job.runs,
        job.parts,
        job.rows,
        job.manifests,
    )


class _Progress:
    """A line on standard error now and then, nothing beside JSON."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._last_line = time.monotonic()

    def tell(self, done: int, total: int) -> None:
        """Say how far it has come, not too often."""
        if not self._answer.as_json and time.monotonic() - self._last_line > _LINE_EVERY_SECONDS:
            self._last_line = time.monotonic()
            self._answer.note(f"{done:,} of {total:,} files")


def _tls(session: Session, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    if (certificate is None) != (key is None):
        raise UserError("--certificate and --key come together")
    if certificate is None or key is None:
        demo = session.places.demo_receiver()
        if demo is None:
            raise UserError("give --certificate and --key: no demo is running whose certificate could be taken")
        certificate, key = demo.ca_file.with_name("server.pem"), demo.ca_file.with_name("server-key.pem")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        tls.load_cert_chain(certificate, key)
    except OSError as error:  # an SSLError is one, too
        raise UserError(f"the certificate {certificate} with the key {key} cannot be used: {error}") from None
    return tls


async def _listen(session: Session, keys: list[bytes], host: str, port: int, tls: ssl.SSLContext) -> None:
    # Only here, because it would cost every other command a fifth of a second.
    from services.cli.receiver_listen import Listener, listen  # noqa: PLC0415

    answer = session.answer

    def started(at_port: int) -> None:
        answer.note(f"listening on https://{host}:{at_port}/; nothing is kept of what arrives. Ctrl-C ends it.")

    await listen(Listener(keys, wall_clock(), _Lines(answer).tell), host, port, tls, started)


class _Lines:
    """A line for each POST."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def tell(self, judged: "Judged") -> None:
        """Write it, at once."""
        if not self._answer.as_json:
            signed = {"checked": ", signature checked", "unchecked": ", signature not checked"}.get(
                judged.signature, ""
            )
            what = judged.file or judged.id or "a request"
            self._answer.say(
                f"{judged.status}  {what}  {judged.rows:,} rows, {judged.bytes:,} bytes{signed}: {judged.said}"
            )
            return
        write(json.dumps(judged._asdict(), ensure_ascii=False) + "\n")
