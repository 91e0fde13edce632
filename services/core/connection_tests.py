"""What those who ask for connection tests and those who make them agree on."""

from datetime import timedelta

TESTS_WAIT = timedelta(minutes=10)
"""A test that nobody has taken for so long is not made any more: whoever asked has gone."""
