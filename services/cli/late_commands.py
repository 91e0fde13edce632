"""`meterpost late`: readings that came too late for their closed windows, and what is to be sent after."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, BinaryIO, NamedTuple

import typer

from services.api.job_queries import find_job
from services.api.late_queries import Late, LateGroup, LateReading, LateTotals, Wanted, find_late
from services.api.late_rows import corrected_rows
from services.api.run_queries import find_run, parse_run_id
from services.cli import choosing
from services.cli.session import Session, command
from services.cli.show import Column, ReaderGoneError, lasted, utc
from services.core.file_transfer import file_format
from services.core.parts import HTTPS_JSON, PartFormat
from services.core.plurals import counted
from services.core.row_blocks import render_rows
from services.core.windows import RESOLUTIONS_MINUTES
from services.platform.errors import UserError
from services.platform.postgres import Pool, transaction

app = typer.Typer(no_args_is_help=True, help="Late readings: what closed windows missed, and what to send after.")

_DATABASE = ("organization", "database", "as_json")
_READINGS = (
    Column("Window", whole=True),
    Column("Min", number=True),
    Column("Meter"),
    Column("Site"),
    Column("Reading", whole=True),
    Column("Late by", number=True),
    Column("Value", number=True),
    Column("Window held", number=True),
    Column("Verdict", whole=True),
    Column("Missed by runs"),
)
_GROUPS = (
    Column("Meter"),
    Column("Site"),
    Column("Missed by run", whole=True),
    Column("Readings", number=True),
    Column("Windows", number=True),
    Column("Longest late by", number=True),
)
_EXPLANATION = (
    "Late by: arrival minus the window's cut-off; forced: in time, but the window was closed by force before it was "
    "stored. Verdict: missed - the newest version, which says something else than "
    "what the window held; repeat - the same content came again; outranked - a newer version stands above it. Closed "
    "windows stay as they are; `meterpost late export` writes the rows as they would be now."
)


@command(app, "list", *_DATABASE)
async def list_(
    session: Session,
    *,
    from_: choosing.From = None,
    to: choosing.To = None,
    run: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Only what this run missed; its slot is the span.", show_default=False),
    ] = None,
    job: Annotated[
        int | None, typer.Option(metavar="ID", help="Only what runs of this job missed.", show_default=False)
    ] = None,
    site: choosing.Site = None,
    meter: Annotated[int | None, typer.Option(metavar="ID", help="Only of this meter.", show_default=False)] = None,
    resolution: choosing.Resolution = None,
    repeats: Annotated[
        bool, typer.Option("--repeats", help="List those, too, that change nothing: repeats, outranked versions.")
    ] = False,
    by_run: Annotated[bool, typer.Option("--by-run", help="One line for each meter, site and run.")] = False,
    limit: choosing.Limit = 50,
) -> None:
    """List readings that came after the cut-off of a window that is closed, and what the window held instead.

    A reading may be late for its minute and in time for its hour: it is listed once for each resolution it is late for.
    """
    if run is not None and (from_ is not None or to is not None or job is not None):
        raise UserError("--run has its own span and job: leave --from, --to and --job out")
    if by_run and repeats:
        raise UserError("--by-run counts what was missed; --repeats has no place in it")
    async with session.pool() as pool:
        choice = await _choose(session, pool, run, job, (from_, to), site, meter)
        wanted = Wanted(*choice.span, choosing.resolutions(resolution), choice.organization_id, choice.site_id, meter)
        async with find_late(pool, wanted, job_id=choice.job_id, slot_start=choice.slot_start) as late:
            totals = await late.totals()
            # One more than is shown tells whether there are more.
            groups = await late.groups(choosing.limit_of(limit and limit + 1)) if by_run else []
            readings = [] if by_run else await late.readings(with_repeats=repeats, limit=choosing.limit_of(limit))
    is_cut = 0 < limit < len(groups)
    groups = groups[: choosing.limit_of(limit)]
    if session.answer.as_json:
        found = [one._asdict() for one in groups] or [one._asdict() | {"late_by": one.late_by} for one in readings]
        session.answer.json(_json(choice, totals, "by_run" if by_run else "readings", found))
    elif by_run:
        session.answer.table(_GROUPS, map(_group_row, groups))
        _tell_totals(session, totals, len(groups), is_cut)
    else:
        session.answer.table(_READINGS, map(_reading_row, readings))
        listed = totals.missed + (totals.repeat + totals.outranked if repeats else 0)
        _tell_totals(session, totals, len(readings), len(readings) < listed)
        session.answer.note(_EXPLANATION)
    _tell_dropped(session, choice)


@command(app, "export", *_DATABASE)
async def export(
    session: Session,
    *,
    job: Annotated[int, typer.Option(metavar="ID", help="The job whose runs missed them.", show_default=False)],
    from_: choosing.From = None,
    to: choosing.To = None,
    output: Annotated[str, typer.Option(metavar="FILE|-", help="Where to; - is standard output.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE where it exists.")] = False,
) -> None:
    """Write the rows of the windows in which the job's runs missed something, as they would be now, in its format.

    JSON for jobs that go by HTTPS, CSV for the others. Each window of a meter is written once, whole: newest versions,
    newest names. What receivers have under the same meter, time and resolution is to be replaced by it. Where a
    register came late, the row after it is written, too: part of what it held belongs to the earlier one.
    """
    if output == "-" and session.answer.as_json:
        raise UserError("--json answers on standard output, where --output - writes the rows: choose one")
    async with session.pool() as pool:
        choice = await _choose(session, pool, None, job, (from_, to), None, None)
        wanted = Wanted(*choice.span, RESOLUTIONS_MINUTES, choice.organization_id)
        async with find_late(pool, wanted, job_id=choice.job_id) as late:
            totals = await late.totals()
            with _Target(output, overwrite) as target:
                rows = await _write(target, choice.part_format, late)
                target.keep()
    if session.answer.as_json:
        session.answer.json(
            {
                **_span_json(choice),
                "output": output,
                "rows": rows,
                "missed_windows": totals.windows,
                "runs": totals.runs,
            }
        )
    else:
        where = "standard output" if output == "-" else output
        session.answer.note(
            f"{counted(rows, 'row')} to {where}: {counted(totals.runs, 'run')} missed something of "
            f"{counted(totals.meters, 'meter')}"
        )
    _tell_dropped(session, choice)


class _Choice(NamedTuple):
    """What the options mean."""

    organization_id: int
    organization_name: str
    span: tuple[datetime, datetime]
    site_id: int | None
    job_id: int | None
    slot_start: datetime | None
    part_format: PartFormat
    """The job's; HTTPS's where no job was chosen."""
    dropped_until: datetime | None
    """Rows before this, of some resolution asked for, were dropped by retention."""


async def _choose(
    session: Session,
    pool: Pool,
    run: str | None,
    job: int | None,
    times: tuple[str | None, str | None],
    site: str | None,
    meter: int | None,
) -> _Choice:
    async with transaction(pool) as connection:
        organization = await session.organization(connection)
        await choosing.check_meter(connection, organization, meter)
        slot_start = None
        if run is not None:
            try:
                job, slot_start = parse_run_id(run)
            except ValueError as error:
                raise UserError(str(error)) from None
            found = await find_run(connection, organization.organization_id, job, slot_start)
            if found is None:
                raise UserError(f"there is no run {run}; `meterpost runs list` shows those there are")
            span = (found.slot_start, found.slot_end)
        else:
            span = choosing.span(*times)
        part_format = HTTPS_JSON
        if job is not None:
            settings = (await find_job(connection, organization.organization_id, job)).settings
            if settings.data != "meters_measurements":
                raise UserError(f"job {job} sends the {settings.data}: no reading is late for it")
            part_format = HTTPS_JSON if settings.transport == "https" else file_format(settings.transport_settings)
        dropped_until: datetime | None = await connection.fetchval(
            "SELECT max(dropped_until) FROM measurement_retention WHERE dropped_until > $1", span[0]
        )
        site_id = await choosing.site_id(connection, organization.organization_id, site)
    return _Choice(
        organization.organization_id,
        organization.name,
        span,
        site_id,
        job,
        slot_start,
        part_format,
        dropped_until,
    )


async def _write(target: "_Target", part_format: PartFormat, late: Late) -> int:
    """Write all rows as one part, however many there are; returns how many."""
    target.write(part_format.head)
    count = 0
    async for batch in corrected_rows(late):
        if not batch:
            continue
        target.write(part_format.joint if count else b"")
        target.write(part_format.joint.join(render_rows(part_format.layout, batch)))
        count += len(batch)
    # A file of CSV without rows is its header line; its tail would be an empty one.
    target.write(part_format.tail if count or part_format is HTTPS_JSON else b"")
    return count


def _tell_dropped(session: Session, choice: _Choice) -> None:
    """Say what retention leaves out: the rows that receivers have are gone here."""
    if choice.dropped_until is not None and not session.answer.as_json:
        session.answer.note(
            f"rows of some resolutions before {utc(choice.dropped_until)} were dropped by retention (`meterpost "
            "windows status`): what these held only the readings tell, and no row of registers is exported for them"
        )


class _Target:
    """The file that is written: it appears under its name once it is complete."""

    def __init__(self, output: str, overwrite: bool) -> None:
        """Open what is written. Raises UserError where that is not to be, or cannot be."""
        self._output = output
        self._final = None if output == "-" else Path(output)
        self._partial: Path | None = None
        if self._final is not None:
            if not self._final.name or self._final.is_dir():
                raise UserError(f"--output {output!r} is no name for a file")
            if self._final.exists() and not overwrite:
                raise UserError(f"{output} exists: choose another name, or add --overwrite")
            self._partial = self._final.with_name(self._final.name + ".partial")
        with self._named():
            self._file: BinaryIO = sys.stdout.buffer if self._partial is None else self._partial.open("wb")

    def __enter__(self) -> "_Target":
        return self

    def write(self, content: bytes) -> None:
        """Write more. Raises UserError where that fails, ReaderGoneError where nobody reads."""
        with self._named():
            self._file.write(content)

    def keep(self) -> None:
        """Give the complete file its name. Raises as writing does."""
        with self._named():
            self._file.flush()
            if self._partial is not None and self._final is not None:
                os.fsync(self._file.fileno())
                self._partial.replace(self._final)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._partial is not None:
            with suppress(OSError):  # what was still to be written has found no room: that has been told
                self._file.close()
            self._partial.unlink(missing_ok=True)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Tell errors of the file from those of the database."""
        try:
            yield
        except BrokenPipeError as error:
            raise ReaderGoneError from error
        except OSError as error:
            where = "standard output" if self._output == "-" else self._output
            raise UserError(f"{where} cannot be written: {error.strerror or error}") from None


