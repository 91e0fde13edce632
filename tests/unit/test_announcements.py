"""Which due windows windowing announces, and when again."""

from datetime import UTC, datetime, timedelta

from services.core.messages import WindowsDue
from services.windowing.announcements import Announcements, BucketKey

T0 = datetime(2026, 11, 20, 10, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
ONE, OTHER = BucketKey(1, 0), BucketKey(1, 1)


def test_each_bucket_that_is_behind_is_announced_once_per_step_the_oldest_first() -> None:
    announcements = Announcements(repeat_after_seconds=5)
    frontiers = {ONE: T0 + MINUTE, OTHER: T0, BucketKey(5, 0): T0}
    due = {1: T0 + 2 * MINUTE, 5: T0}
    first = announcements.pick(frontiers, due, now=0)
    assert first == [WindowsDue(1, 1, T0 + 2 * MINUTE), WindowsDue(1, 0, T0 + 2 * MINUTE)]
    assert announcements.pick(frontiers, due, now=4.9) == []
    due = {1: T0 + 3 * MINUTE, 5: T0}
    assert [message.due_until for message in announcements.pick(frontiers, due, now=4.9)] == [T0 + 3 * MINUTE] * 2


def test_what_nobody_serves_is_announced_again_and_what_moves_is_not() -> None:
    announcements = Announcements(repeat_after_seconds=5)
    due = {1: T0 + 9 * MINUTE}
    assert len(announcements.pick({ONE: T0, OTHER: T0}, due, now=0)) == 2
    moved = {ONE: T0, OTHER: T0 + MINUTE}
    assert announcements.pick(moved, due, now=4) == []
    assert announcements.pick(moved, due, now=5) == [WindowsDue(1, 0, due[1])]
    assert announcements.pick(moved, due, now=8.9) == []
    assert announcements.pick(moved, due, now=9) == [WindowsDue(1, 1, due[1])]


def since(announcements: Announcements) -> float | None:
    return announcements.unserved_since


def test_since_when_the_longest_waiting_bucket_waits() -> None:
    announcements = Announcements(repeat_after_seconds=5)
    assert since(announcements) is None
    for now in range(10):  # a moving watermark must not hide that nothing is served
        announcements.pick({ONE: T0, OTHER: T0}, {1: T0 + (now + 1) * MINUTE}, now=now)
    assert since(announcements) == 0
    announcements.pick({ONE: T0 + MINUTE, OTHER: T0 + 2 * MINUTE}, {1: T0 + 20 * MINUTE}, now=10)
    assert since(announcements) == 10
    announcements.pick({ONE: T0 + 20 * MINUTE, OTHER: T0 + 20 * MINUTE}, {1: T0 + 20 * MINUTE}, now=11)
    assert since(announcements) is None
