"""The two ways of judging records, with verdicts that can be compared."""

from collections.abc import Sequence
from datetime import timedelta

from services.core.columns import ColumnJudge, Columns, PlainTimes
from services.core.readings import ReadingVersion, Refusal
from services.core.times import from_epoch_microseconds
from services.core.uploads import Origin, judge_upload
from tests.support.wire import small_registry

RETENTION = timedelta(days=92)
REGISTRY = small_registry()
TIMES = PlainTimes()

Verdicts = tuple[list[ReadingVersion], list[tuple[Origin, Refusal]]]


def versions_of(columns: Columns) -> list[ReadingVersion]:
    """Return columns as versions."""
    rows = zip(*(array.tolist() for array in columns.arrays()), strict=True)
    return [
        ReadingVersion._make(
            [from_epoch_microseconds(row[0]), from_epoch_microseconds(row[1]), *row[2:10], bool(row[10])]
        )
        for row in rows
    ]


def one_by_one(records: Sequence[tuple[bytes, Origin]]) -> Verdicts:
    """Judge every record by itself; the verdicts are sorted."""
    versions: list[ReadingVersion] = []
    refusals: list[tuple[Origin, Refusal]] = []
    for payload, origin in records:
        judged = judge_upload(payload, origin, REGISTRY, RETENTION)
        versions += judged.versions
        refusals += [(origin, refusal) for refusal in judged.refusals]
    return sorted(versions), sorted(refusals, key=_place)


def by_column(records: Sequence[tuple[bytes, Origin]]) -> Verdicts:
    """Judge all records at once; the verdicts are sorted."""
    judge = ColumnJudge(REGISTRY, RETENTION, TIMES)
    for payload, origin in records:
        judge.add(payload, origin)
    versions, refusals = judge.finish()
    return sorted(versions_of(versions)), sorted(refusals, key=_place)


def _place(item: tuple[Origin, Refusal]) -> tuple[int, int]:
    return item[0].offset, item[1].place
