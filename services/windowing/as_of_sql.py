"""The readings as they were known: one fragment for closing, for verification, and for whoever asks later.

A version is known where `known` says so, an SQL condition over the columns of a reading. Of each reading the newest
known version is given. `in_range` bounds `measured_at` by parameters, so that partitions are spared.
"""

VERSION_ORDER = (
    "revision DESC, arrived_at DESC, source_topic DESC, source_partition DESC, source_offset DESC, source_place DESC"
)
_COLUMNS = "measured_at, meter_id, value, interval_minutes, is_register"


def superseded_as_of(known: str, in_range: str, columns: str = _COLUMNS) -> str:
    """Return a SELECT of the best known of the superseded versions of each reading whose newest version is not known.

    It asks for the newest version key by key: superseded versions are few.
    """
    return f"""
    SELECT {columns}
    FROM (
        SELECT DISTINCT ON (measured_at, meter_id) {columns}
        FROM reading_superseded WHERE {in_range} AND {known}
        ORDER BY measured_at, meter_id, {VERSION_ORDER}
    ) AS best
    WHERE (
        SELECT NOT ({known}) FROM reading
        WHERE measured_at = best.measured_at AND meter_id = best.meter_id AND {in_range}
    )"""  # noqa: S608 - put together from constants


def as_of(known: str, in_range: str, *, with_version: bool = False, superseded: str | None = None) -> str:
    """Return a SELECT of measured_at, meter_id, value, interval_minutes, is_register.

    With the version: revision, arrived_at and is_newest, too.

    The newest version where it is known, else the best of the superseded ones that are: those of `superseded`, where it
    names what `superseded_as_of` gave.
    """
    columns = f"{_COLUMNS}, revision, arrived_at" if with_version else _COLUMNS
    is_newest, is_not = (", true AS is_newest", ", false") if with_version else ("", "")
    superseded = superseded or f"({superseded_as_of(known, in_range, columns)}) AS superseded"
    return f"""
    SELECT {columns}{is_newest} FROM reading WHERE {in_range} AND {known}
    UNION ALL
    SELECT {columns}{is_not} FROM {superseded}"""  # noqa: S608 - put together from constants
