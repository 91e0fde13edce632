"""Closed windows as the JSON of an answer, written by PostgreSQL.

A month of one meter is thousands of rows. As numbers and times they would be objects here, made one by one while every
other request waits; as one text they are passed on.
"""

import json
from typing import NamedTuple

FLAGS = {1: "spans_gap", 2: "register_rolled_over", 4: "register_reset", 8: "readings_not_counted"}
"""What the bits of a window's flags mean."""


class Amount(NamedTuple):
    """Two members of an object: what a window has, and that as a rate per hour."""

    column: str
    rate: str


_ENERGY = Amount("energy_wh", "power_w")
_VOLUME = Amount("volume", "flow_per_hour")


def _flag_names() -> str:
    """Return the expression of the names of the flags, as an array."""
    every = (
        json.dumps([name for bit, name in FLAGS.items() if number & bit], separators=(",", ":"))
        for number in range(2 * max(FLAGS))
    )
    names = ", ".join(f"'{one}'" for one in every)
    return f"CASE WHEN flags = 0 THEN '[]' ELSE (ARRAY[{names}])[(flags & {2 * max(FLAGS) - 1}) + 1] END"


def _amount(amount: Amount) -> str:
    """Return the expression of both members: exact, without zeros that say nothing; null without such a value."""
    column, rate = amount
    some = (
        f"""'"{column}":"' || trim_scale({column}) || '","{rate}":"' || trim_scale({column} * (60 / $1::int)) || '"'"""
    )
    return f"""CASE WHEN {column} IS NULL THEN '"{column}":null,"{rate}":null' ELSE {some} END"""


NAMES = """'"meter_id":' || meter_id || ',"meter_type":' || to_json(meter_type) || ',"meter_name":' || to_json(name)
    || ',"meter_unit":' || to_json(unit) || ',"site_id":' || site_id || ',"site_name":' || to_json(site_name) || ','"""
_FLAG_NAMES = _flag_names()
_COUNTS = """',"pulses":' || pulses || ',"intervals_present":' || intervals_present || ',"intervals_expected":'
    || intervals_expected"""
_TIME = """to_char(window_start, 'YYYY-MM-DD"T"HH24:MI:SS"Z"') || '","resolution_minutes":' || $1::int || ','"""
PREPARED = "names_json"
"""The column that NAMES is, where they are put together once for many windows."""


def window_object(names: str) -> str:
    """Return the expression of a window's object; `names`: NAMES, or PREPARED.

    $1: resolution in minutes; columns: those of `MeasurementRow`, named so.
    """
    amounts = f"({_amount(_ENERGY)}) || ',' || ({_amount(_VOLUME)})"
    return f"""'{{"window_start":"' || {_TIME} || ({names}) || {amounts} || ({_COUNTS}) || ',"flags":' || {_FLAG_NAMES}
        || '}}'"""
