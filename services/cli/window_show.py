"""`meterpost windows show`: one meter's window explained, from the readings to the files that carried it."""

import json
from datetime import timedelta
from decimal import Decimal
from typing import Annotated

import typer

from services.api.window_queries import Closing, Configuration, Measurement, Version, WindowStory, window_story
from services.cli import choosing
from services.cli.session import Session, command
from services.cli.show import Answer, Column, lasted, utc
from services.cli.windows import app
from services.core.conversion import WH_PER_KWH, Conversion, Utility, convert, hourly_rate, two_decimals
from services.core.counting import RowFlag
from services.core.plurals import counted
from services.platform.errors import UserError
from services.platform.postgres import transaction
from services.windowing.as_of_queries import versions_kept_from

_VERSIONS = (
    Column("Reading", whole=True),
    Column("Min", number=True),
    Column("Value", number=True),
    Column("Kind", whole=True),
    Column("Revision", number=True),
    Column("Arrived", whole=True),
    Column("From", whole=True),
    Column("In this window"),
)
_RUNS = (
    Column("Carried by run", whole=True),
    Column("State", whole=True),
    Column("Part", number=True),
    Column("Part's state", whole=True),
)
_FLAGS = {
    RowFlag.SPANS_GAP: "begins at a register from before the window: it spans a gap",
    RowFlag.ROLLED_OVER: "the register rolled over",
    RowFlag.RESET: "the register was reset; that step counts nothing",
    RowFlag.NOT_ALL_COUNTED: "some readings were not counted",
}


@command(app, "show", "organization", "database", "as_json")
async def show(
    session: Session,
    *,
    meter: Annotated[int, typer.Option(metavar="ID", help="The meter.", show_default=False)],
    resolution: Annotated[int, typer.Option(metavar="MINUTES", help="The window's length.", show_default=False)],
    start: Annotated[str, typer.Option(metavar="TIME", help="The window's start.", show_default=False)],
) -> None:
    """Explain one meter's window: readings with all versions, registers, configuration, arithmetic, proof and runs."""
    minutes = choosing.resolution_of(resolution)
    begins = choosing.window_start(start, minutes, "--start")
    async with session.pool() as pool, transaction(pool) as connection:
        organization = await session.organization(connection)
        await choosing.check_meter(connection, organization, meter)
        story = await window_story(connection, organization.organization_id, meter, minutes, begins)
        kept_from = await versions_kept_from(connection)
    if story is None:
        raise UserError("no window was ever closed: windows open with the first reading")
    ends = begins + timedelta(minutes=minutes)
    arithmetic = explain(story, minutes, are_readings_kept=kept_from is not None and begins >= kept_from)
    if session.answer.as_json:
        about = {"meter_id": meter, "resolution_minutes": minutes, "window_start": begins, "window_end": ends}
        session.answer.json({**about, **_json(story), "arithmetic": arithmetic})
        return
    session.answer.say(
        f"Meter {meter}, {counted(minutes, 'minute')} from {utc(begins)} to {utc(ends)}: {_state(story)}"
    )
    _tell(session.answer, story, arithmetic)


def explain(story: WindowStory, resolution_minutes: int, *, are_readings_kept: bool) -> list[str]:
    """Return the arithmetic of a row, line by line; empty where there is none."""
    row, configuration = story.row, story.configuration
    if row is None:
        return []
    lines = [_count(story, row, are_readings_kept=are_readings_kept)]
    if row.flags:
        lines += [f"note: {text}" for flag, text in _FLAGS.items() if row.flags & flag]
    if configuration is not None:
        lines += _convert(row, configuration, resolution_minutes)
    lines.append(f"intervals: {row.intervals_present} present of {row.intervals_expected} expected")
    if not _adds_up(story, row, are_readings_kept=are_readings_kept):
        lines.append(
            "THIS DOES NOT ADD UP: the row, its readings or its configuration were changed behind the product's back; "
            "`meterpost windows verify` tells what is to be there"
        )
    return lines


def _adds_up(story: WindowStory, row: Measurement, *, are_readings_kept: bool) -> bool:
    """Tell whether a row is what its readings, as far as they are kept, and its configuration make of it."""
    counted = [version.reading.value for version in story.versions if version.role == "counted"]
    if row.register_end is not None and row.register_start is not None:
        is_plain = not RowFlag(row.flags) & (RowFlag.ROLLED_OVER | RowFlag.RESET)
        if is_plain and row.register_end - row.register_start != row.pulses:
            return False
        if are_readings_kept and row.register_end not in counted:
            return False
    elif are_readings_kept and sum(counted) != row.pulses:
        return False
    one = story.configuration
    if one is None:
        return row.energy_wh is None and row.volume is None
    factors = (one.units_per_pulse, one.normalization_factor, one.calorific_value)
    return convert(row.pulses, Conversion(Utility(one.utility), *factors)) == (row.energy_wh, row.volume)


def _count(story: WindowStory, row: Measurement, *, are_readings_kept: bool) -> str:
    if row.register_end_at is not None and row.register_start_at is not None:
        difference = f"{row.register_end} - {row.register_start}"
        plain = row.register_end == (row.register_start or 0) + row.pulses
        return (
            f"register {difference} (at {utc(row.register_end_at)}, at {utc(row.register_start_at)}) "
            + ("= " if plain else "step by step, with what is noted below: ")
            + f"{row.pulses} pulses"
        )
    counted = [version for version in story.versions if version.role == "counted"]
    values = [str(version.reading.value) for version in counted]
    if not are_readings_kept:
        return f"{row.pulses} pulses; the readings are no longer kept"
    total = " + ".join(values) or "no reading" if len(values) <= 20 else f"{len(values)} readings"
    found = sum(version.reading.value for version in counted)
    return f"{total} = {found} pulses" + ("" if found == row.pulses else f"; the row says {row.pulses}")


