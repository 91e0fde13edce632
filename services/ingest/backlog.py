"""What has been polled and not yet stored, cut into batches that advance all partitions together. No IO.

The partitions of a topic hold the same minutes. A batch that takes the same stretch of arrival from each of them
writes whole minutes in the order of the table's key, which PostgreSQL appends; taking one partition after the other
would visit every minute's pages once for each.
"""

from bisect import bisect_right
from collections.abc import Iterable

from services.platform.kafka import Partition, PartitionBatch, Record


class Backlog:
    """Records in their order, by partition."""

    def __init__(self) -> None:
        self._waiting: dict[Partition, list[Record]] = {}

    def __bool__(self) -> bool:
        """Tell whether anything waits."""
        return bool(self._waiting)

    def clear(self) -> None:
        """Forget everything."""
        self._waiting = {}

    def add(self, batches: Iterable[PartitionBatch]) -> None:
        """Take what was polled."""
        for topic, partition, records in batches:
            self._waiting.setdefault((topic, partition), []).extend(records)

    def without(self, partitions: Iterable[Partition]) -> list[Partition]:
        """Return those of the partitions of which nothing waits."""
        return [partition for partition in partitions if partition not in self._waiting]

    def cut(self, max_bytes: int) -> list[PartitionBatch]:
        """Take out about `max_bytes` of the earliest arrivals, at least one record, and return them by partition."""
        share = max_bytes // max(len(self._waiting), 1)
        reach = {key: _records_within(records, share) for key, records in self._waiting.items()}
        horizon = min((records[reach[key] - 1].timestamp_ms for key, records in self._waiting.items()), default=0)
        cut = []
        for key, records in list(self._waiting.items()):
            taken = min(reach[key], bisect_right(records, horizon, key=lambda record: record.timestamp_ms))
            if not taken:
                continue
            cut.append(PartitionBatch(*key, records[:taken]))
            if taken == len(records):
                del self._waiting[key]
            else:
                self._waiting[key] = records[taken:]
        return cut or self._first(horizon)

    def _first(self, horizon: int) -> list[PartitionBatch]:
        """Return one record where clocks that went back hide that there is one at the horizon."""
        for key, records in list(self._waiting.items()):
            if any(record.timestamp_ms <= horizon for record in records):
                self._waiting[key] = records[1:]
                if len(records) == 1:
                    del self._waiting[key]
                return [PartitionBatch(*key, records[:1])]
        return []


def _records_within(records: list[Record], max_bytes: int) -> int:
    """Return how many of the first records hold at most `max_bytes`, at least one."""
    size = 0
    for count, record in enumerate(records, start=1):
        size += len(record.value or b"")
        if size > max_bytes:
            return max(count - 1, 1)
    return len(records)
