"""Durations as people type them."""

import re
from datetime import timedelta

from services.platform.errors import UserError

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse_duration(text: str, option: str) -> timedelta:
    """Return the duration that `text` names (30s, 5m, 2h, 1d). Raises UserError that names the option."""
    found = re.fullmatch(r"(\d{1,6})([smhd])", text.strip())
    if found is None:
        raise UserError(f"{option} is {text!r}; give a number and s, m, h or d, such as 30s")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})
