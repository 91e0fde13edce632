"""Whether nearly everything is refused: then ingest stops, before a bad deployment drains a topic. Pure.

Of each partition the last readings are looked at (about as many as the setting says, by their counts), and a topic is
judged by all of its partitions, those of other processes included: one device, or one partition, that sends nothing but
rubbish moves the share of its own partition only, and half of the topic's partitions must be bad. What is looked at is
kept with the progress, so a process that is started again and again does not begin each time with a clean slate.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from services.platform.errors import OperatorNeeded
from services.platform.kafka import Partition


class Recent(NamedTuple):
    """What became of a partition's last readings."""

    stored: int
    refused: int

    @property
    def total(self) -> int:
        """How many readings are looked at."""
        return self.stored + self.refused

    @property
    def share(self) -> float:
        """The share of the refused; 0 where there are no readings."""
        return self.refused / self.total if self.total else 0.0

    def then(self, stored: int, refused: int, readings: int) -> "Recent":
        """Return the last `readings` readings after so many more; the older ones give way in proportion."""
        new = Recent(stored, refused)
        if new.total >= readings:
            return new._shrunk(readings)
        old = self._shrunk(readings - new.total)
        return Recent(old.stored + stored, old.refused + refused)

    def _shrunk(self, readings: int) -> "Recent":
        if self.total <= readings:
            return self
        refused = self.refused * readings // self.total
        return Recent(readings - refused, refused)


NONE_RECENT = Recent(0, 0)


class TopicRefusals(NamedTuple):
    """What the database knows of a topic."""

    recent: dict[Partition, Recent]
    is_allowed: bool
    """An operator allows refusals now."""


def total_of(recent: Iterable[Recent]) -> Recent:
    """Return the sum over partitions."""
    every = list(recent)
    return Recent(sum(one.stored for one in every), sum(one.refused for one in every))


class RefusalGuard:
    """The line: at least so many recent readings, more than so many of a hundred refused, in half of the partitions."""

    def __init__(self, readings: int, percent: int) -> None:
        self._readings = readings
        self._percent = percent

    def is_near(self, recent: Iterable[Recent]) -> bool:
        """Tell whether nearly everything of these partitions was refused; cheap, asked for every batch."""
        total = total_of(recent)
        return total.total >= self._readings and self._is_bad(total)

    def is_crossed(self, recent: Collection[Recent]) -> bool:
        """Tell whether nearly everything was refused, given all partitions of a topic."""
        return self.is_near(recent) and 2 * sum(self._is_bad(one) for one in recent) >= len(recent)

    def _is_bad(self, recent: Recent) -> bool:
        return recent.refused * 100 > recent.total * self._percent

    def judge(self, topic: str, ours: Mapping[Partition, Recent], known: TopicRefusals, example: str) -> None:
        """Raise OperatorNeeded where nearly everything of the whole topic was refused and nobody allowed it.

        `ours` are our partitions with the batch that is to be stored; `known` has those of others.
        """
        recent = [*{**known.recent, **ours}.values()]
        if known.is_allowed or not self.is_crossed(recent):
            return
        total = total_of(recent)
        raise OperatorNeeded(
            f"{topic}: of the last {total.total:,} readings {total.refused:,} would be refused: {example}. The batch "
            f"that crosses the line of {self._percent} % was not stored. Mend the cause (the registry, a deployment) "
            f"and start ingest again; if the refusals are right, let them pass for a while first: "
            f"`meterpost ingest resume-refusing {topic} --for 1h --reason TEXT`."
        )
