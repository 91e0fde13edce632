"""When ingest rings: soon where windows may have become due, else once a second, and never twice for the same."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from services.core.columns import Columns
from services.core.messages import IngestProgress
from services.ingest import doorbell
from services.ingest.batch import Advance, Batch, Position
from services.ingest.doorbell import Doorbell
from services.platform.kafka import Producer

T0 = datetime(2026, 11, 20, 10, tzinfo=UTC)
GRACE = timedelta(minutes=5)


class Street:
    """Stands where the producer would, with a clock that the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.heard: list[IngestProgress] = []
        monkeypatch.setattr(doorbell, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.bell = Doorbell(cast("Producer", self), "ingest.progress", GRACE)

    async def enqueue(self, _topic: str, value: bytes, **_options: Any) -> None:
        """Hear an event."""
        self.heard.append(msgspec.json.decode(value, type=IngestProgress))

    async def after(self, seconds: float, watermark: datetime | None = None, partition: int = 0) -> int:
        """Let time pass, a batch be committed, and the bell be rung; return how many events were heard."""
        self.now += seconds
        if watermark is not None:
            position = Position(1, 7, watermark, T0)
            self.bell.note(Batch(cast("Columns", None), advances=[Advance("t", partition, 1, 0, position, 0, 0)]))
        before = len(self.heard)
        await self.bell.ring()
        return len(self.heard) - before


async def test_what_lets_no_window_become_due_is_told_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    street = Street(monkeypatch)
    assert await street.after(0, T0) == 1
    assert await street.after(0.5, T0 + timedelta(seconds=0)) == 0
    assert await street.after(0.4) == 0
    assert await street.after(0.2) == 1
    assert await street.after(5) == 0


async def test_what_passes_a_cut_off_is_told_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    street = Street(monkeypatch)
    assert await street.after(0, T0 - timedelta(seconds=1)) == 1
    # The cut-off itself is still in: only what arrives after it shows that nothing more can come.
    assert await street.after(0.2, T0) == 0
    assert await street.after(0.2, T0 + timedelta(microseconds=1)) == 1
    assert street.heard[-1].watermark == T0 + timedelta(microseconds=1)


async def test_a_replay_does_not_ring_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    street = Street(monkeypatch)
    await street.after(0, T0)
    told = [await street.after(0.01, T0 + number * timedelta(minutes=10)) for number in range(1, 101)]
    assert 8 <= sum(told) <= 10
    assert await street.after(0.2) == 1
    assert street.heard[-1].watermark == T0 + timedelta(minutes=1000)


async def test_every_partition_passes_cut_offs_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    street = Street(monkeypatch)
    await street.after(0, T0, partition=0)
    assert await street.after(0.2, T0 + timedelta(seconds=30), partition=1) == 1
    assert [event.partition for event in street.heard] == [0, 1]