def _span_json(choice: _Choice) -> dict[str, object]:
    return {
        "organization": choice.organization_name,
        "from": choice.span[0],
        "to": choice.span[1],
        "rows_dropped_until": choice.dropped_until,
    }


def _json(choice: _Choice, totals: LateTotals, name: str, found: Sequence[Mapping[str, object]]) -> dict[str, object]:
    return {**_span_json(choice), "totals": _plain(totals._asdict()), name: [_plain(one) for one in found]}


def _plain(fields: Mapping[str, object]) -> dict[str, object]:
    """Return the fields with durations as seconds, by names that say so."""
    return {
        f"{name}_seconds" if name.endswith("late_by") else name: value.total_seconds()
        if isinstance(value, timedelta)
        else value
        for name, value in fields.items()
    }


def _reading_row(one: LateReading) -> tuple[object, ...]:
    return (
        one.window_start,
        one.resolution_minutes,
        f"{one.meter_id} {one.meter_name or ''}",
        one.site_name,
        one.measured_at,
        _late_by(one.late_by),
        one.value,
        one.held_value,
        one.verdict,
        ", ".join(one.runs) or None,
    )


def _group_row(group: LateGroup) -> tuple[object, ...]:
    return (
        f"{group.meter_id} {group.meter_name or ''}",
        group.site_name,
        group.run,
        group.readings,
        group.windows,
        _late_by(group.longest_late_by),
    )


def _late_by(duration: timedelta) -> str:
    return "forced" if duration < timedelta(0) else lasted(duration)


def _tell_totals(session: Session, totals: LateTotals, shown: int, is_cut: bool) -> None:
    if is_cut:
        session.answer.note(f"the first {shown:,} are shown; --limit 0 shows all")
    longest = ""
    if totals.longest_late_by is not None:  # negative: all of it came in time for windows that were closed by force
        is_late = totals.longest_late_by >= timedelta(0)
        longest = (
            f", at most {lasted(totals.longest_late_by)} late" if is_late else ", all of it because of a forced close"
        )
    session.answer.say(
        f"Missed: {counted(totals.missed, 'reading')} in {counted(totals.windows, 'window')} of "
        f"{counted(totals.meters, 'meter')}, by {counted(totals.runs, 'run')}{longest}. "
        f"No loss: {counted(totals.repeat, 'repeat')}, {totals.outranked:,} outranked."
    )