def _convert(row: Measurement, configuration: Configuration, resolution_minutes: int) -> list[str]:
    utility, unit = Utility(configuration.utility), configuration.unit
    amount = f"{row.pulses} pulses x {_text(configuration.units_per_pulse)} {unit}"
    lines = []
    if row.volume is not None:
        factor = f" x {_text(configuration.normalization_factor)} (normalization)" if utility is Utility.GAS else ""
        lines.append(f"volume: {amount}{factor} = {_text(row.volume)} {unit}")
        lines.append(_rate("flow", row.volume, unit, f"{unit} per hour", resolution_minutes))
    if row.energy_wh is not None:
        if utility is Utility.GAS and row.volume is not None and configuration.calorific_value is not None:
            factor = f"{_text(configuration.calorific_value)} kWh per {unit}"
            lines.append(f"energy: {_text(row.volume)} {unit} x {factor} x {WH_PER_KWH} = {_text(row.energy_wh)} Wh")
        else:
            lines.append(f"energy: {amount} x {WH_PER_KWH} = {_text(row.energy_wh)} Wh")
        lines.append(_rate("power", row.energy_wh, "Wh", "W", resolution_minutes))
    return lines


def _rate(name: str, amount: Decimal, unit: str, rate_unit: str, resolution_minutes: int) -> str:
    rate = two_decimals(hourly_rate(amount, resolution_minutes))
    return f"{name}: {_text(amount)} {unit} x 60 / {resolution_minutes} = {rate} {rate_unit}"


def _text(number: Decimal) -> str:
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _state(story: WindowStory) -> str:
    if not story.is_closed:
        return f"open. It closes when everything is stored that arrived up to {utc(story.cut_off)}."
    forced = "" if story.forced_by is None else f" FORCED by an operator ({story.forced_by})."
    if story.dropped_until is not None:
        return (
            f"closed. Its row was dropped by retention, as all before {utc(story.dropped_until)}: whether it had one "
            f"only its readings can tell, while they are kept.{forced}"
        )
    row = "closed." if story.row is not None else "closed, without a row: nothing in it can be measured."
    return row + forced


def _tell(answer: Answer, story: WindowStory, arithmetic: list[str]) -> None:
    for line in arithmetic:
        answer.say(f"  {line}")
    answer.table(_VERSIONS, map(_version_row, story.versions))
    facts: list[tuple[str, object]] = [("Cut-off", utc(story.cut_off))]
    if story.configuration is not None:
        facts += _configuration_facts(story.configuration)
    if story.closing is not None:
        facts += _closing_facts(story.closing)
    facts += [(f"Event {kind}", detail) for kind, detail in story.events]
    answer.facts(facts)
    if story.runs:
        answer.table(_RUNS, [(one.run, one.state, one.part, one.part_state) for one in story.runs])
    else:
        answer.say("No run carries it.")


def _version_row(version: Version) -> tuple[object, ...]:
    reading = version.reading
    source = "readings.logger" if reading.source_topic else "readings.bridge"
    role: str = version.role if version.late_by is None else f"late by {lasted(version.late_by)}"
    return (
        reading.measured_at,
        reading.interval_minutes,
        reading.value,
        "register" if reading.is_register else "pulses",
        reading.revision,
        utc(reading.arrived_at),
        f"{source}/{reading.source_partition}@{reading.source_offset}",
        role,
    )


def _configuration_facts(one: Configuration) -> list[tuple[str, object]]:
    begun = "the beginning" if one.valid_from.year == 1 else utc(one.valid_from)
    facts: list[tuple[str, object]] = [
        ("Configuration", f"{one.meter_name}, {one.meter_type}; valid from {begun}, catalog revision {one.revision}"),
        ("Units per pulse", f"{_text(one.units_per_pulse)} {one.unit}"),
        ("Cadence", counted(one.cadence_minutes, "minute")),
    ]
    if one.utility == Utility.GAS:
        calorific = "none" if one.calorific_value is None else _text(one.calorific_value)
        facts.append(("Gas", f"normalization {_text(one.normalization_factor)}, kWh per {one.unit}: {calorific}"))
    if one.register_modulus is not None:
        facts.append(("Register modulus", one.register_modulus))
    return facts


def _closing_facts(one: Closing) -> list[tuple[str, object]]:
    offsets = ", ".join(f"{name} {offset}" for name, offset in sorted(json.loads(one.offsets).items()))
    return [
        ("Closed at", f"{utc(one.closed_at)} (wall clock), by catalog revision {one.catalog_revision}"),
        ("Proof", f"bucket {one.bucket}, {counted(one.row_count, 'row')}, SHA-256 {one.sha256.hex()}"),
        ("Offsets", offsets),
    ]


def _json(story: WindowStory) -> dict[str, object]:
    return {
        "is_closed": story.is_closed,
        "row_dropped_until": story.dropped_until,
        "cut_off": story.cut_off,
        "forced_by": story.forced_by,
        "row": None if story.row is None else story.row._asdict(),
        "configuration": None if story.configuration is None else story.configuration._asdict(),
        "closing": None
        if story.closing is None
        else {**story.closing._asdict(), "offsets": json.loads(story.closing.offsets)},
        "versions": [
            {
                "role": one.role,
                "late_by_seconds": None if one.late_by is None else one.late_by.total_seconds(),
                **one.reading._asdict(),
            }
            for one in story.versions
        ],
        "events": [{"kind": kind, "detail": json.loads(detail)} for kind, detail in story.events],
        "runs": [one._asdict() for one in story.runs],
    }
