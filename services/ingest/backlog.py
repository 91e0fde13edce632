"""What has been polled and not yet stored, cut into batches that advance all partitions together. No IO.

The partitions of a topic hold the same minutes. A batch that takes the same stretch of arrival from each of them
writes whole minutes in the order of the table's key, which PostgreSQL appends; taking one partition after the other
would visit every minute's pages once for each.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate

from services.platform.kafka import Partition, PartitionBatch, Record


@dataclass(slots=True)
class _Waiting:
    """Records of one partition, and when each arrived (milliseconds): its time, never earlier than of those before."""

    records: list[Record] = field(default_factory=list)
    arrivals: list[int] = field(default_factory=list)

    def extend(self, records: list[Record]) -> None:
        latest = self.arrivals[-1:]
        times = accumulate([*latest, *(record.timestamp_ms for record in records)], max)
        self.arrivals[-1:] = times
        self.records += records

    def take(self, count: int) -> list[Record]:
        taken, self.records = self.records[:count], self.records[count:]
        self.arrivals = self.arrivals[count:]
        return taken


class Backlog:
    """Records in their order, by partition."""

    def __init__(self) -> None:
        self._waiting: dict[Partition, _Waiting] = {}

    def __bool__(self) -> bool:
        """Tell whether anything waits."""
        return bool(self._waiting)

    def clear(self) -> None:
        """Forget everything."""
        self._waiting = {}

    def add(self, batches: Iterable[PartitionBatch]) -> None:
        """Take what was polled."""
        for topic, partition, records in batches:
            self._waiting.setdefault((topic, partition), _Waiting()).extend(records)

    def without(self, partitions: Iterable[Partition]) -> list[Partition]:
        """Return those of the partitions of which nothing waits."""
        return [partition for partition in partitions if partition not in self._waiting]

    def cut(self, max_bytes: int) -> list[PartitionBatch]:
        """Take out about `max_bytes` of the earliest arrivals, at least one record, and return them by partition."""
        share = max_bytes // max(len(self._waiting), 1)
        reach = {key: _records_within(waiting.records, share) for key, waiting in self._waiting.items()}
        horizon = min((waiting.arrivals[reach[key] - 1] for key, waiting in self._waiting.items()), default=0)
        cut = []
        for key, waiting in list(self._waiting.items()):
            count = min(reach[key], bisect_right(waiting.arrivals, horizon))
            if count:
                cut.append(PartitionBatch(*key, waiting.take(count)))
            if not waiting.records:
                del self._waiting[key]
        return cut


def _records_within(records: list[Record], max_bytes: int) -> int:
    """Return how many of the first records hold at most `max_bytes`, at least one."""
    size = 0
    for count, record in enumerate(records, start=1):
        size += len(record.value or b"")
        if size > max_bytes:
            return max(count - 1, 1)
    return len(records)
