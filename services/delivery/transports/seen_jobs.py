"""Which jobs this process has sent files for, to clean up once after what an earlier process left behind."""

from collections import OrderedDict
from collections.abc import Hashable

MAX_REMEMBERED = 10_000


class SeenJobs:
    """Remembers the jobs of the recent past, by server."""

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[Hashable, int], None] = OrderedDict()

    def is_new(self, server: Hashable, job_id: int) -> bool:
        """Tell whether the job has not been seen with this server; from now on it has."""
        key = (server, job_id)
        is_new = key not in self._seen
        self._seen[key] = None
        self._seen.move_to_end(key)
        if len(self._seen) > MAX_REMEMBERED:
            self._seen.popitem(last=False)
        return is_new
