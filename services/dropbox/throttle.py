"""How many refused passwords are too many: counted over a while, for keys such as an address or an account."""

import ipaddress
from collections import OrderedDict, deque
from dataclasses import dataclass, field


@dataclass
class Failures:
    """Counts failures by key, in bounded memory. Instants are seconds of a monotonic clock."""

    limit: int
    window_seconds: float
    capacity: int = 20_000
    _counted: OrderedDict[str, deque[float]] = field(default_factory=OrderedDict)

    def note(self, key: str, now: float) -> None:
        """Count one more."""
        counted = self._counted.setdefault(key, deque(maxlen=self.limit))
        counted.append(now)
        self._counted.move_to_end(key)
        if len(self._counted) > self.capacity:
            self._counted.popitem(last=False)  # the one that has been quiet for longest

    def count(self, key: str, now: float) -> int:
        """Return how many there were within the window, `limit` at most."""
        counted = self._counted.get(key)
        if counted is None:
            return 0
        while counted and counted[0] <= now - self.window_seconds:
            counted.popleft()
        if not counted:
            del self._counted[key]
        return len(counted)

    def are_too_many(self, key: str, now: float) -> bool:
        """Tell whether the next one is refused unseen."""
        return self.count(key, now) >= self.limit

    def forget(self, key: str) -> None:
        """Forget a key."""
        self._counted.pop(key, None)


def network_of(address: str) -> str:
    """Return what an address counts as: IPv6 by its /64, of which one customer has all."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


def delay_seconds(first_seconds: float, failures: int) -> float:
    """Return how long a refusal is held back: twice as long each time, up to eight times."""
    return float(first_seconds * min(2 ** max(failures - 1, 0), 8))
