"""What libraries say is told once, not sixty times a second."""

import logging

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
