"""The probes tell the truth: one server that answers does not speak for another."""

import logging

from services.platform.telemetry import Health, _RepeatsNothing


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


def test_a_library_repeats_itself_only_now_and_then_and_never_as_an_error() -> None:
    filter_ = _RepeatsNothing()
    said = [logging.LogRecord("lib", logging.ERROR, "lib.py", line, "away", (), None) for line in (1, 1, 2)]
    assert [filter_.filter(record) for record in said] == [True, False, True]
    assert said[0].levelno == logging.WARNING
