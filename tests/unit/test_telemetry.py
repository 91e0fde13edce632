"""The probes tell the truth, and what libraries say is told once, not sixty times a second."""

import logging

from services.platform.health import Health
from services.platform.telemetry import NowAndThen


def line(message: str, *arguments: object, name: str = "library") -> logging.LogRecord:
    return logging.LogRecord(name, logging.ERROR, "file.py", 1, message, arguments, None)


def test_the_same_line_is_let_through_once_and_another_at_once() -> None:
    now_and_then = NowAndThen()
    assert now_and_then.filter(line("no connection to %s", 1))
    assert not now_and_then.filter(line("no connection to %s", 1))
    assert now_and_then.filter(line("no connection to %s", 2))
    assert now_and_then.filter(line("no connection to %s", 1, name="other"))


def test_the_same_line_is_let_through_again_later() -> None:
    now_and_then = NowAndThen(seconds=0)
    assert now_and_then.filter(line("no connection"))
    assert now_and_then.filter(line("no connection"))


def test_many_different_lines_are_not_all_remembered() -> None:
    now_and_then = NowAndThen()
    for number in range(3000):
        assert now_and_then.filter(line(f"line {number}"))
    assert len(now_and_then._last) <= 1000


def test_ready_means_started_and_everything_answers() -> None:
    health = Health()
    assert health.waiting_for == "start"
    health.waits_for("Kafka")
    health.answered("PostgreSQL")
    health.started()
    assert health.waiting_for == "Kafka"
    health.waits_for("PostgreSQL")
    assert health.waiting_for == "Kafka, PostgreSQL"
    health.answered("Kafka")
    health.answered("PostgreSQL")
    assert health.waiting_for is None


def test_a_librarys_error_is_a_warning() -> None:
    record = line("no connection")
    assert NowAndThen().filter(record)
    assert record.levelno == logging.WARNING
