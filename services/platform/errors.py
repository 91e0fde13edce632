"""Errors that say who must act. Each edge translates its library's errors into these at once."""


class MeterpostError(Exception):
    """Anything that we raise on purpose; the message is a sentence for people."""


class UserError(MeterpostError):
    """The input or the settings are wrong: the message says what, where, and what to do."""


class Unavailable(MeterpostError):  # noqa: N818 - a state of the world, reads as one
    """A server that we need is away for now: wait and try again."""


class Superseded(MeterpostError):  # noqa: N818 - as above
    """Somebody else owns the work now: drop it, nothing was written."""


class OperatorNeeded(MeterpostError):  # noqa: N818 - as above
    """Going on would lose or change data: stop and tell the operator."""
