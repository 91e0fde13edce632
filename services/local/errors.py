"""The errors of the embedded servers."""

from services.platform.errors import MeterpostError


class LocalServerError(MeterpostError):
    """An embedded server cannot be prepared, started or reached: the message says what is wrong and what to do."""
